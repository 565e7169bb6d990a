"""vllm_api: what counts as a list of models, and how it differs from the expected one."""

import json
import socket
import ssl
import urllib.error
from http.client import IncompleteRead, InvalidURL

import pytest

from plugins.module_utils.engines import vllm_api

URL = "http://127.0.0.1:8001/v1/models"

# A response of vLLM 0.15, without other fields.
BODY = {
    "object": "list",
    "data": [
        {"id": "base", "object": "model", "root": "/models/base", "parent": None, "max_model_len": 8192},
        {"id": "easycontract", "root": "/models/a", "parent": "base", "max_model_len": None},
        {"id": "checklist", "root": "/models/b", "parent": "base", "max_model_len": None},
    ],
}
MODELS = vllm_api.parse(URL, json.dumps(BODY).encode())


def test_models_are_read_with_what_matters():
    assert MODELS[0] == {"id": "base", "root": "/models/base", "parent": None, "max_model_len": 8192}
    assert [m["parent"] for m in MODELS] == [None, "base", "base"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"<html>", "not_json"),
        (b"", "not_json"),
        (b"[]", "not_models"),
        (b'{"data": {}}', "not_models"),
        (b'{"data": [{"name": "x"}]}', "not_models"),
        (b'{"error": "no"}', "not_models"),
    ],
)
def test_other_answers(body, kind):
    with pytest.raises(vllm_api.ApiError) as caught:
        vllm_api.parse(URL, body)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    ("base", "adapters", "missing", "unexpected"),
    [
        ("", None, [], []),
        ("base", ["easycontract", "checklist"], [], []),
        ("base", None, [], []),
        ("base", ["easycontract"], [], ["checklist"]),
        ("base", ["easycontract", "checklist", "third"], ["third"], []),
        ("base", [], [], ["easycontract", "checklist"]),
        ("other", None, ["other"], ["base"]),
        ("easycontract", None, ["easycontract"], ["base"]),
    ],
)
def test_difference(base, adapters, missing, unexpected):
    diff = vllm_api.difference(MODELS, base, adapters)
    assert (diff["missing"], diff["unexpected"]) == (missing, unexpected)
    assert bool(vllm_api.describe(MODELS, diff)) == bool(missing or unexpected)


def test_an_adapter_in_the_base_models_place_is_named():
    text = vllm_api.describe(MODELS, vllm_api.difference(MODELS, "easycontract"))
    assert "easycontract is served as an adapter" in text
    assert "served: base, easycontract, checklist" in text


@pytest.mark.parametrize(
    ("url", "want"),
    [
        ("http://h:1", "http://h:1/v1/models"),
        ("http://h:1/", "http://h:1/v1/models"),
        ("http://h:1/v1", "http://h:1/v1/models"),
        ("http://h:1/v1/", "http://h:1/v1/models"),
    ],
)
def test_address(url, want):
    assert vllm_api.models_url(url) == want


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (urllib.error.URLError(ConnectionRefusedError(111, "Connection refused")), "refused"),
        (urllib.error.URLError(socket.gaierror(-2, "Name or service not known")), "unreachable"),
        (urllib.error.URLError(ssl.SSLCertVerificationError("certificate verify failed")), "tls"),
        (urllib.error.URLError(ssl.SSLError("wrong version number")), "tls"),
        (TimeoutError("timed out"), "timeout"),
        (urllib.error.URLError(OSError(113, "No route to host")), "unreachable"),
        (ConnectionResetError(104, "Connection reset by peer"), "closed"),
        (FileNotFoundError(2, "No such file or directory"), "tls"),
        (InvalidURL("nonnumeric port: 'x'"), "unreachable"),
        (IncompleteRead(b"half"), "not_http"),
    ],
)
def test_failures_on_the_way_are_distinguished(error, kind):
    assert vllm_api._transport(URL, error, 3).kind == kind


def test_a_port_that_is_not_http_is_one_sentence(not_http):
    with pytest.raises(vllm_api.ApiError, match=r"gave no answer in HTTP .*SSH-2.0.*: another program") as caught:
        vllm_api.fetch(not_http)
    assert caught.value.kind == "not_http"


def test_a_port_that_is_none_is_one_sentence():
    with pytest.raises(vllm_api.ApiError, match=r"is no address \(nonnumeric port: 'x'\): check it") as caught:
        vllm_api.fetch("http://127.0.0.1:x")
    assert caught.value.kind == "unreachable"
