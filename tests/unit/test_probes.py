"""Probes against a server on loopback that says what it is told to (conftest.py)."""

from __future__ import annotations

import json
import socket
import time

import pytest
from ansible.module_utils import probes

METRICS = '# TYPE up gauge\nup 1\nDCGM_FI_DEV_GPU_TEMP{gpu="0"} 41\n'
MODELS = json.dumps({"data": [{"id": "base"}, {"id": "easycontract"}]})
COMPLETION = json.dumps({"choices": [{"text": " a"}], "usage": {"completion_tokens": 8}})


@pytest.mark.parametrize(
    "probe, page, failure",
    [
        ({"http": {}}, (200, "OK"), None),
        ({"http": {}}, (503, "KO"), "answered 503 instead of 200: KO"),
        ({"http": {"status": 401}}, (401, "no"), None),
        ({"http": {"status": 401}}, (200, "open"), "answered 200 instead of 401: open"),
        ({"http": {"contains": "OK"}}, (200, "all OK"), None),
        ({"http": {"contains": "OK"}}, (200, ""), "answered 200 without 'OK': nothing more"),
        ({"http": {}}, (200, ""), None),
        ({"metric": {"series": ["up", "DCGM_FI_DEV_GPU_TEMP"]}}, (200, METRICS), None),
        ({"metric": {"series": ["up", "down"]}}, (200, METRICS), "has no series down yet"),
        ({"metric": {"series": ["TYPE"]}}, (200, METRICS), "has no series TYPE yet"),
        ({"metric": {"series": ["up"]}}, (200, ""), "has no series up yet"),
        ({"metric": {"series": ["up"]}}, (500, "x" * 900), "answered 500 instead of 200: " + "x" * 199 + "…"),
    ],
)
def test_a_page(server, probe, page, failure):
    server.pages["/page"] = page
    ((kind, options),) = probe.items()
    said = probes.first_failure([{kind: {**options, "url": f"{server.url}/page"}}])
    assert said == (failure and f"{server.url}/page {failure}")


@pytest.mark.parametrize(
    "expected, page, failure",
    [
        (["base", "easycontract"], (200, MODELS), None),
        (["base", "checklist"], (200, MODELS), ": missing checklist; unexpected easycontract"),
        (["base"], (200, MODELS), ": missing none; unexpected easycontract"),
        (["base"], (200, "<html>"), " answered no model list: <html>"),
        (["base"], (401, "{}"), " answered 401 instead of 200: {}"),
    ],
)
def test_models(server, expected, page, failure):
    server.pages["/v1/models"] = page
    said = probes.first_failure([{"models": {"url": f"{server.url}/v1", "expected": expected, "bearer": "key"}}])
    assert said == (failure and f"{server.url}/v1/models{failure}")
    assert server.asked[0][1] == "Bearer key"


@pytest.mark.parametrize(
    "page, failure",
    [
        ((200, COMPLETION), None),
        ((500, "worker died"), "a completion by base at {url} answered 500 instead of 200: worker died"),
        ((200, '{"usage": {"completion_tokens": 0}}'), "a completion by base at {url} produced no token"),
        ((200, "{}"), "a completion by base at {url} answered no completion: {{}}"),
    ],
)
def test_a_completion(server, page, failure):
    server.pages["/v1/completions"] = page
    url = f"{server.url}/v1"
    said = probes.first_failure([{"completion": {"url": url, "model": "base", "bearer": "key", "prompt": "Hi"}}])
    assert said == (failure and failure.format(url=url))
    path, bearer, body = server.asked[0]
    assert (path, bearer) == ("/v1/completions", "Bearer key")
    assert json.loads(body) == {"model": "base", "prompt": "Hi", "max_tokens": 8, "temperature": 0}


def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    assert probes.first_failure([{"http": {"url": url}}]) == f"{url}: connection refused"


def test_an_answer_that_is_not_http(not_http):
    url = f"{not_http}/"
    assert probes.first_failure([{"http": {"url": url}}]).startswith(f"{url}: no answer in HTTP")


def test_silence_ends_when_the_start_has_to_be_over(server):
    server.pages["/"] = (0, "")
    start = time.monotonic()
    said = probes.first_failure([{"http": {"url": f"{server.url}/", "timeout": 60}}], within=0.3)
    assert said == f"{server.url}/: no answer in time"
    assert time.monotonic() - start < 1.5


def test_the_first_failure_ends_the_round(server):
    server.pages["/a"], server.pages["/b"] = (500, "a"), (500, "b")
    urls = [f"{server.url}/{name}" for name in "ab"]
    assert probes.first_failure([{"http": {"url": url}} for url in urls]).startswith(urls[0])
    assert len(server.asked) == 1


def test_options_that_were_left_out_count_as_their_defaults(server):
    server.pages["/"] = (200, "OK")
    options = {"url": f"{server.url}/", "status": None, "contains": None, "bearer": None, "timeout": None}
    assert probes.first_failure([{"http": options, "metric": None, "models": None, "completion": None}]) is None


def test_a_proxy_is_never_asked(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server.pages["/"] = (200, "OK")
    assert probes.first_failure([{"http": {"url": f"{server.url}/"}}]) is None
