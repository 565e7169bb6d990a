"""What is removed from a text, in whichever form a secret is written, and what stays."""

from __future__ import annotations

import base64
import json
import time
from urllib.parse import quote

import pytest

from plugins.module_utils.redaction import HIDDEN, Redaction, names_secret

KEY = "canary/31415+926=x"


@pytest.mark.parametrize(
    "text",
    [
        f"the key is {KEY}.",
        json.dumps({"words": [f'say "{KEY}"']}),
        f"GET /v1?word={quote(KEY, safe='')} 200",
        f"Credentials {base64.b64encode(KEY.encode()).decode()}",
    ],
)
def test_a_known_secret_goes_however_it_is_written(text):
    result = Redaction([KEY])(text)
    assert HIDDEN in result
    for part in ("canary", "31415", base64.b64encode(KEY.encode()).decode().rstrip("=")):
        assert part not in result


def test_of_a_file_in_json_only_what_is_named_as_a_secret_goes():
    hide = Redaction()
    engine = {"name": "chat", "url": "http://127.0.0.1:8001/v1", "api_key": "engine-key-0123", "models": ["base-model"]}
    hide.add_file(json.dumps({"engines": [engine]}, indent=1))
    line = '{"engine": "chat", "model": "base-model", "why": "%s was refused"}'
    assert hide(line % "engine-key-0123") == line % "********"
    hide.add_file("one password\n")
    assert hide("one password, or a password alone") == "********, or a ******** alone"


def test_a_longer_secret_goes_before_one_that_it_begins_with():
    assert Redaction(["canary", "canary-and-more"])("canary-and-more") == HIDDEN


def test_the_values_of_a_file_of_secrets_but_not_its_plain_ones():
    known = Redaction()
    known.add_lines(
        'A_TOKEN=tok1\nexport OCR_API="an-unnamed-secret"\nURL=http://localhost:8001/v1\n# X_KEY=remark\nLEVEL=INFO\n'
        'API_KEYS=["first-caller-key", "second-caller-key"]\n',
        plain=["URL"],
    )
    result = known("tok1 an-unnamed-secret http://localhost:8001/v1 remark INFO second-caller-key")
    assert result == f"{HIDDEN} {HIDDEN} http://localhost:8001/v1 remark INFO {HIDDEN}"


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer canary-0123456789",
        "authorization: Basic Y2FuYXJ5OmNhbmFyeQ==",
        "{'Authorization': 'Bearer canary-0123456789'}",
        "[(b'authorization', b'Bearer canary-0123456789')]",
        "Proxy-Authorization: Digest canary",
        "sent Bearer canary-0123456789 to it",
        "api_server_args: {'api_key': ['canary-key'], 'port': 8001}",
        "vllm serve --api-key canary-key --port 8001",
        "vllm serve --api-key=canary-key --port 8001",
        "VLLM_API_KEY=canary-key",
        "HF_TOKEN='canary-key'",
        '{"backend_internal_token": "canary-key", "a": 1}',
        "db_password: canary-key",
        "'accessToken': 'canary-key'",
        "apikey=canary-key",
        "GET /hook?token=canary-key&x=1 HTTP/1.1",
        "token hf_canary0123456789 was refused",
        "key sk-canary0123456789",
        "xoxb-canary-0123456789",
        "posting to https://hooks.slack.com/services/T0/B0/canary failed",
        "posting to https://chat.example.com/api/webhooks/1/canary failed",
        "https://user:canary@index.example/simple",
        "http://canary@proxy.example:3128",
        "-----BEGIN RSA PRIVATE KEY-----\ncanary\n-----END RSA PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\ncanary\nand no end",
        "eyJcanary0123456.eyJcanary.canary",
    ],
)
def test_what_looks_like_a_secret_goes_and_its_line_stays_readable(text):
    result = Redaction()(text)
    assert "canary" not in result and "Y2FuYXJ5" not in result, result
    assert HIDDEN in result


@pytest.mark.parametrize(
    "text",
    [
        "http://127.0.0.1:8001/v1/models answered 401 instead of 200",
        "ValueError: No available memory for the cache blocks",
        "Tokenizer not found for model lab/tiny-llama",
        'vllm:generation_tokens_total{engine="0"} 12.0',
        "prompt_tokens: 17, max_tokens=8",
        "Basic sanity checks passed; bearer of news",
        "Main PID: 4711 (vllm)\n   Memory: 8.1G\n",
        "Authentication is on; keys of two callers",
        "MemAvailable:   1234 kB",
        "HF_TOKEN=None api_key=null",
        "KeyError: 'MODEL_NAME'",
        "cause: hf_gated_or_unauthorised",
    ],
)
def test_values_that_are_not_secret_stay(text):
    assert Redaction()(text) == text


@pytest.mark.parametrize("cut", [f"key {KEY[:6]}…", f"key {KEY[:-1]} …"])
def test_a_secret_that_a_shortened_line_cut_through_goes_too(cut):
    assert Redaction([KEY])(cut).startswith(f"key {HIDDEN}")


def test_a_long_secret_that_was_cut_goes_too():
    long = "".join(chr(97 + number % 26) for number in range(3000))
    assert Redaction([long])(f"key {long[:2000]}… and more") == f"key {HIDDEN}… and more"


def test_twice_is_once():
    known = Redaction([KEY])
    once = known(f"Authorization: Bearer {KEY} https://u:p@host/ API_KEY={KEY} hf_0123456789")
    assert known(once) == once


@pytest.mark.parametrize(("name", "secret"), [("VLLM_API_KEY", True), ("hf_token", True), ("MONKEY", False)])
def test_names(name, secret):
    assert names_secret(name) is secret


@pytest.mark.parametrize(
    "piece", ["a_", "a-", "aaaaaaaa", "token_", "http://a/", "Bearer ", "authorization: ", "://", "key"]
)
def test_no_text_takes_long(piece):
    begun = time.monotonic()
    Redaction()(piece * (500_000 // len(piece)))
    assert time.monotonic() - begun < 10
