"""Test several engines: the choice for a request, engines that are switched off or unreachable, table changes."""

import hashlib
import json
import socket
import time

import httpx
import pytest

from app.callers import Callers, CallersError
from app.errors import Problem
from app.table import Table, TableError
from conftest import CALLER, VLLM_KEY
from standins import StandIns, wait_for
from test_chat import body
from test_service import lines
from test_settings import run  # noqa: F401 - a fixture

CHAT = "/v1/chat/completions"
ADAPTERS = ["easycontract-adapter", "checklist-adapter"]
STOPPED = {"feedback": {"state": "stopped", "instead": "chat", "since": "2026-11-27T02:00:00Z"}}
WHY = "stopped: chat runs instead (group evaluation)"


def written(path, content: object) -> None:
    """Replace the file atomically, as an editor and the role do."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(content))
    beside.replace(path)


def entry(name: str, url: str = "http://127.0.0.1:9/v1", **fields: object) -> dict:
    return {"name": name, "url": url, "api_key": f"key-of-{name}", "models": [f"model-of-{name}"], **fields}


@pytest.fixture
def file(tmp_path):
    return tmp_path / "engines.json"


@pytest.fixture
def states(tmp_path):
    return tmp_path / "states.json"


# Only the table


def test_a_model_is_found_at_its_engine(file):
    written(file, {"engines": [entry("chat", models=["base", "adapter"]), entry("feedback")]})
    table = Table(file, None)
    assert [table.find(model).name for model in ("base", "adapter", "model-of-feedback")] == [
        "chat",
        "chat",
        "feedback",
    ]
    for model in ("other", None, ["base"], {}):
        with pytest.raises(Problem) as unknown:
            table.find(model)
        assert unknown.value.status_code == 404
    assert "key-of-chat" not in repr(table.entries)


def test_all_errors_are_reported_at_once_without_a_key(file):
    engines = [
        entry("chat", models=["base", "twice"]),
        entry("chat", "http://127.0.0.1:8002", models=["twice"]),
        entry("Feed Back", "ftp://x/v1", models=[]),
        {**entry("code", group="a b"), "port": 8004, "api_key": "with a space"},
        entry("own", api_key=CALLER),
        "text",
    ]
    written(file, {"engines": engines})
    with pytest.raises(TableError) as refused:
        Table(file, None, lambda key: key == CALLER)
    message = str(refused.value)
    for part in (
        "the name chat occurs twice",
        "the model twice occurs twice",
        "engines.1.url is 'http://127.0.0.1:8002', which does not end in /v1",
        "engines.2.name ",
        "engines.2.url is 'ftp://x/v1', which is not an http",
        "engines.2.models ",
        "engines.3.group ",
        "engines.3.port ",
        "engines.3.api_key has characters that an HTTP header cannot carry",
        "own has a caller's key as its api_key",
        "engines.5 ",
    ):
        assert part in message, message
    assert "\n" not in message and CALLER not in message and "key-of" not in message and "with a space" not in message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[]", 'write {"engines": [...]}'),
        (b'{"engines": []}', "with at least one engine"),
        (b'{"engines": [{}], "more": 1}', "no other keys"),
        (None, "cannot be read: No such file"),
    ],
)
def test_a_file_that_is_not_a_table(file, content, message):
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(TableError, match=f"^{file}"):
        Table(file, None)
    with pytest.raises(TableError) as refused:
        Table(file, None)
    assert message in str(refused.value)


def test_the_files_are_read_again_and_bad_ones_change_nothing(file, states):
    now = 0.0
    written(file, {"engines": [entry("chat")]})
    table = Table(file, states, clock=lambda: now)
    written(file, {"engines": [entry("chat"), entry("feedback", group="evaluation")]})
    written(states, STOPPED)
    table.look()
    assert not table.serves("model-of-feedback"), "they are not looked at for every request"
    now = 2.0
    table.look()
    assert table.off_for("model-of-feedback") == WHY
    file.write_text("{")
    states.write_text('{"feedback": {"state": "tired"}}')
    now = 4.0
    table.look()
    assert table.off_for("model-of-feedback") == WHY
    assert "engines.json is not JSON; the previous engines stay in effect; " in table.trouble
    assert "Input should be 'stopped' or 'asleep'; the previous states stay in effect" in table.trouble
    written(file, {"engines": [entry("feedback")]})
    states.unlink()
    now = 6.0
    table.look()
    assert (list(table.entries), table.trouble, table.off("feedback")) == (["feedback"], "", "")


def test_states_give_the_reason(file, states):
    written(file, {"engines": [entry("chat", group="evaluation"), entry("code")]})
    stopped = {"state": "stopped"}
    written(states, {"chat": {"state": "asleep", "instead": "code", "level": 1}, "code": stopped, "gone": stopped})
    table = Table(file, states)
    assert (table.off("chat"), table.off("code")) == ("asleep: code runs instead (group evaluation)", "stopped")
    with pytest.raises(Problem) as off:
        table.find("model-of-code")
    assert (off.value.status_code, off.value.detail) == (503, "code is stopped.")


def test_unreadable_states_stop_no_request(file, states):
    written(file, {"engines": [entry("chat")]})
    states.write_text("{")
    table = Table(file, states)
    assert table.find("model-of-chat").name == "chat" and "Invalid JSON" in table.trouble


def test_callers_get_no_engines_key_later_either(tmp_path):
    now, file = 0.0, tmp_path / "callers.json"

    def callers(*keys: str) -> dict:
        digests = [{"sha256": hashlib.sha256(key.encode()).hexdigest()} for key in keys]
        return {"callers": [{"name": "a", "keys": digests}]}

    written(file, callers("a-good-key-012345"))
    known = Callers([CALLER], file, VLLM_KEY, clock=lambda: now)
    known.engine_keys = lambda: ["key-of-chat"]
    assert known.have("a-good-key-012345") and known.have(CALLER) and not known.have("key-of-chat")
    written(file, callers("a-good-key-012345", "key-of-chat"))
    now = 2.0
    assert known.name("Bearer key-of-chat") is None
    assert "has an engine's key among its keys" in known.trouble
    with pytest.raises(CallersError):
        written(file, callers(VLLM_KEY))
        Callers([], file, VLLM_KEY)


# The server


@pytest.fixture(scope="session")
def running_second():
    with StandIns() as standins:
        yield standins


@pytest.fixture
def second(running_second):
    """Yield the stand-in of a second engine."""
    running_second.reset()
    running_second.models = ["small", *ADAPTERS]
    yield running_second
    running_second.go_on.set()


@pytest.fixture
def two(new_server, standins, second, file, states):
    """Return a function that starts a server with two engines: chat, and feedback with the adapters."""
    chat = entry("chat", f"{standins.url}/v1", models=["base", "chat-adapter"], group="evaluation")
    feedback = entry("feedback", f"{second.url}/v1", models=["small", *ADAPTERS], group="evaluation")

    def start(**settings: str):
        written(file, {"engines": [chat, feedback]})
        files = {"ENGINES_FILE": str(file), "ENGINE_STATES_FILE": str(states)}
        return new_server(VLLM_BASE_URL="http://127.0.0.1:9/v1", **files, **settings).start()

    start.chat, start.feedback = chat, feedback
    return start


def test_each_request_goes_to_the_engine_of_its_model(two, standins, second):
    server = two()
    with server.client() as client:
        assert client.post(CHAT, json=body("hello")).status_code == 200, "without a model it is VLLM_MODEL"
        assert client.post(CHAT, json=body("hello", model="small")).json()["model"] == "small"
        assert b"small" in client.post(CHAT, json=body("hello", model="small", stream=True)).content
        assert client.post("/v1/checklist", json={"text": "hello"}).json()["model"] == "checklist-adapter"
        assert client.post("/v1/easy-contract", json={"text": "x", "job_id": "j"}).status_code == 202
        server.job("j", "delivered")
        usage = client.get("/v1/usage").json()["data"]
        page = client.get("/metrics").text
    requests = [[request for request in each.asked if request["path"] == CHAT] for each in (standins, second)]
    assert [request["body"]["model"] for request in requests[0]] == ["base"]
    assert [request["body"]["model"] for request in requests[1]] == ["small", "small", *reversed(ADAPTERS)]
    assert {request["headers"]["authorization"] for request in requests[0]} == {"Bearer key-of-chat"}
    assert {request["headers"]["authorization"] for request in requests[1]} == {"Bearer key-of-feedback"}
    assert {row["model"] for row in usage} == {"base", "small", *ADAPTERS}
    assert 'engine="feedback",kind="completion",model="small"' in page and 'engine="chat"' in page
    server.stop()
    entries = [line for line in lines(server.directory / "log/ai-server.log") if line["message"] == "request"]
    assert [line["engine"] for line in entries if line["path"] == CHAT] == ["chat", "feedback", "feedback"]
    assert "key-of" not in server.output()


def test_an_unknown_model_has_no_engine(two, standins, second):
    with two().client() as client:
        answer = client.post(CHAT, json=body("hello", model="other"))
        assert answer.json()["error"] == {
            "message": "The model 'other' does not exist.",
            "type": "Not Found",
            "code": 404,
        }
        assert client.post(CHAT, json=body("hello", model=["base"])).status_code == 404
        assert client.get("/v1/models/other").status_code == 404
    assert [each.asked for each in (standins, second) if CHAT in str(each.asked)] == []


def test_the_list_is_of_all_that_serve(two, standins, second, states):
    standins.models = ["base", "chat-adapter", "not-in-the-table"]
    with two().client() as client:

        def listed() -> list[str]:
            return [model["id"] for model in client.get("/v1/models").json()["data"]]

        assert listed() == ["base", "chat-adapter", "small", *ADAPTERS]
        assert client.get("/v1/models/small").json()["id"] == "small"
        second.models = ["small"]
        assert listed() == ["base", "chat-adapter", "small"], "what it has not loaded it does not serve"
        written(states, STOPPED)
        wait_for(lambda: listed() == ["base", "chat-adapter"])
        off = client.get("/v1/models/small")
        assert (off.status_code, off.json()["error"]["message"]) == (503, f"feedback is {WHY}.")


def test_an_engine_switched_off_gives_the_reason(two, states, standins, second):
    written(states, STOPPED)
    server = two()
    with server.client() as client:
        for path, sent in ((CHAT, body("hello", model="small")), ("/v1/checklist", {"text": "hello"})):
            answer = client.post(path, json=sent)
            assert (answer.status_code, answer.json()["error"]["message"]) == (503, f"feedback is {WHY}.")
            assert int(answer.headers["retry-after"]) > 0 and answer.headers["x-should-retry"] == "false"
        assert client.post(CHAT, json=body("hello")).status_code == 200
        health = client.get("/health").json()
        assert (health["status"], health["engines"]) == ("ok", {"chat": "ok", "feedback": WHY})
        assert "vllm" not in health
        assert client.get("/health/ready").status_code == 200
    assert second.asked == []


def test_jobs_of_an_engine_that_is_switched_off_wait_without_a_try(two, states, second):
    written(states, STOPPED)
    server = two(JOB_ATTEMPTS="1")
    with server.client() as client:
        assert client.post("/v1/checklist", json={"text": "hello", "job_id": "j"}).status_code == 202
        time.sleep(1)
        job = client.get("/v1/jobs/j").json()
        assert (job["state"], job["attempts"], second.asked) == ("queued", 0, [])
        states.unlink()
        assert server.job("j", "delivered")["outcome"]["status"] == "completed"


def test_an_engine_that_is_down_is_named_and_the_other_serves(two, file):
    two.feedback["url"] = "http://127.0.0.1:9/v1"
    server = two()
    with server.client() as client:
        for path, sent in ((CHAT, body("hello", model="small")), ("/v1/checklist", {"text": "hello"})):
            answer = client.post(path, json=sent)
            assert (answer.status_code, int(answer.headers["retry-after"])) == (503, 10)
            assert answer.json()["error"]["message"].startswith("feedback is not reachable")
        assert client.post(CHAT, json=body("hello")).status_code == 200
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["base"]
        assert client.get("/v1/models/small").status_code == 503
        health, ready = client.get("/health"), client.get("/health/ready")
        assert (health.status_code, health.json()["status"], ready.status_code) == (200, "degraded", 200)
        assert health.json()["engines"] == {"chat": "ok", "feedback": "away: ConnectError"}
        written(file, {"engines": [two.feedback]})
        wait_for(lambda: client.get("/health/ready").status_code == 503)
        none = client.get("/v1/models")
        assert (none.status_code, none.json()["error"]["message"]) == (503, "No engine answers; try again later.")
    assert "no engine of ENGINES_FILE serves base, which VLLM_MODEL names" in server.output()


def test_an_engine_that_hangs_does_not_hold_up_the_list(two):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        two.feedback["url"] = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with two().client() as client:
            assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["base"]


def test_an_adapter_of_no_engine_is_the_operators_to_load(two):
    two.feedback["models"] = ["small"]
    with two().client() as client:
        answer = client.post("/v1/checklist", json={"text": "hello"})
        assert (answer.status_code, answer.json()["error"]["message"]) == (
            502,
            "No engine serves 'checklist-adapter'; the operator must load it.",
        )


def test_an_engine_that_refuses_its_key_is_named(two):
    with two().client() as client:
        answer = client.post(CHAT, json=body("wrong key"))
        assert answer.status_code == 502
        assert "must correct the api_key of chat in ENGINES_FILE" in answer.json()["error"]["message"]


def test_models_of_a_key_are_those_of_all_engines(two, tmp_path):
    callers = tmp_path / "callers.json"
    digest = hashlib.sha256(b"a-named-key-012345").hexdigest()
    written(callers, {"callers": [{"name": "a", "keys": [{"sha256": digest}], "models": ["small"]}]})
    with two(CALLERS_FILE=str(callers)).client("a-named-key-012345") as client:
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["small"]
        assert client.post(CHAT, json=body("hello", model="small")).status_code == 200
        assert client.post(CHAT, json=body("hello", model="base")).status_code == 404
        assert client.get("/v1/models/base").status_code == 404


def test_a_stream_goes_on_when_the_table_changes(two, file, standins, second):
    server = two()
    with server.client() as client:
        with client.stream("POST", CHAT, json=body("hold this", stream=True)) as response:
            chunks = response.iter_raw()
            next(chunks)
            moved = [{**two.chat, "url": f"{second.url}/v1", "models": ["moved"]}]
            written(file, {"engines": moved})
            wait_for(lambda: client.post(CHAT, json=body("hello", model="moved")).status_code == 200)
            assert client.post(CHAT, json=body("hello", model="base")).status_code == 404
            standins.go_on.set()
            assert b"".join(chunks).endswith(b"data: [DONE]\n\n")
        file.write_text("{")
        trouble = wait_for(lambda: client.get("/health").json().get("engines_file"))
        assert "is not JSON; the previous engines stay in effect" in trouble
        assert client.post(CHAT, json=body("hello", model="moved")).status_code == 200
    assert "a file of engines cannot be used" in server.output()
    assert standins.left == []


def test_a_table_has_no_effect_on_a_server_without_it(server):
    assert "engines" not in httpx.get(f"{server.url}/health").json()


def test_check_reports_all_problems_of_the_files(run, file, tmp_path):  # noqa: F811
    written(file, {"engines": [entry("chat", "http://127.0.0.1:8001"), entry("chat", api_key=CALLER)]})
    status, out, err = run("app.check", ENGINES_FILE=str(file), CALLERS_FILE=str(tmp_path / "none.json"))
    assert (status, out, err.count("\n")) == (78, "", 1)
    for part in (
        "CALLERS_FILE: ",
        "ENGINES_FILE: ",
        "engines.0.url is",
        "the name chat occurs twice",
        "has a caller's key",
    ):
        assert part in err, err
    assert CALLER not in err
    written(file, {"engines": [entry("chat")]})
    assert run("app.check", ENGINES_FILE=str(file), ENGINE_STATES_FILE=str(tmp_path / "none.json"))[0] == 0
    assert "ENGINE_STATES_FILE has no effect without ENGINES_FILE" in run("app.check", ENGINE_STATES_FILE="x")[2]
