"""Engines that take turns: three light stand-ins, in their own lists in addition to the scenario's engines."""

from __future__ import annotations

import json
import time

import pytest

KEY = "canary-turns-key-31415926"
NOTE = "/var/lib/llm-server/engines.json"
NAMES = ("turn-one", "turn-two", "turn-three")
ASK = """
import json, sys, urllib.error, urllib.request
url, key = sys.argv[1:]
headers = {"Authorization": f"Bearer {key}"} if key else {}
try:
    answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10)
except urllib.error.HTTPError as error:
    answer = error
except OSError as error:
    sys.exit(print(0))
print(answer.status)
"""
EVALUATE = """
import json, os, sys, urllib.request
body = {"model": os.environ["ENGINE_MODEL"], "prompt": "A home", "max_tokens": 3}
headers = {"Content-Type": "application/json", "Authorization": "Bearer " + os.environ["ENGINE_API_KEY"]}
request = urllib.request.Request(os.environ["ENGINE_URL"] + "/completions", json.dumps(body).encode(), headers)
print(os.environ["ENGINE_NAME"], json.load(urllib.request.urlopen(request, timeout=20))["model"])
print("key", os.environ["ENGINE_API_KEY"], file=sys.stderr)
sys.exit(3 if os.environ["ENGINE_NAME"] == sys.argv[1] else 0)
"""


@pytest.fixture(scope="module")
def turns(services):
    """Return the variables of three light engines of a group; ``dies`` cannot answer, ``sleep`` is its level."""

    def variables(dies=(), sleep=0, **more):
        light = services["light_engine"]
        engines = [
            {
                "name": name,
                "kind": "vllm",
                "port": 8101 + number,
                "model": f"lab/{name}",
                "group": "turns",
                "extra_packages": [light["0.32.0+dies" if name in dies else "0.32.0"]],
            }
            for number, name in enumerate(NAMES)
        ]
        own = {
            "api_key": KEY, "package": "vllm-light", "version": "0.32.0", "lock": "", "overrides": [], "gpu": False,
            "build_mib": 50, "start_timeout": 15, "stop_timeout": 5, "memory_plan": "off", "system_packages": [],
            "model_path": "/srv/models/tiny", "lora_adapters": [], "max_model_len": 512, "dtype": "float32",
            "engine_arguments": {}, "service_environment": {}, "trust_remote_code": False,
        }  # fmt: skip
        given = {"engines": [{**own, **each} for each in engines], "engine_groups": {"turns": {"sleep": sleep}}}
        return {**given, **more}

    return variables


@pytest.fixture(scope="module", autouse=True)
def cleanup(turns, converge):
    """Remove the engines of these tests at the end."""
    yield
    assert converge(turns(), playbook="leave_turns.yml").code == 0


@pytest.fixture
def switch(turns, converge):
    def run(to, **more):
        return converge(turns(to=to, **more), playbook="switch.yml")

    return run


def pids(host, *names):
    return {name: host.check_output("systemctl show %s --property MainPID --value", name) for name in names}


def states(host):
    found = json.loads(host.file(NOTE).content_string) if host.file(NOTE).exists else {}
    return {name: found[name]["state"] for name in NAMES if name in found}


def status(host, name, path, key=KEY):
    port = 8101 + NAMES.index(name)
    return int(host.check_output("python3 -c %s %s %s", ASK, f"http://127.0.0.1:{port}{path}", key))


def others(host):
    """Return the processes of the scenario's own engines."""
    listed = host.file("/var/lib/llm-server/engine_list.json")
    names = [each["name"] for each in json.loads(listed.content_string)] if listed.exists else []
    return pids(host, *(name for name in names if name not in NAMES))


def test_a_switch_starts_one_and_stops_the_rest_and_twice_changes_nothing(host, switch):
    before = others(host)
    outcome = switch("turn-one")
    assert outcome.code == 0, outcome.message
    assert status(host, "turn-one", "/v1/models") == 200
    assert states(host) == {"turn-two": "stopped", "turn-three": "stopped"}
    again = switch("turn-one")
    assert (again.code, again.changed) == (0, [])
    assert others(host) == before


def test_there_and_back(host, switch):
    for to, other in (("turn-two", "turn-one"), ("turn-one", "turn-two")):
        outcome = switch(to)
        assert outcome.code == 0, outcome.message
        assert status(host, to, "/v1/models") == 200 and not host.service(other).is_running
        assert host.service(to).is_enabled and not host.service(other).is_enabled
    assert host.file(NOTE).mode == 0o644


def test_a_release_that_does_not_serve_is_rolled_back(host, switch):
    outcome = switch("turn-three", dies=("turn-three",))
    assert outcome.code != 0
    assert outcome.message.startswith("turn-three does not serve:")
    assert outcome.message.endswith("Now turn-one serves again.")
    assert status(host, "turn-one", "/v1/models") == 200
    assert states(host) == {"turn-two": "stopped", "turn-three": "stopped"}
    assert not host.service("turn-three").is_running and not host.service("turn-three").is_enabled


@pytest.mark.full
def test_the_choice_outlives_a_reboot(host, switch, restart):
    assert switch("turn-two").code == 0
    restart()
    end = time.monotonic() + 120
    while status(host, "turn-two", "/v1/models") != 200:
        assert time.monotonic() < end
        time.sleep(1)
    assert not host.service("turn-one").is_running


@pytest.mark.full
@pytest.mark.parametrize("run_on", ["controller", "host"])
def test_a_command_runs_against_each_and_the_one_before_serves_again(
    host, turns, switch, converge, tmp_path, run_on
):  # fmt: skip
    assert switch("turn-two").code == 0
    script = tmp_path / "evaluate.py"
    script.write_text(EVALUATE)
    if run_on == "host":
        # The login user runs it.
        host.check_output("printf %%s %s > /srv/evaluate.py && chmod 644 /srv/evaluate.py", EVALUATE)
    program = str(script) if run_on == "controller" else "/srv/evaluate.py"
    given = {"group": "turns", "command": f"python3 {program} turn-two", "run_on": run_on}
    outcome = converge(turns(**given, run_directory=str(tmp_path / "runs")), playbook="one_after_another.yml")
    assert outcome.code != 0 and "turn-two: exit code 3" in outcome.message
    assert "turn-one" not in outcome.message
    (folder,) = (tmp_path / "runs").iterdir()
    for name in NAMES:
        log = (folder / f"{name}.log").read_text()
        assert f"\n{name} lab/{name}\n" in log and "key ********" in log
    summary = json.loads((folder / "summary.json").read_text())
    assert {each["engine"]: each["rc"] for each in summary["engines"]} == {NAMES[0]: 0, NAMES[1]: 3, NAMES[2]: 0}
    assert KEY not in outcome.text + (folder / "summary.json").read_text()
    assert status(host, "turn-two", "/v1/models") == 200
    assert states(host) == {"turn-one": "stopped", "turn-three": "stopped"}


@pytest.mark.full
class TestSleep:
    def test_one_falls_asleep_and_wakes_as_the_same_process(self, host, switch):
        assert switch("turn-one").code == 0
        # When sleep is enabled for the first time, the serving engine is restarted with it.
        assert switch("turn-one", sleep=1).code == 0
        before = pids(host, "turn-one")
        outcome = switch("turn-two", sleep=1)
        assert outcome.code == 0, outcome.message
        assert states(host)["turn-one"] == "asleep"
        assert pids(host, "turn-one") == before and not host.service("turn-one").is_enabled
        outcome = switch("turn-one", sleep=1)
        assert outcome.code == 0, outcome.message
        assert pids(host, "turn-one") == before and host.service("turn-one").is_enabled
        assert states(host) == {"turn-two": "asleep", "turn-three": "stopped"}

    @pytest.mark.parametrize("path", ["/is_sleeping", "/sleep", "/collective_rpc", "/nothing"])
    def test_its_routes_require_the_key(self, host, path):
        assert status(host, "turn-one", path, key="") == 401
        assert status(host, "turn-one", path) in (200, 404)
        assert status(host, "turn-one", "/health", key="") == 200

    def test_one_that_sleeps_and_dies_does_not_come_back_awake(self, host):
        host.check_output("systemctl kill --signal KILL turn-two")
        time.sleep(15)  # RestartSec is 10
        assert not host.service("turn-two").is_running
