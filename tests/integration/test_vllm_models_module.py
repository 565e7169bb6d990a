"""The module vllm_models against servers that answer like vLLM, and differently."""

import json
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from ansible.module_utils import basic
from ansible.module_utils.testing import patch_module_args

from plugins.modules import vllm_models

KEY = "key-that-nobody-may-see"
CARDS = [
    {"id": "base", "root": "/m/base", "parent": None, "max_model_len": 512},
    {"id": "adapter", "root": "/m/a", "parent": "base", "max_model_len": None},
]


class Server(BaseHTTPRequestHandler):
    """Selects its response by the first part of the path, from the base URL of the client."""

    calls = 0

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        Server.calls += 1
        mode = self.path.split("/")[1]
        if mode == "slow":
            time.sleep(1.5)
        if mode == "redirect":
            return self.answer(302, b"", {"Location": f"http://127.0.0.1:{self.server.server_port}/steal/v1/models"})
        if mode == "html":
            return self.answer(200, b"<html>hello</html>")
        if mode == "missing":
            return self.answer(404, b"{}")
        if mode == "broken":
            return self.answer(503, b"{}")
        if self.headers.get("Authorization") != f"Bearer {KEY}":
            return self.answer(401, b'{"error":"Unauthorized"}')
        cards = CARDS[:1] if mode == "late" and Server.calls < 3 else CARDS
        return self.answer(200, json.dumps({"object": "list", "data": cards}).encode())

    def answer(self, code, body, headers=None):
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(context=None):
    Server.calls = 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


class Left(Exception):
    """The module has exited with this result."""


def run(monkeypatch, **arguments):
    def leave(self, **result):
        raise Left(basic.remove_values(result, self.no_log_values))

    monkeypatch.setattr(basic.AnsibleModule, "exit_json", leave)
    monkeypatch.setattr(basic.AnsibleModule, "fail_json", lambda self, msg, **r: leave(self, failed=True, msg=msg, **r))
    with patch_module_args(arguments), pytest.raises(Left) as caught:
        vllm_models.main()
    result = caught.value.args[0]
    assert KEY not in json.dumps(result)
    return result


def test_the_right_list(monkeypatch):
    with serving() as port:
        result = run(monkeypatch, url=f"http://127.0.0.1:{port}", api_key=KEY, base="base", adapters=["adapter"])
    assert [m["id"] for m in result["models"]] == ["base", "adapter"]
    assert (result["missing"], result["unexpected"], result["changed"]) == ([], [], False)


@pytest.mark.parametrize(
    ("mode", "extra", "kind"),
    [
        ("", {"api_key": "wrong"}, "unauthorized"),
        ("", {"api_key": None}, "unauthorized"),
        ("missing", {}, "not_found"),
        ("html", {}, "not_json"),
        ("broken", {}, "status"),
        ("slow", {"timeout": 1}, "timeout"),
        ("redirect", {}, "status"),
        ("", {"adapters": ["other"]}, "different"),
    ],
)
def test_each_failure_by_its_kind(monkeypatch, mode, extra, kind):
    with serving() as port:
        arguments = {"url": f"http://127.0.0.1:{port}/{mode}".rstrip("/"), "api_key": KEY, **extra}
        result = run(monkeypatch, **{k: v for k, v in arguments.items() if v is not None})
        assert (result["failed"], result["kind"]) == (True, kind)
        assert Server.calls == 1


def test_nobody_listens(monkeypatch):
    with serving() as port:
        pass
    assert run(monkeypatch, url=f"http://127.0.0.1:{port}", api_key=KEY)["kind"] == "refused"


def test_tls_that_is_not_trusted_and_then_is(monkeypatch, tmp_path):
    pair = tmp_path / "pair.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=127.0.0.1",
         "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", pair, "-out", tmp_path / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    pair.write_text(pair.read_text() + (tmp_path / "cert.pem").read_text())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pair)
    with serving(context) as port:
        url = f"https://127.0.0.1:{port}"
        assert run(monkeypatch, url=url, api_key=KEY)["kind"] == "tls"
        trusted = run(monkeypatch, url=url, api_key=KEY, ca_path=str(tmp_path / "cert.pem"))
        assert len(trusted["models"]) == 2
        assert run(monkeypatch, url=f"http://127.0.0.1:{port}", api_key=KEY)["kind"] == "closed"


def test_waits_until_the_adapter_is_there(monkeypatch):
    with serving() as port:
        result = run(
            monkeypatch, url=f"http://127.0.0.1:{port}/late", api_key=KEY, adapters=["adapter"], wait_timeout=10,
            wait_interval=0,
        )  # fmt: skip
    assert result["attempts"] == 3


def test_the_last_answer_is_reported_after_the_timeout(monkeypatch):
    with serving() as port:
        result = run(
            monkeypatch, url=f"http://127.0.0.1:{port}", api_key=KEY, adapters=["adapter", "late"], wait_timeout=1,
            wait_interval=1,
        )  # fmt: skip
    assert "missing: late (served: base, adapter)" in result["msg"]
    assert result["attempts"] > 1


def test_a_refused_key_is_not_waited_for(monkeypatch):
    with serving() as port:
        result = run(monkeypatch, url=f"http://127.0.0.1:{port}", api_key="wrong", wait_timeout=30)
    assert result["attempts"] == 1


def test_an_empty_key_is_refused_before_any_request(monkeypatch):
    result = run(monkeypatch, url="http://127.0.0.1:1", api_key=" ")
    assert "api_key is empty" in result["msg"]
