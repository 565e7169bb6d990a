"""Test which values callers may send, for every field that the engine reads."""

import json
from pathlib import Path

import pytest

from app.errors import Problem
from app.policy import FIELDS, MAX_DEPTH, Policy, too_deep
from app.settings import Settings

# The fields of the request classes of vLLM 0.23.0 and 0.32.0, from their sources.
ENGINE = json.loads((Path(__file__).parent / "engine_fields.json").read_text())
EVERYWHERE = {
    *("cache_salt", "ec_transfer_params", "ignore_eos", "kv_transfer_params", "mm_payload", "priority", "request_id"),
    *("return_mm_kwargs", "session_id", "vllm_xargs", "watermarking"),
}
OF_ANSWERS = {
    *("allowed_token_ids", "bad_words", "logprob_token_ids", "prompt_logprobs", "repetition_detection"),
    *("return_token_ids", "return_token_offsets", "routed_experts_prompt_start", "stream_interval"),
    *("truncation_side", "use_beam_search"),
}
TEMPLATES = {"media_io_kwargs", "mm_processor_kwargs"}
REFUSED = {
    "/chat/completions": EVERYWHERE | OF_ANSWERS | TEMPLATES | {"chat_template", "documents", "return_prompt_text"},
    "/completions": EVERYWHERE | OF_ANSWERS | {"prompt_embeds"},
    "/responses": EVERYWHERE
    | TEMPLATES
    | {"background", "enable_response_messages", "previous_input_messages", "previous_response_id", "prompt"},
    "/embeddings": TEMPLATES
    | {
        *("add_generation_prompt", "add_special_tokens", "cache_salt", "chat_template", "chat_template_kwargs"),
        *("continue_final_message", "embed_dtype", "endianness", "messages", "padding", "priority", "request_id"),
        *("truncation_side", "use_activation"),
    },
}
PNG = "data:image/png;base64,iVBORw0KGgo="


def policy(monkeypatch, new_server, **changes: str) -> Policy:
    server = new_server(**changes)
    monkeypatch.setattr("os.environ", server.environment())
    monkeypatch.chdir(server.directory)
    return Policy(Settings())


@pytest.fixture
def check(monkeypatch, new_server):
    """Return a function that returns the policy's error for a body, or ""."""

    def check(body: dict, path: str = "/chat/completions", **changes: str) -> str:
        try:
            policy(monkeypatch, new_server, **changes).check(path, body)
        except Problem as problem:
            assert problem.status_code == 400
            return problem.detail
        return ""

    return check


@pytest.mark.parametrize("path", FIELDS)
def test_every_field_of_the_engine_passes_or_is_refused_by_name(monkeypatch, new_server, path):
    ours = policy(monkeypatch, new_server)
    refused = set()
    for name in ENGINE[path]:
        try:
            ours.check(path, {name: None})
        except Problem as problem:
            assert name in problem.detail
            refused.add(name)
    assert refused == REFUSED[path]


def test_an_operator_adds_fields(check):
    assert check({"ignore_eos": True}) == "'ignore_eos' is not a field that this server supports."
    assert check({"ignore_eos": True, "priority": 3}, EXTRA_FIELDS="ignore_eos, priority") == ""


@pytest.mark.parametrize(
    "body",
    [
        {"n": 5},
        {"n": "1000"},
        {"n": 5.0},
        {"n": 0},
        {"max_tokens": 10**9},
        {"max_completion_tokens": 10**400},
        {"min_tokens": 40_000},
        {"max_tokens": " 1_000_000 "},
        {"max_tokens": "1" * 5000},
        {"top_logprobs": 21},
        {"top_logprobs": -1},
        {"logprobs": 1000},
        {"thinking_token_budget": 10**9},
    ],
)
def test_a_number_out_of_bounds(check, body):
    (name,) = body
    sentence = check(body)
    assert sentence.startswith(f"{name} is ") and "is allowed." in sentence and len(sentence) < 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"stop": ["x"] * 17}, "stop has 17 entries; at most 16 are allowed."),
        ({"stop": "x" * 1001}, "stop has an entry of more than 1000 characters."),
        (
            {"logit_bias": {str(token): 1 for token in range(1025)}},
            "logit_bias has 1025 entries",
        ),
        ({"stop_token_ids": [1] * 1025}, "stop_token_ids has 1025 entries; at most 1024 are allowed."),
        ({"response_format": {"json_schema": {"x": "y" * 65_536}}}, "response_format has "),
        ({"tools": [{"type": "function", "function": {"name": "y" * 65_536}}]}, "tools has "),
        ({"tools": [{"type": "mcp", "server_url": "http://x"}]}, "tools only takes functions; this server runs"),
        (
            {"chat_template_kwargs": {"chat_template": "{{ x }}"}},
            "chat_template_kwargs only takes true or false values",
        ),
        ({"chat_template_kwargs": "{{ x }}"}, "chat_template_kwargs only takes true or false values"),
        ({"stream_options": {"include_usage": "false"}}, "stream_options only takes true or false values"),
        ({"echo": True, "logprobs": 3}, "echo and logprobs together"),
        ({"echo": True, "top_logprobs": 3}, "echo and logprobs together"),
    ],
)
def test_what_is_too_much(check, body, message):
    assert check(body).startswith(message)


def test_prompts_times_answers(check):
    assert check({"prompt": ["a", "b", "c"], "n": 2}, "/completions") == (
        "prompt and n ask for 6 answers; at most 4 are allowed."
    )
    assert check({"prompt": [[1, 2], [3]], "n": "2"}, "/completions") == ""
    assert check({"prompt": [1, 2, 3, 4, 5]}, "/completions") == "", "the tokens of one prompt"


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "image_url", "image_url": {"url": " data:image/png;base64,x"}},
        {"type": "image_url", "image_url": "https://example.com/x.png"},
        {"image_url": "https://example.com/x.png"},
        {"type": "audio_url", "audio_url": {"url": "ftp://x"}},
        {"type": "video_url", "video_url": {"url": "HTTP://x"}},
        {"type": "image_embeds", "image_embeds": "AAAA"},
        {"image_embeds": "AAAA"},
        {"type": "audio_embeds", "data": "AAAA"},
        {"type": "image_pil", "image_pil": "x"},
        {"type": "image_url", "image_url": None, "uuid": "of-somebody-else"},
    ],
)
def test_the_engine_fetches_and_unpacks_nothing(check, part):
    assert check({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, part]}]})
    assert check({"input": [{"role": "user", "content": [part]}]}, "/responses")


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": PNG}},
        {"type": "image_url", "image_url": {"url": PNG.replace("data", "DATA"), "detail": "low"}},
        {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
        {"type": "text", "text": "see http://example.com"},
    ],
)
def test_what_a_caller_brings_passes(check, part):
    assert check({"messages": [{"role": "user", "content": [part]}]}) == ""


def test_depth():
    value: object = 1
    for _ in range(MAX_DEPTH):
        value = [value]
    assert not too_deep(value, MAX_DEPTH)
    assert too_deep([value], MAX_DEPTH)


def test_over_http(client, standins):
    """The relayed route applies the policy before it calls the engine."""
    hello = {"messages": [{"role": "user", "content": "hello"}]}
    answer = client.post("/v1/chat/completions", json={**hello, "kv_transfer_params": {}})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, 400)
    assert "kv_transfer_params" in answer.json()["error"]["message"]
    assert client.post("/v1/chat/completions", json={**hello, "model": None}).status_code == 200
    (request,) = standins.asked
    assert request["body"]["model"] == "base"


def test_an_adapters_answer_has_the_same_bound(client, standins):
    for most in (32_769, 10**4000):
        answer = client.post("/v1/checklist", content=b'{"text": "x", "max_tokens": %d}' % most)
        assert (answer.status_code, "from 0 to 32768 is allowed" in answer.text) == (400, True)
    assert standins.asked == []


def test_a_body_of_many_values_is_refused_before_it_is_read(client, standins):
    many = b'{"messages": [' + b"[]," * 200_000 + b"[]]}"
    for kind in ("application/json", "multipart/form-data; boundary=x"):
        answer = client.post("/v1/chat/completions", content=many, headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["error"]["message"]) == (400, "The body has more than 200000 values.")
    assert standins.asked == []


def test_only_a_path_that_takes_uploads_takes_their_size(new_server, standins):
    server = new_server(MAX_BODY_BYTES="1000", MAX_UPLOAD_BYTES="5000").start()
    with server.client() as client:
        headers = {"Content-Type": "Multipart/Form-Data; boundary=x"}
        answer = client.post("/v1/chat/completions", content=b"x" * 2000, headers=headers)
        assert (answer.status_code, "1000 bytes" in answer.text) == (413, True)
        answer = client.post("/v1/checklist", content=b"x" * 6000, headers=headers)
        assert (answer.status_code, "5000 bytes" in answer.text) == (413, True)
