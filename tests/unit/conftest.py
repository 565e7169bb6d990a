"""Test servers on loopback; and which test files a host's own Python can run."""

from __future__ import annotations

import ast
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

# What a controller has and a host does not: the rest of Ansible, its plugins, the laboratory, and libraries.
CONTROLLER = (
    *("ansible.errors", "ansible.parsing", "ansible.plugins", "ansible.template"),
    *("plugins.action", "plugins.filter", "lab", "dashboards", "docs.site"),
    "plugins.module_utils.cloud.gcp_updates",  # and its client, which needs google-auth
    *("cryptography", "dotenv", "numpy", "prometheus_client", "requests", "safetensors", "tokenizers"),
)
ON_A_HOST = sys.version_info < (3, 11)  # see tests/on_host_python.py; a controller has a newer one


def imports(source: str) -> set[str]:
    """Return the modules that a file imports, with their packages: a and a.b for `import a.b`.

    What is loaded by its path counts too: plugins.filter for "plugins/filter/dcgm.py".
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [each.name for each in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
        elif isinstance(node, ast.Constant) and str(node.value).startswith(("plugins/", "docs/")):
            names = [node.value.replace("/", ".")]
        for name in names:
            parts = name.split(".")
            found |= {".".join(parts[:length]) for length in range(1, len(parts) + 1)}
    return found


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """On a host's Python, leave out the files that import controller-only modules."""
    if ON_A_HOST and collection_path.name.startswith("test_") and collection_path.suffix == ".py":
        return bool(imports(collection_path.read_text()) & set(CONTROLLER)) or None
    return None


class Answers(BaseHTTPRequestHandler):
    """Answers from its class's ``pages``, by path: (status, text); records the requests in ``asked``."""

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.asked.append((self.path, self.headers.get("Authorization"), body.decode()))
        page = self.path if self.path in self.pages else self.path.partition("?")[0]
        status, text = self.pages.get(page, (404, "no such page"))
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
    """A server; its ``pages`` maps paths to (status, text); with status 0 it does not answer."""
    yield from serving(ThreadingHTTPServer, "127.0.0.1")


@pytest.fixture
def server6():
    """The same on IPv6's loopback; it has no ``url``."""
    yield from serving(type("Server6", (ThreadingHTTPServer,), {"address_family": socket.AF_INET6}), "::1")


def serving(kind: type, address: str):
    handler = type("Handler", (Answers,), {"pages": {}, "asked": []})
    running = kind((address, 0), handler)
    threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
    running.url = "" if ":" in address else f"http://{address}:{running.server_port}"
    running.pages, running.asked = handler.pages, handler.asked
    yield running
    running.shutdown()
    running.server_close()


@pytest.fixture
def not_http():
    """The address of a port that speaks another protocol, for one connection."""
    with socket.create_server(("127.0.0.1", 0)) as other:

        def answer():
            accepted, _ = other.accept()
            accepted.recv(1000)
            accepted.sendall(b"SSH-2.0-OpenSSH\r\n")
            accepted.close()

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{other.getsockname()[1]}"
