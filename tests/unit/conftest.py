"""A server on loopback that says what it is told to."""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Answers(BaseHTTPRequestHandler):
    """Answers from its class's ``pages``, by path: (status, text); notes in ``asked`` what it was asked."""

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append((self.path, self.headers.get("Authorization"), body.decode()))
        status, text = self.pages.get(self.path, (404, "no such page"))
        if status == 0:
            time.sleep(2)
            return
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    """A server; its ``pages`` maps paths to (status, text), status 0 keeps silent."""
    handler = type("Handler", (Answers,), {"pages": {}, "asked": []})
    running = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    running.url = f"http://127.0.0.1:{running.server_port}"
    running.pages, running.asked = handler.pages, handler.asked
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def not_http():
    """The address of a port that speaks another protocol, once."""
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer():
            accepted, _ = other.accept()
            accepted.recv(1000)
            accepted.sendall(b"SSH-2.0-OpenSSH\r\n")
            accepted.close()

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{other.getsockname()[1]}"
