"""A receiver of logs by OTLP over HTTP: each received record is one line of a file, also if it arrives twice.

    receiver.py PORT FILE [KEY]

KEY is a file with the only accepted Authorization header; without the file, every request is accepted. Standard library
only.
"""

from __future__ import annotations

import gzip
import json
import struct
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a varint; return its value and the position after it."""
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a Protobuf message: number, and bytes or number."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = varint(data, at)
        elif kind in (1, 5):
            width = 8 if kind == 1 else 4
            value, at = data[at : at + width], at + width
        else:
            length, at = varint(data, at)
            value, at = data[at : at + length], at + length
        yield key >> 3, value


def any_value(data: bytes) -> Any:
    """Parse an AnyValue."""
    for number, value in fields(data):
        if number == 1:
            return value.decode(errors="replace")
        if number == 4:
            return struct.unpack("<d", value)[0]
        if number == 5:
            return [any_value(one) for _, one in fields(value)]
        if number == 6:
            return pairs(value, 1)
        return value if isinstance(value, int) else value.hex()
    return None


def pairs(data: bytes, wanted: int) -> dict[str, Any]:
    """Return the KeyValues of a message's field."""
    found = {}
    for number, value in fields(data):
        if number == wanted:
            pair = dict(fields(value))
            found[pair[1].decode()] = any_value(pair.get(2, b""))
    return found


def records(data: bytes) -> Iterator[dict[str, Any]]:
    """Yield the records of an ExportLogsServiceRequest."""
    for _, group in fields(data):
        parts = list(fields(group))
        resource = pairs(next((value for number, value in parts if number == 1), b""), 1)
        for scope in (value for number, value in parts if number == 2):
            for record in (value for number, value in fields(scope) if number == 2):
                one = dict(fields(record))
                yield {
                    "resource": resource,
                    "body": any_value(one.get(5, b"")),
                    "attributes": pairs(record, 6),
                    "severity": one.get(3, b"").decode(),
                    "number": one.get(2, 0),
                    "time": int.from_bytes(one.get(1, b""), "little") / 1e9,
                }


class Handler(BaseHTTPRequestHandler):
    """One connection; main() sets `file`, `key` and `lock` on the class."""

    protocol_version = "HTTP/1.1"
    file: Path
    key: Path | None
    lock = threading.Lock()

    def do_POST(self) -> None:
        """Accept or refuse an export."""
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        allowed = self.key.read_text().strip() if self.key and self.key.exists() else None
        if allowed is not None and self.headers.get("Authorization") != allowed:
            self.answer(401)
            return
        if self.path != "/otlp/v1/logs":
            self.answer(404)
            return
        if self.headers.get("Content-Encoding") == "gzip":
            data = gzip.decompress(data)
        stream = self.headers.get("VL-Stream-Fields")
        lines = [json.dumps({**record, "stream": stream}) + "\n" for record in records(data)]
        with self.lock, self.file.open("a") as handle:
            handle.writelines(lines)
        self.answer(200)

    def answer(self, status: int) -> None:
        """Send a status without a body."""
        self.send_response(status)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing: the file has the records."""


def main() -> None:
    """Serve until the process is stopped."""
    Handler.file = Path(sys.argv[2])
    Handler.key = Path(sys.argv[3]) if len(sys.argv) > 3 else None
    Handler.file.touch()
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()


if __name__ == "__main__":
    main()
