"""The laboratory's web server over a real loopback connection."""

import http.client
import json
import threading

import pytest

from lab import mirror

TOKEN = "hub-token"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = "/hub/owner/gated/resolve/main/config.json"
ARCHIVE = bytes(range(256)) * 64


@pytest.fixture
def server(tmp_path):
    root = tmp_path / "root"
    for name in ("open", "gated"):
        folder = root / "hub" / "owner" / name / COMMIT
        folder.mkdir(parents=True)
        (folder.parent / ".main").write_text(COMMIT)
        (folder / "config.json").write_text('{"model_type": "llama"}')
    (root / "hub" / "owner" / "gated" / ".token").write_text(TOKEN)
    (root / "site.example").mkdir()
    (root / "site.example" / "archive.zip").write_bytes(ARCHIVE)
    (tmp_path / "secret").write_text("not for anyone")
    with mirror.serve(root, ("127.0.0.1", 0), tmp_path / "access.jsonl") as running:
        threading.Thread(target=running.serve_forever, args=[0.02], daemon=True).start()
        yield running
        running.shutdown()


def ask(server, path, method="GET", headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=5)
    connection.request(method, path, headers=headers or {})
    answer = connection.getresponse()
    return answer, answer.read()


def test_file_is_served_completely_and_in_ranges(server):
    answer, body = ask(server, "/site.example/archive.zip")
    assert (answer.status, body) == (200, ARCHIVE)
    answer, body = ask(server, "/site.example/archive.zip", headers={"Range": "bytes=10-19"})
    assert (answer.status, body) == (206, ARCHIVE[10:20])
    assert answer.headers["Content-Range"] == f"bytes 10-19/{len(ARCHIVE)}"


def test_nothing_outside_the_root_is_served(server):
    assert ask(server, "/../secret")[0].status == 404
    assert ask(server, "/%2e%2e/secret")[0].status == 404
    assert ask(server, "/hub/../../secret")[0].status in (401, 404)


def test_folder_lists_its_files(server):
    assert b'<a href="archive.zip">' in ask(server, "/site.example/")[1]


def test_fault_status(server):
    assert ask(server, "/faults/503/site.example/archive.zip")[0].status == 503


def test_fault_truncated_breaks_its_promise(server):
    with pytest.raises(http.client.IncompleteRead) as broken:
        ask(server, "/faults/truncated/site.example/archive.zip")
    assert len(broken.value.partial) == len(ARCHIVE) // 2


def test_fault_of_files_with_an_ending_alone(server):
    assert ask(server, "/faults/503,.zip/site.example/archive.zip")[0].status == 503
    assert ask(server, "/faults/503,.deb/site.example/archive.zip")[1] == ARCHIVE


def test_fault_corrupt_keeps_the_length(server):
    body = ask(server, "/faults/corrupt/site.example/archive.zip")[1]
    assert len(body) == len(ARCHIVE)
    assert body != ARCHIVE


def test_fault_stall_sends_no_end(server, monkeypatch):
    monkeypatch.setattr(mirror, "STALL_SECONDS", 2)
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=0.5)
    connection.request("GET", "/faults/stall/site.example/archive.zip")
    with pytest.raises(TimeoutError):
        connection.getresponse().read()


def test_requests_are_counted_until_forgotten(server):
    ask(server, "/site.example/archive.zip")
    ask(server, "/missing")
    result = json.loads(ask(server, "/requests")[1])
    assert [(entry["path"], entry["status"]) for entry in result["requests"]] == [
        ("/site.example/archive.zip", 200),
        ("/missing", 404),
    ]
    ask(server, "/requests", method="DELETE")
    assert json.loads(ask(server, "/requests")[1])["count"] == 0


def test_hub_returns_commit_and_files(server):
    result = json.loads(ask(server, "/hub/api/models/owner/open/revision/main")[1])
    assert result["sha"] == COMMIT
    assert result["siblings"] == [{"rfilename": "config.json"}]


def test_hub_file_carries_its_version(server):
    answer, body = ask(server, f"/hub/owner/open/resolve/{COMMIT}/config.json", method="HEAD")
    assert body == b""
    assert answer.headers["X-Repo-Commit"] == COMMIT
    result = json.loads(ask(server, f"/hub/api/models/owner/open/tree/{COMMIT}?recursive=True")[1])
    assert [(item["path"], item["oid"]) for item in result] == [("config.json", answer.headers["ETag"].strip('"'))]


@pytest.mark.parametrize(
    ("path", "headers", "status", "code"),
    [
        ("/hub/api/models/owner/none", {}, 401, "RepoNotFound"),
        ("/hub/api/models/owner/open/revision/ffff", {}, 404, "RevisionNotFound"),
        ("/hub/api/models/owner/open/revision/..", {}, 404, "RevisionNotFound"),
        (f"/hub/owner/open/resolve/{COMMIT}/none", {}, 404, "EntryNotFound"),
        (GATED, {}, 401, "GatedRepo"),
        (GATED, {"Authorization": "Bearer wrong"}, 403, "GatedRepo"),
        (GATED, {"Authorization": f"Bearer {TOKEN}"}, 200, None),
    ],
)
def test_hub_refusals(server, path, headers, status, code):
    answer, _ = ask(server, path, headers=headers)
    assert (answer.status, answer.headers.get("X-Error-Code")) == (status, code)
