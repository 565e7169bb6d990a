"""Test how long uploads are kept, and whose PDFs are read first if there are many."""

import asyncio
import os
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import httpx
import pytest

from app import uploads
from app.errors import Problem
from app.jobs import Store
from app.uploads import Uploads
from conftest import OTHER_CALLER
from pdfs import laborious, pdf
from standins import wait_for

DAY = 86_400


@pytest.fixture
def kept(tmp_path):
    """Return Uploads in the test's own directory."""
    settings = SimpleNamespace(resources_directory=tmp_path, upload_quota_bytes=10**6, max_pdf_pages=50)
    return Uploads(settings, ocr=None)


def aged(path, days: float) -> None:
    path.write_bytes(b"%PDF-")
    os.utime(path, (time.time() - days * DAY,) * 2)


def test_the_quota(new_server):
    first = pdf("one") + b"%" * 10_000
    server = new_server(UPLOAD_QUOTA_BYTES=str(len(first) + 100)).start()
    with server.client() as client:
        answers = [client.post("/v1/checklist", files={"file": file}) for file in (first, pdf("two"), first)]
        assert [answer.status_code for answer in answers] == [200, 507, 200]
        assert client.post("/v1/checklist", json={"text": "a"}).status_code == 200
    assert f"may have {len(first) + 100} bytes" in answers[1].json()["error"]["message"]
    assert len(list((server.directory / "resources/s3").iterdir())) == 1


def test_retention_spares_what_a_job_waits_for(new_server):
    server = new_server(UPLOAD_RETENTION_DAYS="3")
    directory = server.directory / "resources/s3"
    for name, days in {"old.pdf": 4, "needed.pdf": 4, "young.pdf": 2, "notes.txt": 4}.items():
        aged(directory / name, days)
    store = Store(server.directory / "state", clock=lambda: time.time() + DAY)  # due tomorrow
    store.add("waits", "caller", "checklist", {"upload": "needed.pdf"}, 1)
    store.close()
    server.start()
    wait_for(lambda: not (directory / "old.pdf").exists())
    assert sorted(path.name for path in directory.iterdir()) == ["needed.pdf", "notes.txt", "young.pdf"]


def test_without_retention_only_what_a_killed_process_left_goes(kept, tmp_path):
    for name, days in {"old.pdf": 4000, ".left.part": 1, ".coming.part": 0.01}.items():
        aged(tmp_path / name, days)
    assert kept.remove(0, set()) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".coming.part", "old.pdf"]


def test_an_upload_that_is_sent_again_is_young_again(kept, tmp_path):
    (tmp_path / "sent").write_bytes(pdf("a"))
    with (tmp_path / "sent").open("rb") as content:
        name = asyncio.run(kept.keep(content))
        aged(tmp_path / name, 4)
        assert asyncio.run(kept.keep(content)) == name
    assert kept.remove(time.time() - DAY, set()) == 0


def test_a_missing_upload(kept):
    with pytest.raises(Problem, match="removed before") as problem:
        asyncio.run(kept.text("gone.pdf", "caller"))
    assert not problem.value.transient


def test_one_callers_pdfs_do_not_hold_anothers(server):
    document = laborious()
    assert len(document) < 10_000

    def send() -> None:
        with server.client() as client, suppress(httpx.TimeoutException):  # it disconnects before the end
            client.post("/v1/checklist", files={"file": document}, timeout=8)

    threads = [threading.Thread(target=send) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(1)
    with server.client(OTHER_CALLER) as other:
        assert other.post("/v1/checklist", files={"file": pdf("a")}).status_code == 200
    assert all(thread.is_alive() for thread in threads)
    for thread in threads:
        thread.join()


def test_the_wait_for_ones_turn_is_bounded(kept, tmp_path, monkeypatch):
    async def parse(path) -> dict:
        await go_on.wait()
        return {"pages": ["words"], "scanned": []}

    async def scenario() -> None:
        first, behind, other, another = (asyncio.create_task(kept.text("a.pdf", caller)) for caller in "AABC")
        with pytest.raises(Problem) as problem:
            await behind
        assert (problem.value.status_code, problem.value.headers["Retry-After"]) == (503, "0.2")
        with pytest.raises(Problem):  # two callers have the two parsers
            await another
        go_on.set()
        assert await asyncio.gather(first, other, kept.text("a.pdf", "A")) == ["words"] * 3

    monkeypatch.setattr(uploads, "PARSER_WAIT_SEC", 0.2)
    monkeypatch.setattr(kept, "_parse", parse)
    aged(tmp_path / "a.pdf", 0)
    go_on = asyncio.Event()
    asyncio.run(scenario())
