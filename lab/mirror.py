"""The laboratory's web server: releases, wheels, a stand-in of the model hub, faults on request, a request log.

One file without dependencies, because it runs alone on the services machine: `python3 mirror.py ROOT PORT LOG`.

    /github.com/…, /wheels/      files below ROOT, by the origin's host and path
    /hub/…                       the model hub's API, see Hub
    /faults/STATUS/…             that HTTP status, e.g. /faults/503/github.com/…
    /faults/FAULT,.deb/…         a fault only for files with that ending, so that apt's index is intact
    /faults/truncated/…          the full Content-Length, but half of the body
    /faults/corrupt/…            the right length, one byte wrong
    /faults/slow/…               SLOW_RATE bytes a second
    /faults/stall/…              headers and the first bytes, then nothing
    /requests                    the requests so far, as JSON; DELETE clears them
"""

from __future__ import annotations

import datetime
import hashlib
import html
import json
import sys
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

SLOW_RATE = 262144
STALL_SECONDS = 600
CHUNK = 262144


@dataclass(frozen=True)
class Answer:
    """A response to send: status, headers, and the bytes of a file or a text."""

    status: int
    headers: dict[str, str]
    path: Path | None = None
    text: bytes = b""

    @property
    def size(self) -> int:
        """Return the length of the body in bytes."""
        return self.path.stat().st_size if self.path else len(self.text)


def error(status: int, **headers: str) -> Answer:
    """Return an error response."""
    phrase = f"{status} {HTTPStatus(status).phrase}\n".encode()
    return Answer(status, {"Content-Type": "text/plain", **headers}, text=phrase)


def split_fault(path: str) -> tuple[str, str]:
    """Split `/faults/KIND/rest` into (KIND, `/rest`); the kind is empty if the request must not fail."""
    parts = path.split("/", 3)
    if len(parts) == 4 and parts[1] == "faults":
        kind, _, ending = parts[2].partition(",")
        return kind if path.endswith(ending) else "", f"/{parts[3]}"
    return "", path


def byte_range(header: str, size: int) -> tuple[int, int] | None:
    """Parse `bytes=FIRST-LAST` into (first, last), both inclusive; None if it is absent or out of range."""
    if not header.startswith("bytes=") or "," in header:
        return None
    first, _, last = header.removeprefix("bytes=").partition("-")
    if not first.isdigit():
        return None
    span = int(first), min(int(last), size - 1) if last.isdigit() else size - 1
    return span if span[0] <= span[1] else None


def sha256(path: Path) -> str:
    """Return the digest by which the hub identifies large files."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def git_blob(path: Path) -> str:
    """Return the digest by which Git, and so the hub, identifies all other files."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Files:
    """Files below a folder; the response for a folder has links to its content, as package installers expect."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def answer(self, path: str) -> Answer:
        """Return the response for a path; nothing outside the root is ever read."""
        found = (self.root / path.lstrip("/")).resolve()
        if not found.is_relative_to(self.root) or not found.exists():
            return error(404)
        if found.is_file():
            return Answer(200, {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}, path=found)
        names = sorted(item.name + "/" * item.is_dir() for item in found.iterdir())
        links = "".join(f'<a href="{html.escape(name)}">{html.escape(name)}</a><br>\n' for name in names)
        return Answer(200, {"Content-Type": "text/html; charset=utf-8"}, text=links.encode())


class Hub:
    """Enough of the model hub's API for the hub's own client to download a snapshot.

    Repositories are at ROOT/<owner>/<name>/<revision>/; a revision is a commit's 40 hexadecimal digits. Beside them,
    the file `.main` names the revision of `main`, and a file `.token` makes the repository gated.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()

    def answer(self, path: str, authorization: str) -> Answer:
        """Answer `/api/models/OWNER/NAME[/revision/REV][/tree/REV]` and `/OWNER/NAME/resolve/REV/FILE`."""
        parts = path.strip("/").split("/")
        about = parts[:2] == ["api", "models"]
        parts = parts[2:] if about else parts
        folder = (self.root / "/".join(parts[:2])).resolve()
        if len(parts) < 2 or not folder.is_relative_to(self.root) or not folder.is_dir():
            return self.refused(401, "RepoNotFound")
        kind, rest = parts[2:4] if len(parts) > 3 else ("revision", "main")
        commit = (folder / ".main").read_text().strip() if rest == "main" else rest
        if commit.startswith(".") or not (folder / commit).is_dir():
            return self.refused(404, "RevisionNotFound")
        if about:
            return self.tree(folder / commit) if kind == "tree" else self.about("/".join(parts[:2]), folder / commit)
        return self.gate(folder, authorization) or self.file(folder / commit, "/".join(parts[4:]))

    def gate(self, folder: Path, authorization: str) -> Answer | None:
        """Return the refusal for files of a gated repository: 401 without a token, 403 for a token without access."""
        token = folder / ".token"
        if not token.exists() or authorization == f"Bearer {token.read_text().strip()}":
            return None
        return self.refused(403 if authorization else 401, "GatedRepo")

    def about(self, name: str, folder: Path) -> Answer:
        """Return the hub's description of a revision: its commit and its files."""
        gated = "manual" if (folder.parent / ".token").exists() else False
        info = {"id": name, "modelId": name, "sha": folder.name, "private": False, "gated": gated, "tags": []}
        info["siblings"] = [{"rfilename": path.name} for path in sorted(folder.iterdir())]
        return Answer(200, {"Content-Type": "application/json"}, text=json.dumps(info).encode())

    def tree(self, folder: Path) -> Answer:
        """Return the files of a revision with sizes in bytes and digests; large files also have a SHA-256."""
        entries = []
        for path in sorted(folder.iterdir()):
            size = path.stat().st_size
            entry = {"type": "file", "path": path.name, "size": size, "oid": git_blob(path)}
            if path.suffix == ".safetensors":
                entry["lfs"] = {"oid": sha256(path), "size": size, "pointerSize": 134}
            entries.append(entry)
        return Answer(200, {"Content-Type": "application/json"}, text=json.dumps(entries).encode())

    def file(self, folder: Path, name: str) -> Answer:
        """Return a file with the headers by which the client identifies its version."""
        found = (folder / name).resolve()
        if not found.is_relative_to(folder) or not found.is_file():
            return self.refused(404, "EntryNotFound")
        etag = sha256(found) if found.suffix == ".safetensors" else git_blob(found)
        headers = {"X-Repo-Commit": folder.name, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        return Answer(200, {"Content-Type": "application/octet-stream", **headers}, path=found)

    @staticmethod
    def refused(status: int, code: str) -> Answer:
        """Return a refusal in the form that the hub's client expects."""
        return error(status, **{"X-Error-Code": code, "X-Error-Message": f"{code} (laboratory)"})


class Record:
    """The requests so far, in memory and as JSON lines in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries: list[dict[str, object]] = []
        self.lock = threading.Lock()

    def add(self, **entry: object) -> None:
        """Record one request."""
        with self.lock, self.path.open("a") as handle:
            self.entries.append(entry)
            handle.write(json.dumps(entry) + "\n")

    def answer(self, method: str) -> Answer:
        """Return or clear the recorded requests."""
        with self.lock:
            if method == "DELETE":
                self.entries.clear()
            content = json.dumps({"count": len(self.entries), "requests": self.entries})
        return Answer(200, {"Content-Type": "application/json"}, text=content.encode())


class Handler(BaseHTTPRequestHandler):
    """One connection; serve() sets `files`, `hub` and `record` on the class."""

    protocol_version = "HTTP/1.1"
    files: Files
    hub: Hub
    record: Record

    def do_GET(self) -> None:
        """Answer with headers and body."""
        self.respond()

    def do_HEAD(self) -> None:
        """Answer with headers only."""
        self.respond()

    def do_DELETE(self) -> None:
        """Clear the recorded requests."""
        self.respond()

    def respond(self) -> None:
        """Find the response, send it with the requested fault, and record both."""
        path = unquote(urlsplit(self.path).path)
        if path == "/requests":
            self.send(self.record.answer(self.command), "")
            return
        fault, path = split_fault(path)
        if fault.isdigit():
            answer = error(int(fault))
        elif self.command == "DELETE":
            answer = error(405)
        elif path.startswith("/hub/"):
            answer = self.hub.answer(path.removeprefix("/hub"), self.headers.get("Authorization", ""))
        else:
            answer = self.files.answer(path)
        self.record.add(
            time=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="milliseconds"),
            client=self.client_address[0],
            method=self.command,
            path=self.path,
            status=answer.status,
        )
        self.send(answer, fault)

    def send(self, answer: Answer, fault: str) -> None:
        """Send a response, damaged if a fault is given."""
        first, last, status = 0, answer.size - 1, answer.status
        headers = dict(answer.headers)
        span = byte_range(self.headers.get("Range", ""), answer.size) if answer.path else None
        if span:
            (first, last), status = span, 206
            headers["Content-Range"] = f"bytes {first}-{last}/{answer.size}"
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(last - first + 1)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            body = answer.text if answer.path is None else answer.path.read_bytes()
            self.send_body(body[first : last + 1], fault)

    def send_body(self, body: bytes, fault: str) -> None:
        """Send the body, damaged by the named fault."""
        if fault in ("truncated", "stall"):
            self.wfile.write(body[: len(body) // 2 if fault == "truncated" else 16])
            self.wfile.flush()
            self.close_connection = True
            time.sleep(STALL_SECONDS if fault == "stall" else 0)
            return
        if fault == "corrupt" and body:
            middle = len(body) // 2
            body = body[:middle] + bytes([body[middle] ^ 255]) + body[middle + 1 :]
        size = SLOW_RATE if fault == "slow" else CHUNK
        for start in range(0, len(body), size):
            if fault == "slow" and start:
                time.sleep(1)
            self.wfile.write(body[start : start + size])

    def log_message(self, *_: object) -> None:
        """Log nothing: requests are recorded separately."""


def serve(root: Path, address: tuple[str, int], log: Path) -> ThreadingHTTPServer:
    """Return a server of ROOT that is bound to an address; the caller runs it."""
    parts = {"files": Files(root), "hub": Hub(root / "hub"), "record": Record(log)}
    return ThreadingHTTPServer(address, type("BoundHandler", (Handler,), parts))


if __name__ == "__main__":
    serve(Path(sys.argv[1]), ("", int(sys.argv[2])), Path(sys.argv[3])).serve_forever()
