"""Test keys, rates and sizes: 401, 429, 413."""

import json
import time

import httpx
import pytest

from app.limits import Callers, Rate
from conftest import OTHER_CALLER, VLLM_KEY

HELLO = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize("header", [None, "", "Bearer", "Basic abc", "Bearer wrong-key-0123456", f"Bearer {VLLM_KEY}"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/checklist", "/v1/jobs/x", "/nothing"])
def test_no_key_no_answer(server, standins, header, path):
    response = httpx.post(
        server.url + path, json=HELLO, headers={"Authorization": header} if header is not None else {}
    )
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.json()["error"]["code"] == 401
    assert standins.asked == []


def test_open_paths(server):
    for path in ("/health", "/health/ready", "/metrics"):
        assert httpx.get(server.url + path).status_code == 200
    assert httpx.get(f"{server.url}/docs").status_code == 401


def test_health_by_head(server):
    for path in ("/health", "/health/ready"):
        answer = httpx.head(server.url + path)
        assert (answer.status_code, answer.content) == (200, b"")


def test_an_extra_slash_does_not_redirect(client):
    answer = client.get("/v1/models/")
    assert (answer.status_code, "location" in answer.headers) == (404, False)


def test_what_callers_send_makes_no_metric_of_its_own(client, server):
    for number in range(3):
        for ask in (client.request, httpx.request):
            assert ask(f"M{number}", f"{server.url}/v1/models").status_code == 400  # the parser knows the methods
            assert ask("PROPFIND", f"{server.url}/v1/models").status_code == 501
            assert ask("GET", f"{server.url}/v1/canary{number}").status_code in (401, 404)
    metrics = httpx.get(f"{server.url}/metrics").text
    assert 'method="other",status="5xx"' in metrics
    assert "canary" not in metrics and 'method="M' not in metrics and "PROPFIND" not in metrics


def test_a_key_counts_only_as_bearer():
    callers = Callers(["a" * 16, "b" * 16])
    assert callers.name("Bearer " + "a" * 16) not in (None, callers.name("bearer " + "b" * 16))
    assert callers.name("Basic " + "a" * 16) is None


def slowly(body: bytes):
    """Yield the body slowly, in pieces each of which is small enough."""
    for start in range(0, len(body), 400):
        yield body[start : start + 400]
        time.sleep(0.05)


def test_body_too_large(new_server, standins):
    server = new_server(MAX_BODY_BYTES="1000", MAX_UPLOAD_BYTES="2000").start()
    large = {"messages": [{"role": "user", "content": "x" * 1000}]}
    with server.client() as client:
        assert client.post("/v1/chat/completions", json=HELLO).status_code == 200
        declared = client.post("/v1/chat/completions", json=large)
        chunked = client.post("/v1/chat/completions", content=slowly(json.dumps(large).encode()))
        upload = client.post("/v1/checklist", files={"file": b"%PDF-" + b"x" * 2000})
    assert [answer.status_code for answer in (declared, chunked, upload)] == [413, 413, 413]
    assert "1000 bytes" in declared.json()["error"]["message"] and "2000 bytes" in upload.json()["error"]["message"]
    assert len(standins.asked) == 1


def test_rate_is_each_callers_own(new_server):
    server = new_server(RATE_LIMIT_PER_MINUTE="2").start()
    with server.client() as client, server.client(OTHER_CALLER) as other:
        answers = [client.get("/v1/models") for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert 1 <= int(answers[2].headers["retry-after"]) <= 30
        assert other.get("/v1/models").status_code == 200


def test_rate_refills_evenly():
    now = 0.0
    rate = Rate(60, clock=lambda: now)
    assert [rate.wait("a") for _ in range(60)] == [0] * 60
    assert rate.wait("a") == pytest.approx(1)
    now = 0.5
    assert rate.wait("a") == pytest.approx(0.5)
    now = 1.0
    assert rate.wait("a") == 0
    now = 1000.0
    assert [rate.wait("a") for _ in range(61)][59:] == [0, pytest.approx(1)]  # never more than one minute's allowance
