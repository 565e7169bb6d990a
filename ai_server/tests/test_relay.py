"""Test relayed endpoints with OpenAI's official SDK: answers without `stream`, metrics, request IDs."""

import json
import re

import httpx
import openai
import pytest

from app.upstream import UsageFilter
from app.whole import Whole
from conftest import CALLER
from standins import wait_for
from test_answers import DONE, END, ERROR, JSON, STOP, STREAM, USAGE, data, piece
from test_chat import body

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "hello"}]


def sdk(server, **more) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=CALLER, **more)


def test_the_sdk_gets_complete_responses_and_streams(server):
    with sdk(server, max_retries=0) as client:
        complete = client.chat.completions.create(model="base", messages=HELLO)
        assert (complete.object, complete.model, complete.usage.total_tokens) == ("chat.completion", "base", 7)
        assert (complete.choices[0].message.content, complete.choices[0].finish_reason) == ("base on hello", "stop")
        chunks = list(client.chat.completions.create(model="base", messages=HELLO, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "base on hello"
        assert [model.id for model in client.models.list()] == ["base"]
        assert client.models.retrieve("base").id == "base"
        with pytest.raises(openai.NotFoundError, match="does not exist"):
            client.models.retrieve("LGAI-EXAONE/other")


def test_a_slow_answer_is_generated_once(new_server, standins):
    standins.says = (200, STREAM, [piece({"content": "word "})] * 200 + [END])  # takes at least one second
    with sdk(new_server(HTTP_TIMEOUT_SEC="0.5").start()) as client:
        answer = client.chat.completions.create(model="base", messages=HELLO)
    assert answer.choices[0].message.content == "word " * 200
    assert len(standins.asked) == 1


def test_a_silent_engine_gets_one_request(new_server, standins):
    with sdk(new_server(HTTP_TIMEOUT_SEC="0.3").start()) as client, pytest.raises(openai.InternalServerError) as caught:
        client.chat.completions.create(model="base", messages=[{"role": "user", "content": "hold"}])
    assert (caught.value.status_code, len(standins.asked)) == (504, 1)
    wait_for(lambda: standins.left == ["hold"], 2)


def call(index: int, name: str | None, arguments: str) -> dict:
    first = {"id": f"call-{index}", "type": "function"} if name else {}
    return {"tool_calls": [{"index": index, **first, "function": {"name": name, "arguments": arguments}}]}


def token(text: str) -> dict:
    return {"content": [{"token": text, "logprob": -0.5, "bytes": None, "top_logprobs": []}]}


OPENING = {"index": 0, "delta": {"role": "assistant", "content": ""}}
STREAMED = [
    data({"id": "c-1", "created": 5, "model": "base", "choices": [OPENING]}),
    piece({"reasoning": "I ", "reasoning_content": "I "}, logprobs=None),
    piece({"reasoning": "think", "reasoning_content": "think"}),
    piece({"content": "b", "refusal": None}, 1, logprobs=token("b"), token_ids=[1]),
    piece(call(1, "second", "")) + piece(call(0, "first", '{"a"')),
    piece(call(1, None, "{}")) + piece(call(0, None, ": 1}")),
    piece({"content": "c"}, 1, logprobs=token("c"), token_ids=[2], finish_reason="stop", stop_reason=2),
    piece({}, finish_reason="tool_calls"),
    data({"choices": [], "usage": {"total_tokens": 9}, "system_fingerprint": "f", "unknown": {"kept": True}}),
    DONE,
]


def test_the_complete_response_equals_the_stream(client, standins):
    standins.says = (200, STREAM, STREAMED)
    answer = client.post(CHAT, json=body("hello", n=2)).json()
    assert {name: answer[name] for name in answer if name != "choices"} == {
        "id": "c-1",
        "object": "chat.completion",
        "created": 5,
        "model": "base",
        "usage": {"total_tokens": 9},
        "system_fingerprint": "f",
        "unknown": {"kept": True},
    }
    calls, text = answer["choices"]
    assert calls["message"].pop("tool_calls") == [
        {"id": "call-0", "type": "function", "function": {"name": "first", "arguments": '{"a": 1}'}},
        {"id": "call-1", "type": "function", "function": {"name": "second", "arguments": "{}"}},
    ]
    message = {"role": "assistant", "content": None, "reasoning": "I think", "reasoning_content": "I think"}
    assert calls == {"index": 0, "message": message, "logprobs": None, "finish_reason": "tool_calls"}
    assert text == {
        "index": 1,
        "message": {"role": "assistant", "content": "bc", "refusal": None},
        "logprobs": {"content": token("b")["content"] + token("c")["content"]},
        "finish_reason": "stop",
        "stop_reason": 2,
        "token_ids": [1, 2],
    }


def test_a_complete_text_completion(client, standins):
    one = {"tokens": ["a"], "token_logprobs": [-1.0], "text_offset": [0], "top_logprobs": [{"a": -1.0}]}
    first = {"index": 0, "text": "a", "logprobs": one}
    chunks = [data({"object": "text_completion", "choices": [choice]}) for choice in (first, first | {"text": "b"})]
    last = data({"object": "text_completion", "choices": [{"index": 0, "text": "", "finish_reason": "length"}]})
    standins.says = (200, STREAM, [*chunks, last, USAGE, DONE])
    answer = client.post("/v1/completions", json={"prompt": "x", "model": None}).json()
    assert (answer["object"], answer["model"], answer["usage"]) == ("text_completion", "base", {"total_tokens": 7})
    both = {name: value * 2 for name, value in one.items()}
    assert answer["choices"] == [{"index": 0, "text": "ab", "logprobs": both, "finish_reason": "length"}]


def test_pieces_of_any_object_are_joined_or_replaced():
    complete = Whole("/chat/completions", "base")
    for number in (1, 2):
        complete.add({"choices": [{"delta": {"content": [number], "audio": {"data": "x", "expires": number}}}]})
    message = complete.answer()["choices"][0]["message"]
    assert message == {"role": "assistant", "content": [1, 2], "audio": {"data": "xx", "expires": 2}}


@pytest.mark.parametrize(
    "chunks, status, message",
    [
        ([piece({"content": "a"}), data({"error": {**ERROR, "code": 400}}), DONE], 400, "out of memory"),
        ([piece({"content": "a"}), data({"error": ERROR}), DONE], 500, "out of memory"),
        ([piece({"content": "a"}), None], 502, "broke off"),
        ([piece({"content": "a"}), DONE], 502, "broke off"),
        ([b"data: {\n\n"], 502, "not a chat completion"),
        ([b"data: [1]\n\n"], 502, "not a chat completion"),
    ],
)
def test_an_error_within_a_collected_response_is_an_http_error(client, standins, chunks, status, message):
    standins.says = (200, STREAM, chunks)
    answer = client.post(CHAT, json=body("hello"))
    assert (answer.status_code, message in answer.json()["error"]["message"]) == (status, True)


@pytest.mark.parametrize("field", ["prompt_logprobs", "use_beam_search", "kv_transfer_params", "echo"])
def test_what_vllm_cannot_stream_is_requested_without_a_stream(new_server, standins, field):
    server = new_server(EXTRA_FIELDS="prompt_logprobs,use_beam_search,kv_transfer_params").start()
    with server.client() as client:
        answer = client.post(CHAT, json=body("hello", **{field: 1}))
    assert answer.json()["choices"][0]["message"]["content"] == "base on hello"
    assert [request["body"].get("stream") for request in standins.asked] == [None]


def test_a_refused_stream_is_requested_without_a_stream(client, standins):
    standins.says = (400, JSON, [b'{"error": {"message": "x is not available when `stream=True`.", "code": 400}}'])
    assert client.post(CHAT, json=body("hello")).status_code == 400
    assert [request["body"].get("stream") for request in standins.asked] == [True, None]


def test_tokens_are_counted_and_the_caller_gets_what_it_requested(client, server, standins):
    usage = data({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}})
    stream = [piece({"content": "a"}), STOP + usage[:20], usage[20:] + DONE]
    before = counted(server)
    standins.says = (200, STREAM, stream)
    assert client.post(CHAT, json=body("hello", stream=True)).content == piece({"content": "a"}) + STOP + DONE
    parameters = {"stream": True, "stream_options": {"include_usage": True}}
    assert client.post(CHAT, json=body("hello", **parameters)).content == b"".join(stream)
    client.post(CHAT, json=body("hello"))
    assert [request["body"]["stream_options"] for request in standins.asked] == [{"include_usage": True}] * 3
    assert [after - then for after, then in zip(counted(server), before, strict=True)] == [9, 12]


def counted(server) -> list[float]:
    page = httpx.get(f"{server.url}/metrics").text
    found = re.findall(r'ai_server_tokens_total{caller="\w+",engine="vllm",kind="(\w+)",model="base"} (\S+)', page)
    return [sum(float(number) for kind, number in found if kind == wanted) for wanted in ("prompt", "completion")]


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_an_event_that_is_taken_out_may_come_in_pieces(size, ours):
    stream = piece({"content": 'say "usage": {}'}) + b": waiting\n\n" + STOP + USAGE + DONE
    count = UsageFilter(ours)
    passed = [count.passed(stream[start : start + size]) for start in range(0, len(stream), size)]
    assert b"".join(passed) + count.rest() == (stream.replace(USAGE, b"") if ours else stream)
    assert count.usage == {"total_tokens": 7}


def test_metrics_of_a_language_model(client, server, standins):
    client.post(CHAT, json=body("hello"))
    client.post(CHAT, json=body("too long"))
    for number in range(3):
        client.post(CHAT, json=body("hello", model=f"canary-{number}"))
    assert client.post("/v1/checklist", json={"text": "hello"}).status_code == 200
    page = httpx.get(f"{server.url}/metrics").text.replace('engine="vllm",', "")
    assert 'engine="' not in page
    for line in (
        r'ai_server_first_token_seconds_bucket{caller="\w{8}",le="160.0",model="checklist-adapter"} [1-9]',
        r'ai_server_tokens_total{caller="\w{8}",kind="completion",model="checklist-adapter"} [1-9]',
        r'ai_server_in_flight{caller="\w{8}",model="checklist-adapter"} 0.0',
        r'ai_server_first_token_seconds_bucket{caller="\w{8}",le="160.0",model="base"} [1-9]',
        r'ai_server_generation_seconds_bucket{caller="\w{8}",le="600.0",model="base"} [1-9]',
        r'ai_server_in_flight{caller="\w{8}",model="base"} 0.0',
        r'ai_server_upstream_errors_total{caller="\w{8}",model="base",status="400"} [1-9]',
        r'ai_server_in_flight{caller="\w{8}",model="other"} 0.0',
        r'http_request_duration_seconds_bucket{handler="/v1/chat/completions",le="1800.0",method="POST"} [1-9]',
    ):
        assert re.search(line, page), line
    assert "canary" not in page


@pytest.mark.parametrize("sent", [{}, {"model": None}])
def test_the_default_model(client, standins, sent):
    client.post(CHAT, json=body("hello", **sent))
    assert standins.asked[0]["body"]["model"] == "base"


def test_the_id_and_the_trace_are_passed_on(client, standins):
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"X-Request-ID": "case-1", "traceparent": trace, "tracestate": "a=1", "cookie": "x=1", "x-other": "1"}
    for _ in range(2):
        assert client.post(CHAT, json=body("hello"), headers=headers).headers["x-request-id"] == "case-1"
    client.post(CHAT, json=body("hello"), headers={"traceparent": "x" * 600})
    first, second, third = (request["headers"] for request in standins.asked)
    assert (first["traceparent"], first["tracestate"]) == (trace, "a=1")
    assert first["x-request-id"].startswith("case-1-") and first["x-request-id"] != second["x-request-id"]
    assert not {"cookie", "x-other"} & first.keys() and "traceparent" not in third


def test_embeddings_and_responses_are_the_engines_own(client, standins):
    standins.says = (200, JSON, [b'{"object": "list", "usage": {"prompt_tokens": 2, "total_tokens": 2}}'])
    for path in ("/v1/embeddings", "/v1/responses"):
        assert client.post(path, json={"input": "x"}).content == standins.says[2][0]
    assert [(request["path"], request["body"]) for request in standins.asked] == [
        (path, {"input": "x", "model": "base"}) for path in ("/v1/embeddings", "/v1/responses")
    ]


def test_an_unknown_name_is_reported_with_the_known_ones(client, standins):
    standins.callback_status = [404]  # like an engine without the endpoint
    for answer in (client.post("/v1/embeddings", json={"input": "x"}), client.get("/v1/nothing")):
        assert answer.status_code == 404
        assert "POST /v1/chat/completions" in answer.json()["error"]["message"]
    wrong = client.get(CHAT)
    assert (wrong.status_code, wrong.headers["allow"], wrong.json()["error"]["code"]) == (405, "POST", 405)
    assert client.post("/v1/audio/speech", json={}).status_code == 404
    assert [request["path"] for request in standins.asked] == ["/v1/embeddings"]


def test_a_long_path_is_cut_in_the_log(new_server):
    server = new_server().start()
    with server.client() as client:
        client.get("/v1/" + "x" * 4000)
    line = wait_for(lambda: [line for line in server.output().splitlines() if '"request"' in line])[0]
    assert len(json.loads(line)["path"]) == 200
