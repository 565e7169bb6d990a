"""Test slow clients and clients with invalid HTTP, over raw sockets, and the server's shutdown."""

import json
import signal
import socket
import threading
import time

import pytest

from conftest import CALLER
from standins import wait_for
from test_answers import STREAM, piece

POST = f"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {CALLER}\r\n"


def sending(text: str, **more) -> bytes:
    body = json.dumps({"messages": [{"role": "user", "content": text}], **more})
    return f"{POST}Content-Length: {len(body)}\r\n\r\n{body}".encode()


def connect(server) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def answered(there: socket.socket) -> bytes:
    """Return what arrives until the server closes the connection; fail if it does not close it."""
    came = b""
    while block := there.recv(65536):
        came += block
    return came


def test_a_request_with_two_lengths_ends_the_connection(server, standins):
    chunked = b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n2\r\n{}\r\n0\r\n\r\n"
    with connect(server) as there:
        there.sendall(POST.encode() + chunked + b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        came = answered(there)
    assert came.count(b"HTTP/1.1 ") == 1 and b"connection: close" in came.lower()
    assert standins.asked == []


@pytest.fixture
def impatient(new_server):
    return new_server(HEADER_TIMEOUT_SEC="0.5", BODY_TIMEOUT_SEC="0.5", SEND_TIMEOUT_SEC="0.5").start()


@pytest.mark.parametrize(
    "sent",
    [
        "",
        "GET /v1/mod",
        POST,
        f"{POST}Content-Length: 100\r\n\r\n{{",
        f"{POST}Transfer-Encoding: chunked\r\n\r\n5",
        POST.replace(CALLER, "no-key") + "Content-Length: 100\r\n\r\n{",
    ],
)
def test_a_request_that_is_not_complete_in_time_is_dropped(impatient, sent):
    began = time.monotonic()
    with connect(impatient) as there:
        there.sendall(sent.encode())
        assert answered(there).startswith(b"HTTP/1.1 401" if "no-key" in sent else b"HTTP/1.1 408 ")
    assert time.monotonic() - began < 3
    assert "Traceback" not in impatient.output()


def test_drops_of_a_request_do_not_prolong_its_time(impatient):
    began = time.monotonic()
    with connect(impatient) as there:
        there.sendall(f"{POST}Content-Length: 100\r\n\r\n".encode())
        with pytest.raises(OSError):
            for _ in range(90):
                there.sendall(b"x")
                time.sleep(0.05)
    assert time.monotonic() - began < 3


def test_the_deadlines_are_for_requests_not_for_answers(impatient, standins):
    with impatient.client() as client:
        for _ in range(2):  # on one connection, with a pause
            sent = {"messages": [{"role": "user", "content": "hold"}], "stream": True}
            with client.stream("POST", "/v1/chat/completions", json=sent) as response:
                chunks = response.iter_raw()
                next(chunks)
                time.sleep(0.8)
                standins.go_on.set()
                assert b"".join(chunks).endswith(b"[DONE]\n\n")
            standins.go_on.clear()
            time.sleep(0.7)


def test_a_client_that_takes_none_of_its_answer_is_cut_off(impatient, standins):
    standins.says = (200, STREAM, [piece({"content": "x" * 400_000})] * 100)
    with connect(impatient) as there:
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        there.sendall(sending("hello", stream=True))
        wait_for(lambda: '"request"' in impatient.output(), 8)
    assert "Traceback" not in impatient.output()


def test_a_stop_ends_a_hundred_streams_with_an_error(new_server, standins):
    server = new_server().start()
    streams = [connect(server) for _ in range(100)]
    for there in streams:
        there.sendall(sending("hold", stream=True))
    assert all(b" 200 OK" in there.recv(65536) for there in streams)
    waiting = connect(server)
    waiting.sendall(sending("hold"))
    wait_for(lambda: len(standins.asked) == 101)
    stopping = threading.Thread(target=server.stop, args=(signal.SIGTERM,))
    stopping.start()
    for there in streams:
        came = answered(there)
        event = came.split(b"\n\ndata: ")[-1].split(b"\n")[0]
        assert json.loads(event)["error"]["code"] == 503
        assert came.endswith(b"0\r\n\r\n")
        there.close()
    complete = answered(waiting)
    assert b" 503 Service Unavailable" in complete and b'"code":503' in complete
    waiting.close()
    stopping.join()
    assert "Traceback" not in server.output()
    assert "ai-server has stopped" in server.output()
    wait_for(lambda: len(standins.left) == 101, 5)


def test_an_empty_line_keeps_no_connection(impatient):
    with connect(impatient) as there:
        there.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        assert there.recv(65536)
        there.sendall(b"\r\n")
        began = time.monotonic()
        answered(there)
    assert time.monotonic() - began < 5


@pytest.mark.parametrize("more", [b"", b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n", b"GET /he"])
def test_who_does_not_read_is_cut_off_whatever_it_sends(impatient, standins, more):
    standins.says = (200, STREAM, [b"data: " + b"x" * 60_000 + b"\n\n"] * 400)
    host, port = impatient.url.removeprefix("http://").split(":")
    with socket.socket() as there, impatient.client() as client:
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        there.connect((host, int(port)))
        there.sendall(sending("x", stream=True))
        time.sleep(0.3)
        there.sendall(more)

        def cut() -> bool:
            flying = [line for line in client.get("/metrics").text.splitlines() if "ai_server_in_flight{" in line]
            return bool(flying) and all(line.endswith(" 0.0") for line in flying)

        wait_for(cut, 8)
