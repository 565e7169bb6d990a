"""Test that real answers of vLLM and of gateways are read as in the standard or reported correctly."""

import asyncio
import json

import pytest

from app import sse
from app.text import well_formed
from pdfs import pdf
from standins import wait_for

STREAM, JSON = "text/event-stream; charset=utf-8", "application/json"


def data(value: object, **how) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False, **how).encode() + b"\n\n"


def piece(delta: dict, index: int = 0, **more) -> bytes:
    return data({"choices": [{"index": index, "delta": delta, **more}]})


STOP, USAGE, DONE = (
    piece({}, finish_reason="stop"),
    data({"choices": [], "usage": {"total_tokens": 7}}),
    b"data: [DONE]\n\n",
)
END = STOP + USAGE + DONE
HALF = piece({"content": "\\uXXXX"}).replace(b"\\\\", b"\\")  # a lone surrogate, escaped
ONE = piece({"content": "eins, zwei: één 😀"})


@pytest.mark.parametrize(
    "chunks, result",
    [
        ([piece({"content": "one\u2028two\u2029three\x85four"}), END], "one\u2028two\u2029three\x85four"),
        ([bytes([byte]) for byte in ONE + END], "eins, zwei: één 😀"),
        ([(ONE + END).replace(b"\n", b"\r\n")], "eins, zwei: één 😀"),
        ([bytes([byte]) for byte in (ONE + END).replace(b"\n", b"\r\n")], "eins, zwei: één 😀"),
        ([(ONE + END).replace(b"\n", b"\r")], "eins, zwei: één 😀"),
        ([b"\xef\xbb", b"\xbf" + ONE, END], "eins, zwei: één 😀"),
        ([b": ping\n\n", ONE, b":\n\n: ping - 2026\n\n", END], "eins, zwei: één 😀"),
        ([(ONE + END).replace(b"data: ", b"data:")], "eins, zwei: één 😀"),
        ([b"id: 1\nretry: 5\nevent: message\n" + ONE, b"event: ping\ndata: {}\n\n", END], "eins, zwei: één 😀"),
        ([b'data: {"choices": [{"delta":\ndata: {"content": "a"}}]}\n\n', END], "a"),
        ([ONE, STOP], "eins, zwei: één 😀"),
        ([ONE, STOP.rstrip(b"\n") + b"\n"], "eins, zwei: één 😀"),
        ([ONE, STOP, DONE.rstrip(b"\n")], "eins, zwei: één 😀"),
        ([piece({"role": "assistant", "content": None}), piece({"content": "a"}), piece(None), END], "a"),
        ([piece({"tool_calls": [{"index": 0}]}), piece({}, finish_reason="tool_calls"), DONE], ""),
        ([piece({"content": None, "refusal": "I will not."}), END], "I will not."),
        ([piece({"content": "a"}), piece({"content": "X"}, 1), piece({"content": "b"}), piece({}, 1), END], "ab"),
        ([HALF.replace(b"XXXX", b"d83d"), piece({"content": "!"}), END], "\ufffd!"),
        ([HALF.replace(b"XXXX", b"d83d"), HALF.replace(b"XXXX", b"de00"), END], "😀"),
        ([piece({"content": "a"}).replace(b'"a"', b'"a\xff"'), END], "a\ufffd"),
    ],
)  # fmt: skip
def test_streams(client, standins, chunks, result):
    standins.says = (200, STREAM, chunks)
    answer = client.post("/v1/easy-contract", json={"text": "a"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["result"] == result
    assert answer.json()["finish_reason"] in ("stop", "tool_calls")


def test_a_complete_response(client, standins):
    choice = {"index": 0, "message": {"role": "assistant", "content": "a"}, "finish_reason": "stop"}
    standins.says = (200, JSON, [json.dumps({"choices": [choice], "usage": {"total_tokens": 7}}).encode()])
    answer = client.post("/v1/easy-contract", json={"text": "a"})
    assert (answer.json()["result"], answer.json()["usage"]) == ("a", {"total_tokens": 7})


ERROR = {"message": "the engine is out of memory", "type": "InternalServerError", "param": None, "code": 500}


@pytest.mark.parametrize(
    "answer, status, message",
    [
        ((200, STREAM, [ONE, data({"error": ERROR}), DONE]), 500, "the engine is out of memory"),
        ((200, STREAM, [data({"error": {**ERROR, "code": 400}}), DONE]), 400, "the engine is out of memory"),
        ((200, STREAM, [ONE, b"event: error\n" + data({"error": {**ERROR, "code": "504"}})]), 504, "is out of memory"),
        ((200, STREAM, [ONE, b"event: error\n" + data(ERROR)]), 500, "vLLM answered 500."),
        ((200, STREAM, [ONE, b"event: error\ndata: it broke\n\n"]), 502, "vLLM said: it broke"),
        ((200, STREAM, [ONE, b'error: {"message": "it broke", "object": "error", "code": 503}\n\n']), 503, "it broke"),
        ((200, STREAM, [ONE, data({"object": "error", "message": "too long", "code": 400})]), 400, "too long"),
        ((200, STREAM, [data({"error": "no room", "choices": []}), DONE]), 502, "no room"),
        ((200, STREAM, [data({"error": {**ERROR, "code": "context_length_exceeded"}})]), 502, "is out of memory"),
        ((200, STREAM, [data({"error": {**ERROR, "code": 99999}})]), 502, "is out of memory"),
        ((200, STREAM, [data({"error": {"message": "x", "type": "invalid_request_error", "code": "y"}})]), 400, "x"),
        ((200, JSON, [json.dumps({"error": ERROR}).encode()]), 500, "the engine is out of memory"),
        ((200, JSON, [b'{"detail": "gone"}']), 502, "gone"),
        ((200, JSON, [b"[1]"]), 502, "not a chat completion"),
        ((200, JSON, [b""]), 502, "not a chat completion"),
        ((200, "text/html", [b"<html>welcome</html>"]), 502, "not a chat completion"),
        ((500, "text/plain", [b"Internal Server Error"]), 500, "vLLM said: Internal Server Error"),
        ((503, "text/html", [b"<html><body>503</body></html>"]), 503, "vLLM answered 503."),
        ((502, JSON, [b""]), 502, "vLLM answered 502."),
        ((422, JSON, [b'{"detail": [{"msg": "x"}]}']), 422, "vLLM answered 422."),
        ((400, JSON, [b"null"]), 400, "vLLM answered 400."),
        ((429, JSON, [b'{"detail": "slowly"}']), 429, "slowly"),
        ((302, "text/html", [b"moved"]), 502, "vLLM answered 302"),
        ((200, STREAM, [ONE, None]), 502, "broke off: the connection was lost"),
        ((200, STREAM, [ONE[:-9], None]), 502, "broke off: the connection was lost"),
        ((200, STREAM, [ONE, ONE[:-9]]), 502, "broke off"),
        ((200, JSON, [b'{"choices": [', None]), 502, "broke off: the connection was lost"),
        ((500, JSON, [b'{"error": ', None]), 502, "broke off: the connection was lost"),
        ((200, STREAM, []), 502, "broke off"),
        ((200, STREAM, [ONE, DONE]), 502, "broke off"),
        ((200, STREAM, [ONE, piece({}, finish_reason="abort"), DONE]), 502, "broke off"),
        ((200, STREAM, [ONE, piece({}, finish_reason="error"), DONE]), 502, "broke off"),
        ((200, STREAM, [b"data: {\n\n", END]), 502, "not a chat completion"),
        ((200, STREAM, [b'data: {"choices": NaN}\n\n', END]), 502, "not a chat completion"),
        ((200, STREAM, [data({"choices": None}), END]), 502, "not a chat completion"),
        ((200, STREAM, [piece({"content": 5}), END]), 502, "not a chat completion"),
        ((200, STREAM, [b"data: " + b"[" * 5000 + b"]" * 5000 + b"\n\n", END]), 502, "not a chat completion"),
    ],
)
def test_not_an_answer(client, standins, answer, status, message):
    standins.says = answer
    refused = client.post("/v1/easy-contract", json={"text": "a"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (status, status)
    assert message in refused.json()["error"]["message"]


def test_silence_in_the_middle_is_not_silence_before(new_server, standins):
    server = new_server(HTTP_TIMEOUT_SEC="0.3").start()
    with server.client() as client:
        answer = client.post("/v1/easy-contract", json={"text": "hold"})
    assert (answer.status_code, "broke off" in answer.json()["error"]["message"]) == (504, True)


def test_an_answer_may_take_longer_than_the_silence_that_is_allowed(new_server, standins):
    standins.says = (200, STREAM, [ONE] * 200 + [END])  # takes at least one second
    server = new_server(HTTP_TIMEOUT_SEC="0.5").start()
    with server.client() as client:
        answer = client.post("/v1/easy-contract", json={"text": "a"})
    assert (answer.status_code, answer.elapsed.total_seconds() > 0.8) == (200, True)
    assert len(answer.json()["result"]) == 200 * len("eins, zwei: één 😀")


GENERATED = "/v1/chat/completions"


@pytest.mark.parametrize(
    "answer",
    [
        (200, STREAM, [b"data: {\n\n", END]),
        (200, STREAM, [piece({"content": 5}), END]),
        (200, JSON, [b"[1]"]),
        (200, STREAM, [data({"error": {**ERROR, "code": 400}})]),
        (302, "text/html", [b"moved"]),
    ],
)
def test_what_repeating_will_not_cure_is_not_repeated(client, server, standins, answer, request):
    standins.says = answer
    ident = client.post("/v1/easy-contract", json={"text": request.node.name, "callback": True}).json()["job_id"]
    assert server.job(ident, "delivered")["outcome"]["status"] == "failed"
    assert [request["path"] for request in standins.asked].count(GENERATED) == 1


def test_an_unreadable_page_of_a_scan_is_paid_for_once(client, server, standins):
    standins.ocr_answer = {"pages": []}
    ident = client.post("/v1/checklist", files={"file": pdf(None)}, data={"callback": "true"}).json()["job_id"]
    assert "read 0 pages" in server.job(ident, "delivered")["outcome"]["error"]["message"]
    assert [request["path"] for request in standins.asked].count("/ocr") == 1


def test_what_repeating_may_cure_is_repeated_with_growing_pauses(new_server, standins):
    standins.says = (200, STREAM, [ONE, data({"error": ERROR}), DONE])
    server = new_server(JOB_BACKOFF_SEC="0.2", JOB_ATTEMPTS="4").start()
    with server.client() as client:
        client.post("/v1/easy-contract", json={"text": "a", "job_id": "j"})
        outcome = server.job("j", "delivered")["outcome"]
    assert outcome["error"]["message"] == "the engine is out of memory"
    assert [request["path"] for request in standins.asked].count(GENERATED) == 4


def test_a_half_character_reaches_the_backend(client, server, standins):
    standins.says = (200, STREAM, [ONE, HALF.replace(b"XXXX", b"d83d"), END])
    ident = client.post("/v1/easy-contract", json={"text": "half", "callback": True}).json()["job_id"]
    server.job(ident, "delivered")
    (callback,) = wait_for(standins.callbacks)
    assert callback["body"]["result"] == "eins, zwei: één 😀\ufffd"


def parsed(*chunks: bytes) -> list[tuple[str, str]]:
    async def arriving():
        for chunk in chunks:
            yield chunk

    async def collect() -> list[tuple[str, str]]:
        return [event async for event in sse.events(arriving())]

    return asyncio.run(collect())


@pytest.mark.parametrize(
    "stream, found",
    [
        (b"data: a\n\ndata:b\r\n\r\ndata:  c\r\rdata\n\n", ["a", "b", " c", ""]),
        (b"data: a\ndata: b\n\n", ["a\nb"]),
        (b"data: a\r\ndata: b\r\r\n", ["a\nb"]),
        (b":x\nfoo: bar\ndata: a\nid: 3\n\n", ["a"]),
        (b"event: x\n\ndata: a\n\n", ["a"]),
        (b"data: a\n\ndata: b\n", ["a", "b"]),
        (b"data: a\n\ndata: b\r", ["a", "b"]),
        (b"data: a\n\ndata: b", ["a"]),
        (b"\xef\xbb\xbfdata: a\n\n\xef\xbb\xbfdata: b\n\n", ["a"]),
        ("data: \u00e9\u2028\u0085\n\n".encode(), ["\u00e9\u2028\u0085"]),
        (b"", []),
        (b"\n\n\n", []),
    ],
)
def test_events_whatever_the_chunks(stream, found):
    complete = [("message", text) for text in found]
    assert parsed(stream) == complete
    assert parsed(*(bytes([byte]) for byte in stream)) == complete


def test_an_event_has_its_own_type_alone():
    assert parsed(b"event: error\ndata: a\n\ndata: b\n\n") == [("error", "a"), ("message", "b")]


@pytest.mark.parametrize(
    "text, fit",
    [("a", "a"), ("\ud83d\ude00", "😀"), ("x\ud83dy", "x\ufffdy"), ("\ufeffx", "\ufeffx"), ("\ude00", "\ufffd")],
)
def test_well_formed(text, fit):
    assert well_formed(text) == fit
