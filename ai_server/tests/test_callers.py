"""Test named callers: key rotation, models, rates, usage."""

import datetime
import hashlib
import json
import signal
import sqlite3
import time

import httpx
import pytest

from app.callers import Callers, CallersError
from app.limits import Rate
from app.usage import Usage
from conftest import CALLER, VLLM_KEY
from pdfs import pdf
from standins import wait_for

HELLO = {"messages": [{"role": "user", "content": "hello"}]}
OLD, NEW = "the-old-key-012345", "the-new-key-012345"


def sha256(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def written(path, *callers: dict) -> None:
    """Replace the file atomically, as an editor and the role do."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps({"callers": callers}))
    beside.replace(path)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "callers.json"


def test_keys_rotate_with_an_overlap_and_end(file):
    now = datetime.datetime(2027, 1, 31, 23, 59, tzinfo=datetime.timezone.utc).timestamp()
    keys = [{"sha256": sha256(OLD), "expires": "2027-01-31"}, {"sha256": sha256(NEW)}]
    written(file, {"name": "backend", "keys": keys})
    callers = Callers([], file, clock=lambda: now)
    assert {callers.name(f"Bearer {key}") for key in (OLD, NEW)} == {"backend"}
    now += 60
    assert [callers.name(f"Bearer {key}") for key in (OLD, NEW)] == [None, "backend"]


def test_a_key_may_last_to_the_end_of_the_calendar(file):
    written(file, {"name": "a", "keys": [{"sha256": sha256(OLD), "expires": "9999-12-31"}]})
    assert Callers([], file).name(f"Bearer {OLD}") == "a"


def test_a_key_is_in_one_of_the_two_places(file):
    written(file, {"name": "a", "keys": [{"sha256": sha256(CALLER)}]})
    with pytest.raises(CallersError, match="has one of AI_SERVER_API_KEYS among its keys"):
        Callers([CALLER], file)


def test_the_file_is_read_again_and_a_bad_one_changes_nothing(file):
    now = 0.0
    written(file, {"name": "a", "keys": [{"sha256": sha256(OLD)}]})
    callers = Callers([CALLER], file, clock=lambda: now)
    written(file, {"name": "b", "keys": [{"sha256": sha256(NEW)}]})
    assert callers.name(f"Bearer {OLD}") == "a", "it is not looked at for every request"
    now = 2.0
    assert [callers.name(f"Bearer {key}") for key in (OLD, NEW)] == [None, "b"]
    now = 4.0
    file.write_text("{")
    assert callers.name(f"Bearer {NEW}") == "b"
    assert "callers.json: Invalid JSON" in callers.trouble
    now = 6.0
    file.unlink()
    assert callers.name(f"Bearer {NEW}") == "b" and "No such file" in callers.trouble
    now = 8.0
    written(file, {"name": "c", "keys": [{"sha256": sha256(NEW)}]})
    assert (callers.name(f"Bearer {NEW}"), callers.trouble) == ("c", "")
    assert callers.name(f"Bearer {CALLER}") == sha256(CALLER)[:8], "the list of keys counts beside it"


ENTRY = {"name": "a", "keys": [{"sha256": sha256(OLD)}]}


@pytest.mark.parametrize(
    ("callers", "message"),
    [
        ([{**ENTRY, "name": "A B"}], "callers.0.name: "),
        ([{**ENTRY, "keys": []}], "callers.0.keys: "),
        ([{**ENTRY, "keys": [{"sha256": OLD}]}], "callers.0.keys.0.sha256: "),
        ([{**ENTRY, "keys": [{"key": OLD}]}], "callers.0.keys.0."),
        ([{**ENTRY, "models": []}], "callers.0.models: "),
        ([{**ENTRY, "streams": 0}], "callers.0.streams: "),
        ([{**ENTRY, "rate": 5}], "callers.0.rate: "),
        ([ENTRY, {**ENTRY, "name": "b"}], "occurs twice"),
        ([ENTRY, {**ENTRY, "keys": [{"sha256": sha256(NEW)}]}], "the name a occurs twice"),
        ([{**ENTRY, "keys": [{"sha256": sha256(VLLM_KEY)}]}], "has VLLM_API_KEY among its keys"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_sentence_without_a_key(file, callers, message):
    written(file, *callers)
    with pytest.raises(CallersError) as refused:
        Callers([], file, VLLM_KEY)
    assert message in str(refused.value)
    assert OLD not in str(refused.value) and "\n" not in str(refused.value)


def test_a_server_does_not_start_with_such_a_file(new_server, tmp_path):
    server = new_server(CALLERS_FILE=str(tmp_path / "none.json"))
    with pytest.raises(Exception):  # noqa: B017 - there is no answer
        server.start()
    assert server.stop() == 78
    assert "settings refused: CALLERS_FILE: " in server.output() and server.output().count("\n") == 1


@pytest.fixture
def named(new_server, file):
    """Return a function that starts a server with only the given callers."""

    def start(*callers: dict, **settings: str):
        written(file, *callers)
        return new_server(CALLERS_FILE=str(file), AI_SERVER_API_KEYS=None, **settings).start()

    return start


def test_models_of_a_key(named, standins):
    server = named({**ENTRY, "models": ["checklist-adapter", "base"]}, {"name": "b", "keys": [{"sha256": sha256(NEW)}]})
    with server.client(OLD) as client:
        assert client.post("/v1/chat/completions", json={**HELLO, "model": "other"}).status_code == 404
        assert "may not use it" in client.post("/v1/easy-contract", json={"text": "x"}).json()["error"]["message"]
        assert client.post("/v1/chat/completions", json={**HELLO, "model": []}).status_code == 404
        assert standins.asked == []
        assert client.post("/v1/chat/completions", json=HELLO).status_code == 200
        assert client.post("/v1/checklist", json={"text": "x"}).status_code == 200
        standins.models = ["base", "other"]
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["base"]
    with server.client(NEW) as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["base", "other"]
        assert client.post("/v1/chat/completions", json={**HELLO, "model": "other"}).status_code == 200


def test_rates_of_a_caller_are_in_the_headers(named):
    server = named({**ENTRY, "requests_per_minute": 2, "tokens_per_minute": 100})
    with server.client(OLD) as client:
        first, second, third = (client.get("/v1/models") for _ in range(3))
    assert (second.status_code, third.status_code) == (200, 429)
    assert (first.headers["x-ratelimit-limit-requests"], first.headers["x-ratelimit-remaining-requests"]) == ("2", "1")
    assert third.headers["x-ratelimit-remaining-requests"] == "0"
    assert 29 < float(third.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 60
    assert third.headers["x-ratelimit-limit-tokens"] == "100"


def test_tokens_are_counted_and_end(named):
    server = named({**ENTRY, "tokens_per_minute": 10})
    with server.client(OLD) as client:
        answers = [client.post("/v1/checklist", json={"text": "x"}) for _ in range(3)]
        assert [answer.status_code for answer in answers] == [200, 200, 429]
        assert "10 tokens per minute are used up" in answers[2].json()["error"]["message"]
        assert 1 <= int(answers[2].headers["retry-after"]) <= 60


def test_requests_of_a_caller_at_a_time(named, standins):
    server = named({**ENTRY, "streams": 1}, {"name": "b", "keys": [{"sha256": sha256(NEW)}]})
    sent = {"messages": [{"role": "user", "content": "hold this"}], "stream": True}
    with server.client(OLD) as client, server.client(NEW) as other:
        with client.stream("POST", "/v1/chat/completions", json=sent) as stream:
            chunks = stream.iter_raw()
            next(chunks)
            answer = client.get("/v1/models")
            assert (answer.status_code, "1 running request, the maximum" in answer.text) == (429, True)
            assert other.get("/v1/models").status_code == 200
            standins.go_on.set()
            list(chunks)
        assert wait_for(lambda: client.get("/v1/models").status_code == 200)


@pytest.mark.parametrize("options", [{}, {"stream": True}, {"stream": True, "stream_options": {"include_usage": True}}])
def test_tokens_are_charged_however_they_are_requested(named, options):
    server = named(ENTRY)
    with server.client(OLD) as client:
        answer = client.post("/v1/chat/completions", json={**HELLO, **options})
        assert (answer.status_code, '"usage"' in answer.text) == (200, options != {"stream": True})
        (row,) = client.get("/v1/usage").json()["data"]
    assert (row["model"], row["requests"], row["prompt_tokens"] + row["completion_tokens"]) == ("base", 1, 7)


def test_a_caller_who_disconnects_is_charged_for_what_was_sent(named, standins):
    server = named(ENTRY)
    sent = {"messages": [{"role": "user", "content": "hold this"}], "stream": True}
    with server.client(OLD) as client:
        with client.stream("POST", "/v1/chat/completions", json=sent) as stream:
            chunks = stream.iter_raw()
            next(chunks)
        rows = wait_for(lambda: client.get("/v1/usage").json()["data"])
    assert [(row["requests"], row["completion_tokens"]) for row in rows] == [(1, 1)]


def test_who_leaves_an_adapters_endpoint_is_charged_too(named, standins):
    server = named(ENTRY)
    with server.client(OLD) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/checklist", json={"text": "hold this"}, timeout=0.5)
        (row,) = wait_for(lambda: client.get("/v1/usage").json()["data"])
    assert (row["requests"], row["completion_tokens"]) == (1, 1)


def test_a_job_waits_for_its_callers_tokens(named, standins):
    server = named({**ENTRY, "tokens_per_minute": 10}, JOB_CONCURRENCY="2", JOB_ATTEMPTS="1")
    with server.client(OLD) as client:
        for number in range(4):
            # Held: a caller without tokens could not send the next job.
            sent = client.post("/v1/checklist", json={"text": "hold", "job_id": f"j{number}"})
            assert sent.status_code == 202
        standins.go_on.set()
        wait_for(lambda: client.get("/health").json()["jobs"]["delivered"] >= 2)
        time.sleep(0.5)
        assert client.get("/health").json()["jobs"]["queued"] == 2
    with sqlite3.connect(server.directory / "state/jobs.sqlite3") as store:  # the caller cannot query its jobs now
        tries = store.execute("SELECT attempts FROM jobs WHERE state = 'queued'").fetchall()
    assert tries == [(0,), (0,)]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_accounts_and_limits_survive_a_restart(named, how):
    server = named({**ENTRY, "requests_per_minute": 3}, {"name": "b", "keys": [{"sha256": sha256(NEW)}]})
    with server.client(OLD) as client, server.client(NEW) as other:
        assert client.post("/v1/checklist", json={"text": "x"}).status_code == 200
        other.post("/v1/checklist", json={"text": "x"})
        (row,) = client.get("/v1/usage").json()["data"]
        assert (row["model"], row["requests"], row["prompt_tokens"] + row["completion_tokens"]) == (
            "checklist-adapter",
            1,
            7,
        )

        def kept() -> bool:
            with sqlite3.connect(server.directory / "state/usage.sqlite3") as store:
                rows = store.execute("SELECT left FROM rates WHERE name = 'requests a'").fetchall()
            return bool(rows) and rows[0][0] < 2

        wait_for(kept, 5)
        server.stop(how)
        server.start()
        assert client.get("/v1/usage").json()["data"] == [row]
        assert client.get("/v1/models").status_code == 429


def test_an_invalid_period(client):
    for days in ("0", "401", "many"):
        answer = client.get(f"/v1/usage?days={days}")
        assert (answer.status_code, answer.json()["error"]["message"][:6]) == (400, "days: ")


def test_a_job_is_on_its_callers_account(named, standins):
    server = named(ENTRY)
    with server.client(OLD) as client:
        assert client.post("/v1/checklist", files={"file": pdf("x")}, data={"job_id": "j"}).status_code == 202
        wait_for(standins.callbacks)
        assert [row["requests"] for row in client.get("/v1/usage").json()["data"]] == [1]


def test_a_disk_that_is_full_keeps_the_counts(tmp_path):
    usage = Usage(tmp_path, {})
    usage.add("a", "m", 1, 2)
    usage._database.opened().execute("PRAGMA query_only = ON")
    usage.flush()
    usage.add("a", "m", 10, 20)
    usage._database.opened().execute("PRAGMA query_only = OFF")
    (row,) = usage.of("a", 1)
    assert (row["requests"], row["prompt_tokens"], row["completion_tokens"]) == (2, 11, 22)
    usage.close()


def test_guesses_are_slowed_down_and_right_keys_are_not(new_server):
    server = new_server(WRONG_KEYS_PER_MINUTE="3").start()
    with server.client("wrong-key-0123456789") as guess, server.client() as client:
        assert [guess.get("/v1/models").status_code for _ in range(4)] == [401, 401, 401, 429]
        assert client.get("/v1/models").status_code == 200


def test_a_clock_set_back_changes_no_quota():
    now = 100.0
    rate = Rate(60, clock=lambda: now)
    assert rate.wait("a") == 0
    now = 50.0
    assert rate.now("a") == 59
    now = 50.5
    assert rate.now("a") == 59.5, "it is refilled from the time that the clock has now"


def test_pages_of_an_origin_may_ask(new_server):
    server = new_server(CORS_ORIGINS="https://app.example").start()
    with server.client() as client:
        wanted = "authorization, x-stainless-retry-count"
        request = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": wanted}
        for origin, allowed in (("https://app.example", True), ("https://evil.example", False)):
            given = client.options("/v1/models", headers={"Origin": origin, **request, "Authorization": ""})
            assert (given.headers.get("access-control-allow-origin") == origin) == allowed
            assert given.status_code == (200 if allowed else 400), given.text
            answer = client.get("/v1/models", headers={"Origin": origin})
            assert ("access-control-allow-origin" in answer.headers) == allowed
        assert "x-ratelimit-limit-requests" in answer.headers
