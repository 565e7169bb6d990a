"""Test the log, the metrics, the end of the process, and the project's files."""

import json
import re
import signal
import sqlite3
import time

from conftest import CALLER, OCR_KEY, ROOT, TOKEN, VLLM_KEY
from pdfs import pdf
from standins import wait_for


def lines(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_log_is_json_and_shows_no_secret(new_server):
    server = new_server().start()
    with server.client() as client:
        sent = {"messages": [{"role": "user", "content": "private words"}]}
        answer = client.post("/v1/chat/completions", json=sent, headers={"X-Request-ID": "trace-1"})
        assert answer.headers["x-request-id"] == "trace-1"
        assert client.get("/v1/models", headers={"X-Request-ID": "a b"}).headers["x-request-id"] != "a b"
        client.post("/v1/checklist", files={"file": pdf("private words")}, data={"job_id": "j"})
        client.post("/v1/checklist", json={"text": ["private words"]})
    server.job("j", "delivered")
    server.stop()
    log = lines(server.directory / "log/ai-server.log")
    assert log == lines(server.directory / "stdout")
    (request,) = [line for line in log if line["request_id"] == "trace-1"]
    assert (request["method"], request["path"], request["status"]) == ("POST", "/v1/chat/completions", 200)
    assert request["level"] == "INFO" and request["caller"] and request["timestamp"]
    for secret in (CALLER, VLLM_KEY, TOKEN, OCR_KEY, "private words"):
        assert secret not in server.output()


def test_log_file_may_be_rotated(new_server):
    server = new_server().start()
    log = server.directory / "log/ai-server.log"
    wait_for(log.exists)
    log.rename(log.with_suffix(".log.1"))
    with server.client() as client:
        client.get("/v1/models")
    assert [line["path"] for line in wait_for(lambda: log.exists() and lines(log))] == ["/v1/models"]


def test_metrics(client):
    client.get("/v1/models")
    client.get("/v1/jobs/none")
    metrics = client.get("/metrics").text
    assert 'http_requests_total{handler="/v1/models",method="GET",status="2xx"}' in metrics
    assert 'http_requests_total{handler="/v1/jobs/{job_id}",method="GET",status="4xx"}' in metrics


def test_sigterm_lets_a_short_answer_finish_and_cuts_an_endless_one(new_server, standins):
    server = new_server().start()
    with server.client() as client:
        sent = {"messages": [{"role": "user", "content": "hold this"}], "stream": True}
        with client.stream("POST", "/v1/chat/completions", json=sent) as response:
            chunks = response.iter_raw()
            next(chunks)
            server.process.terminate()
            time.sleep(0.3)
            standins.go_on.set()
            assert b"".join(chunks).endswith(b"data: [DONE]\n\n")
    assert server.process.wait(5) == -signal.SIGTERM  # uvicorn raises the signal again; a clean exit for systemd
    assert "ai-server has stopped" in server.output()

    standins.go_on.clear()
    server.start()
    with server.client() as client, client.stream("POST", "/v1/chat/completions", json=sent) as response:
        chunks = response.iter_raw()
        next(chunks)
        began = time.monotonic()
        server.stop()
    assert time.monotonic() - began < 4
    wait_for(lambda: standins.left, 2)
    assert lines(server.directory / "log/ai-server.log")[-1]["message"].startswith("Finished server process")


def test_an_unforeseen_fault_is_a_500_without_a_trace(new_server):
    server = new_server().start()
    with server.client() as client:
        client.post("/v1/checklist", json={"text": "hello", "job_id": "any"})
        server.job("any", "delivered")
        with sqlite3.connect(server.directory / "state/jobs.sqlite3") as store:
            store.execute("UPDATE jobs SET outcome = '{'")
        answer = client.get("/v1/jobs/any")
    assert (answer.status_code, answer.json()["error"]["message"]) == (
        500,
        "Internal error; see the server log.",
    )


def names(text: str) -> set[str]:
    return set(re.findall(r"^\s*\"?([a-z][a-z0-9-]*)>=", text, re.MULTILINE))


def test_declared_locked_and_tested_are_the_same():
    declared = names((ROOT / "pyproject.toml").read_text().partition("dependencies = [")[2].partition("\n]")[0])
    lock = (ROOT / "requirements.txt").read_text()
    assert len(declared) > 5
    assert declared | {"hypothesis", "openai", "pytest"} == names((ROOT / "requirements-test.in").read_text())
    pins = re.split(r"\n(?=[a-z])", lock)[1:]
    assert declared <= {pin.partition("==")[0] for pin in pins}
    assert all("--hash=sha256:" in pin for pin in pins)
    assert "://" not in lock
