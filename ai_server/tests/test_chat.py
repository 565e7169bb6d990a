"""Test relayed requests: unchanged, unbuffered, and ended when the client disconnects."""

import asyncio
import datetime
import gzip
import socket
import ssl
import threading
from contextlib import asynccontextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from app import upstream
from conftest import CALLER, VLLM_KEY
from standins import chunk, wait_for


def body(text: str, **more) -> dict:
    return {"messages": [{"role": "user", "content": text}], **more}


def test_answer_is_vllms_own(client, standins):
    response = client.post("/v1/chat/completions", json=body("hello", top_p=0.5))
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == "base on hello"
    request = standins.asked[0]
    streamed = {"stream": True, "stream_options": {"include_usage": True}}  # added by the server, see Relay
    assert request["body"] == body("hello", top_p=0.5, model="base", **streamed)
    assert request["headers"]["authorization"] == f"Bearer {VLLM_KEY}"


def test_a_named_model_is_kept(client):
    response = client.post("/v1/chat/completions", json=body("hello", model="checklist-adapter"))
    assert response.json()["model"] == "checklist-adapter"


def test_stream_is_not_buffered(client, standins):
    with client.stream("POST", "/v1/chat/completions", json=body("hold this", stream=True)) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-accel-buffering"] == "no"
        assert response.headers["cache-control"] == "no-cache"
        chunks = response.iter_raw()
        assert next(chunks).decode() == chunk({"role": "assistant", "content": "base"})
        assert not standins.go_on.is_set()  # vLLM is held: it has not sent the second chunk
        standins.go_on.set()
        rest = b"".join(chunks).decode()
    assert rest.startswith(chunk({"content": " on hold this"})) and rest.endswith("data: [DONE]\n\n")


class Slow:
    """An engine with a delay in seconds before each chunk; `left`: whether it was cancelled before the end."""

    def __init__(self, chunks: list[tuple[float, bytes]], headers: dict | None = None) -> None:
        self._chunks, self._headers, self.left = chunks, headers or {}, False

    @asynccontextmanager
    async def stream(self, *call):
        async def content():
            try:
                for seconds, content in self._chunks:
                    await asyncio.sleep(seconds)
                    yield content
            except asyncio.CancelledError:
                self.left = True
                raise

        yield httpx.Response(200, headers={"content-type": "text/event-stream", **self._headers}, content=content())


def relayed(engine: Slow, stay: float = 10) -> bytes:
    """Return the body that a Relay sends to a client that disconnects after `stay` seconds."""
    sent = []

    async def receive() -> dict:
        await asyncio.sleep(stay)
        return {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        sent.append(message)

    asyncio.run(upstream.Relay(engine, "POST", "/chat/completions")({"type": "http"}, receive, send))
    return b"".join(message.get("body", b"") for message in sent)


def test_a_silent_stream_sends_keep_alives(monkeypatch):
    monkeypatch.setattr(upstream, "KEEP_ALIVE_SEC", 0.1)
    slow = Slow([(0.25, b"data: 1\n\n"), (0, b"data: 2"), (0.15, b"\n\n"), (0.15, b"data: 3\r\n\r\n"), (0.15, b"")])
    wait = upstream.COMMENT
    assert relayed(slow) == wait * 2 + b"data: 1\n\ndata: 2\n\n" + wait + b"data: 3\r\n\r\n" + wait


def test_a_silent_stream_that_the_client_leaves_is_ended(monkeypatch):
    monkeypatch.setattr(upstream, "KEEP_ALIVE_SEC", 0.05)
    slow = Slow([(0, b"data: 1\n\n"), (5, b"data: 2\n\n")])
    assert relayed(slow, stay=0.3).startswith(b"data: 1\n\n" + upstream.COMMENT)
    assert slow.left


def test_a_stream_that_something_before_vllm_compressed():
    complete = gzip.compress(b"data: 1\n\n")
    assert relayed(Slow([(0, complete[:9]), (0, complete[9:])], {"content-encoding": "gzip"})) == b"data: 1\n\n"


def test_leaving_a_stream_ends_it_in_vllm(client, standins):
    with client.stream("POST", "/v1/chat/completions", json=body("hold this", stream=True)) as response:
        chunks = response.iter_raw()
        next(chunks)
        assert standins.left == []
    wait_for(lambda: standins.left == ["hold this"], 2)


@pytest.mark.parametrize(
    "path, sent", [("/v1/chat/completions", body("hold this")), ("/v1/checklist", {"text": "hold"})]
)
def test_leaving_before_the_answer_ends_it_in_vllm(client, standins, path, sent):
    with pytest.raises(httpx.ReadTimeout):
        client.post(path, json=sent, timeout=0.5)
    wait_for(lambda: len(standins.left) == 1, 2)


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
def test_leaving_while_sending_is_not_an_error(new_server, kind):
    server = new_server().start()
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /v1/checklist HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {CALLER}\r\nContent-Type: {kind}\r\n"
    with socket.create_connection((host, int(port))) as half:
        half.sendall(f"{head}Content-Length: 1000\r\n\r\n--x\r\n".encode())
    request = wait_for(lambda: [line for line in server.output().splitlines() if '"request"' in line])[0]
    assert '"status": 499' in request and "Traceback" not in server.output()


def test_a_broken_stream_ends_with_an_error(client, standins):
    with client.stream("POST", "/v1/chat/completions", json=body("hold, then break", stream=True)) as response:
        chunks = response.iter_raw()
        next(chunks)
        standins.go_on.set()
        rest = b"".join(chunks)
    assert rest.startswith(b"\n\ndata: ") and b"broke off" in rest and b"[DONE]" not in rest


def test_errors_of_vllm_keep_their_status(client):
    response = client.post("/v1/chat/completions", json=body("too long"))
    assert (response.status_code, response.json()["error"]["message"]) == (400, "the context is 8192 tokens")
    assert client.post("/v1/chat/completions", json=body("too long", stream=True)).status_code == 400
    assert client.post("/v1/chat/completions", json=body("internal")).status_code == 500


def test_a_refused_key_is_not_the_callers_fault(client):
    response = client.post("/v1/chat/completions", json=body("wrong key"))
    assert response.status_code == 502
    assert "VLLM_API_KEY" in response.json()["error"]["message"]


@pytest.mark.parametrize(
    "content",
    [b"", b"[]", b"{", b"\xff", b'{"top_p": NaN}', b'{"top_p": 1e999}', b'{"messages": "\\ud800"}'],
)
def test_a_body_that_is_not_an_object(client, standins, content):
    response = client.post("/v1/chat/completions", content=content)
    assert (response.status_code, response.json()["error"]["message"]) == (400, "The body is not a JSON object.")
    assert standins.asked == []


def test_a_proxy_for_the_outside_world_is_not_for_vllm(new_server):
    with new_server(HTTP_PROXY="http://127.0.0.1:9").start().client() as client:
        assert client.get("/v1/models").status_code == 200


@pytest.fixture
def tls_engine(tmp_path):
    """Yield the URL of an engine with a certificate of a private CA, and the file with the CA's certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    built = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=1))
    built = built.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
    made = built.add_extension(x509.BasicConstraints(True, None), True).sign(key, hashes.SHA256())
    pem, private = tmp_path / "ca.pem", tmp_path / "key.pem"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    private.write_bytes(key.private_bytes(serialization.Encoding.PEM, *plain))
    (tmp_path / "health").touch()
    engine = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=tmp_path))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, private)
    engine.socket = context.wrap_socket(engine.socket, server_side=True)
    threading.Thread(target=engine.serve_forever, args=(0.01,), daemon=True).start()
    yield f"https://localhost:{engine.server_port}/v1", str(pem)
    engine.shutdown()


def test_an_authority_of_ones_own_counts_for_vllm_too(new_server, tls_engine):
    url, pem = tls_engine
    trusting, other = new_server(VLLM_BASE_URL=url, SSL_CERT_FILE=pem), new_server(VLLM_BASE_URL=url)
    assert httpx.get(f"{trusting.start().url}/health").json()["vllm"] == "ok"
    assert httpx.get(f"{other.start().url}/health").json()["vllm"] == "away: ConnectError"


def test_models_are_vllms(client):
    assert client.get("/v1/models").json()["data"] == [{"id": "base"}]


def test_vllm_unreachable(new_server):
    server = new_server(VLLM_BASE_URL="http://127.0.0.1:9/v1").start()
    with server.client() as client:
        for path in ("/v1/chat/completions", "/v1/easy-contract"):
            response = client.post(path, json=body("hello") if "chat" in path else {"text": "hello"})
            assert response.status_code == 503
            assert "vLLM is not reachable" in response.json()["error"]["message"]
            assert int(response.headers["retry-after"]) > 0
        health, ready = client.get("/health"), client.get("/health/ready")
    assert (health.status_code, health.json()["status"], health.json()["vllm"]) == (
        200,
        "degraded",
        "away: ConnectError",
    )
    assert ready.status_code == 503
    assert "Traceback" not in server.output()


def test_vllm_silent(new_server, standins):
    server = new_server(HTTP_TIMEOUT_SEC="0.3").start()
    with server.client() as client:
        response = client.post("/v1/chat/completions", json=body("hold this"))
        assert (response.status_code, response.json()["error"]["code"]) == (504, 504)
        with client.stream("POST", "/v1/chat/completions", json=body("hold that", stream=True)) as stream:
            assert b"broke off" in stream.read()
    wait_for(lambda: standins.left == ["hold this", "hold that"], 2)
    assert "Traceback" not in server.output()


def test_health(client):
    health = client.get("/health")
    sound = {"status": "ok", "vllm": "ok", "store": "ok", "uploads": "ok", "callbacks": "on"}
    assert health.json() == sound | {"jobs": health.json()["jobs"]}
    assert client.get("/health/ready").status_code == 200
