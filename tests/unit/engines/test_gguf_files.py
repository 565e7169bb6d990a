"""GGUF files by path or from a hub: complete, the intended ones, and compatible with each other."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lab import model
from plugins.module_utils.engines.gguf_files import (
    Store,
    Wanted,
    adapter_problem,
    fingerprint,
    header,
    model_problem,
)
from plugins.module_utils.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gguf")
    model.make(folder, misfits=True)
    return folder


def read(path, what="the model"):
    return header(Wanted(what, str(path)), path)


class Hub:
    """A hub with one file that truncates, refuses or resumes a download, as the test sets."""

    def __init__(self, content: bytes):
        self.content, self.asked, self.breaks, self.status = content, [], 0, 200
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                hub.asked.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
                if hub.status != 200:
                    self.send_response(hub.status)
                    self.end_headers()
                    return
                begin = int((self.headers.get("Range") or "bytes=0-")[6:-1])
                left = hub.content[begin:]
                self.send_response(206 if begin else 200)
                self.send_header("Content-Length", str(len(left)))
                self.end_headers()
                cut, hub.breaks = hub.breaks, 0
                self.wfile.write(left[: len(left) - cut])

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def hub(files):
    made = Hub((files / "gguf/tiny.gguf").read_bytes())
    yield made
    made.server.shutdown()


@pytest.fixture
def store(tmp_path, hub):
    made = Store(tmp_path, None, hub.url, "hf_canary")
    made.pause = 0
    return made


def of_the_hub(hub, **other) -> Wanted:
    known = {"source": "lab/tiny", "file": "tiny.gguf", "revision": COMMIT, "sha256": sum_of(hub.content)}
    return Wanted("the model", **{**known, **other})


def sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_file_of_the_hub_is_fetched_once(store, hub, tmp_path):
    wanted = of_the_hub(hub)
    assert store.place(wanted) == (tmp_path / "lab--tiny" / COMMIT / "tiny.gguf", False)
    path = store.bring(wanted)
    assert path.read_bytes() == hub.content and store.place(wanted)[1]
    assert store.bring(wanted) == path and len(hub.asked) == 1
    assert hub.asked == [(f"/lab/tiny/resolve/{COMMIT}/tiny.gguf", None, "Bearer hf_canary")]
    path.write_bytes(hub.content[:-1])
    assert not store.place(wanted)[1], "a file that was changed is another one"


def test_a_download_that_breaks_off_goes_on_where_it_was(store, hub):
    hub.breaks = 1000
    assert store.bring(of_the_hub(hub)).read_bytes() == hub.content
    assert [byte_range for _, byte_range, _ in hub.asked] == [None, f"bytes={len(hub.content) - 1000}-"]


def test_a_file_with_another_sum_is_not_kept(store, hub):
    wanted = of_the_hub(hub, sha256="0" * 64)
    with pytest.raises(UserError, match=f"has the sha256 {sum_of(hub.content)}, expected 0000"):
        store.bring(wanted)
    assert not store.place(wanted)[0].exists() and not list(store.place(wanted)[0].parent.iterdir())


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "private or gated"), (403, "is gated"), (404, "is not there"), (500, "the hub answered 500")],
)
def test_what_the_hub_refuses_is_reported(store, hub, status, message):
    hub.status = status
    with pytest.raises(UserError, match=message) as raised:
        store.bring(of_the_hub(hub))
    assert "hf_canary" not in str(raised.value)
    assert len(hub.asked) == (3 if status == 500 else 1)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"source": "/srv/absent.gguf"}, "there is no file /srv/absent.gguf"),
        ({"source": "tiny"}, "give the absolute path of a .gguf file, or owner/name"),
        ({"file": ""}, "and the file in it"),
        ({"revision": "main"}, "a commit of 40 hexadecimal digits"),
        ({"sha256": ""}, "needs its sha256"),
        ({"file": "big-00001-of-00003.gguf"}, "is one of several parts"),
    ],
)
def test_what_is_not_pinned_is_refused(store, hub, other, message):
    with pytest.raises(UserError, match=message):
        store.place(of_the_hub(hub, **other))


def test_a_file_by_path_is_compared_once(store, files, tmp_path):
    path = tmp_path / "mine.gguf"
    path.write_bytes((files / "gguf/tiny.gguf").read_bytes())
    assert store.bring(Wanted("the model", str(path), sha256=sum_of(path.read_bytes()))) == path
    (note,) = (tmp_path / ".compared").iterdir()
    assert json.loads(note.read_text())["path"] == str(path)
    with pytest.raises(UserError, match="is another file or was damaged"):
        store.bring(Wanted("the model", str(path), sha256="0" * 64))


def test_home_directories_are_hidden_from_the_service(store, tmp_path):
    assert "move it below /srv" in store.unreadable(Path("/root/model.gguf"))


def test_only_a_model_is_served(files):
    assert model_problem(read(files / "gguf/tiny.gguf")) == ""
    assert model_problem(read(files / "gguf/checklist.gguf")) == "is of the type adapter, not a model"


@pytest.mark.parametrize(("name", "message"), [("cut.gguf", "is truncated"), ("page.gguf", "is not a GGUF file")])
def test_an_incomplete_file_is_refused(files, name, message):
    with pytest.raises(UserError, match=f"^the model: {name} of .* {message}"):
        read(files / "misfits" / name)


def test_an_adapter_must_fit_its_model(files):
    base = read(files / "gguf/tiny.gguf")
    for name in model.ADAPTERS:
        assert adapter_problem(read(files / f"gguf/{name}.gguf"), base) == ""
    wide = adapter_problem(read(files / "misfits/shape.gguf"), base)
    assert "lora_a of the shape [8, 128], which does not fit the model's" in wide
    assert adapter_problem(base, base).startswith("is not a LoRA adapter")
    other = read(files / "gguf/checklist.gguf")
    other.metadata["general.architecture"] = "qwen2"
    assert adapter_problem(other, base) == "is for the architecture qwen2, the model has llama"


def test_other_files_at_the_same_path_are_noticed(files, tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"one")
    before = fingerprint([path])
    assert fingerprint([path]) == before != ""
    path.write_bytes(b"other")
    assert fingerprint([path]) != before
