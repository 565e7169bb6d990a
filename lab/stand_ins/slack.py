"""A stand-in of Slack's incoming webhooks: stores posted messages and shows them to people and tests.

One file without dependencies, because it runs alone on the services machine: `python3 slack.py PORT`.

    POST /services/CHANNEL    JSON with `text` or `attachments`, as Slack accepts it; else 400 `invalid_payload`
    GET /messages             the last 200, oldest first, as JSON: channel, time (UTC, ISO 8601), text
    GET /                     the same as a readable page
"""

from __future__ import annotations

import html
import json
import sys
from collections import deque
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

KEPT = 200
LARGEST = 1 << 20
PAGE = """<!doctype html><meta charset="utf-8"><meta http-equiv="refresh" content="5"><title>Stand-in of Slack</title>
<style>body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto}
pre{white-space:pre-wrap;margin:.2em 0 1.2em}</style>
<h1>Messages</h1>"""
ROW = "<b>{channel}</b> {time}<pre>{shown}</pre>"


def text_of(message: Any) -> str:
    """Return the readable text of a message. Raises ValueError for a message that Slack would refuse."""
    if not isinstance(message, dict):
        raise ValueError("a message must be an object")
    parts = [message.get("text", "")]
    for each in message.get("attachments", []):
        parts += [each.get("title", ""), each.get("text", "") or each.get("fallback", "")]
    text = "\n".join(part for part in parts if part)
    if not text:
        raise ValueError("no text")
    return text


class Webhooks(BaseHTTPRequestHandler):
    """The three routes."""

    protocol_version = "HTTP/1.1"
    kept: ClassVar[deque[dict[str, str]]] = deque(maxlen=KEPT)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if not self.path.startswith("/services/") or length > LARGEST:
            self.answer(404, b"no_service", "text/plain")
            return
        try:
            text = text_of(json.loads(self.rfile.read(length)))
        except (ValueError, TypeError, AttributeError):
            self.answer(400, b"invalid_payload", "text/plain")
            return
        now = datetime.now(timezone.utc).isoformat(timespec="milliseconds")
        self.kept.append({"channel": self.path.removeprefix("/services/"), "time": now, "text": text})
        self.answer(200, b"ok", "text/plain")

    def do_GET(self) -> None:
        if self.path == "/messages":
            self.answer(200, json.dumps(list(self.kept)).encode(), "application/json")
        elif self.path == "/":
            rows = [ROW.format(**each, shown=html.escape(each["text"])) for each in reversed(self.kept)]
            self.answer(200, (PAGE + "".join(rows or ["none yet"])).encode(), "text/html; charset=utf-8")
        else:
            self.answer(404, b"", "text/plain")

    def answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing: the messages are at /messages."""


if __name__ == "__main__":
    ThreadingHTTPServer(("", int(sys.argv[1])), Webhooks).serve_forever()
