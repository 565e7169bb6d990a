"""Several engines of two kinds on one host: an action on one does not affect the others."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

SCENARIO = Path(__file__).resolve().parents[1]
VARIABLES = yaml.safe_load((SCENARIO / "molecule.yml").read_text())["provisioner"]["inventory"]["group_vars"]["all"]
ENGINES = VARIABLES["engines"]
NAMES = [each["name"] for each in ENGINES]
KEYS = {"vllm": VARIABLES["vllm_api_key"], "llama_cpp": VARIABLES["llama_cpp_api_key"]}
ASK = """
import json, sys, urllib.error, urllib.request
url, key, body = json.load(sys.stdin)
headers = {"Content-Type": "application/json", "Authorization": "Bearer " + key}
try:
    answer = urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=60)
except urllib.error.HTTPError as error:
    answer = error
except OSError:
    sys.exit(print(json.dumps([0, ""])))
print(json.dumps([answer.status, answer.read().decode()]))
"""


def listed(*changes: dict) -> dict:
    """Return the scenario's list with entries changed by name; {"name": x, "gone": True} removes one."""
    entries = {each["name"]: deepcopy(each) for each in ENGINES}
    for change in changes:
        if change.get("gone"):
            del entries[change["name"]]
        else:
            entries[change["name"]] = {**entries.get(change["name"], {}), **change}
    return {"engines": list(entries.values())}


def pids(host, *names: str) -> dict[str, str]:
    """Return the main process of each engine."""
    return {name: host.check_output(f"systemctl show {name} --property MainPID --value") for name in names}


def completion(host, entry: dict) -> tuple[int, str]:
    """Return status and text of an engine's completion, requested on the machine."""
    model = entry.get("alias") or entry["model"]
    body = {"model": model, "prompt": "A rented home", "max_tokens": 8, "temperature": 0}
    arguments = json.dumps([f"http://127.0.0.1:{entry['port']}/v1/completions", KEYS[entry["kind"]], body])
    status, text = json.loads(host.check_output("echo %s | python3 -c %s", arguments, ASK))
    return status, json.loads(text)["choices"][0]["text"] if status == 200 else text


def serving(host, entries: list[dict]) -> None:
    for entry in entries:
        assert completion(host, entry)[0] == 200, entry["name"]


def until(holds: Callable[[], bool], seconds: float) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, f"not after {seconds:.0f} s"
        time.sleep(0.5)


@pytest.fixture
def others(host, converge):
    """Return a check that engines' processes are unchanged; finally, restore the scenario's engines."""

    def unchanged(*but: str) -> None:
        names = [name for name in NAMES if name not in but]
        assert pids(host, *names) == {name: before[name] for name in names}

    before = pids(host, *NAMES)
    assert "0" not in before.values(), before
    yield unchanged
    if pids(host, *NAMES) != before or host.run("systemctl is-enabled draft critic").stdout:
        outcome = converge()
        assert outcome.code == 0, outcome.message


def test_all_of_them_serve_and_give_the_same_text(host):
    texts = [completion(host, entry) for entry in ENGINES]
    assert [status for status, _ in texts] == [200] * len(ENGINES)
    assert len({text for _, text in texts}) == 1, texts  # one model in two formats, at temperature 0


def test_equal_engines_share_their_environment_and_nothing_else(host):
    venvs = {host.file(path).linked_to for path in ("/app/vllm-server/venv", "/app/vllm-server/engines/feedback/venv")}
    assert len(venvs) == 1
    for name in NAMES:
        assert host.file(f"/etc/{name}").mode == 0o750
        assert host.file(f"/etc/{name}/secrets.env").mode == 0o600


def test_they_started_in_the_order_of_the_list(host):
    starts = [
        int(host.check_output(f"systemctl show {name} --property ExecMainStartTimestampMonotonic --value"))
        for name in NAMES
    ]
    assert starts == sorted(starts)


def test_a_change_of_one_touches_no_other(host, converge, others):
    before = pids(host, "code")
    change = listed({"name": "code", "context": 256})
    outcome = converge(change)
    assert outcome.code == 0, outcome.message
    assert pids(host, "code") != before
    others("code")
    assert not converge(change).changed


def test_one_is_added_and_removed_again(host, converge, others):
    entry = {"name": "draft", "kind": "llama_cpp", "port": 8005, "alias": "draft"}
    outcome = converge(listed(entry))
    assert outcome.code == 0, outcome.message
    serving(host, [entry])
    others()
    outcome = converge()
    assert outcome.code == 0, outcome.message
    assert not host.file("/etc/draft").exists
    assert not host.file("/etc/systemd/system/draft.service").exists
    assert completion(host, entry)[0] == 0
    others()


@pytest.mark.full
def test_a_renamed_one_keeps_its_port_and_leaves_nothing(host, converge, others):
    new = {**ENGINES[1], "name": "critic"}
    outcome = converge(listed({"name": "feedback", "gone": True}, new))
    assert outcome.code == 0, outcome.message
    serving(host, [new])
    others("feedback")
    for path in ("/etc/feedback", "/app/vllm-server/engines/feedback/venv", "/etc/systemd/system/feedback.service"):
        assert not host.file(path).exists, path
    assert host.file("/app/vllm-server/venv").exists


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "code", "port": 8001}, "engines: code: llama_cpp_port and engines: vllm: vllm_port are both 8001"),
        ({"name": "code", "kind": "vllm"}, "engines: code has alias, which is not known"),
        ({"name": "code", "contxt": 1}, "engines: code has contxt, which is not known; did you mean context?"),
        ({"name": "code", "model": "/srv/models/none.gguf"}, "/srv/models/none.gguf"),
        ({"name": "code", "arguments": {"no-such-argument": 1}}, "no-such-argument"),
    ],
)
def test_bad_input_is_refused_before_an_engine_is_touched(converge, others, change, message):
    outcome = converge(listed({"name": "vllm", "max_model_len": 128}, change))
    assert outcome.code != 0
    assert message in outcome.message, outcome.message
    others()


def test_an_engine_that_does_not_serve_is_rolled_back_and_the_others_stay(host, converge, others):
    outcome = converge(listed({"name": "code", "context": 1 << 30, "start_timeout": 20}))
    assert outcome.code != 0
    assert outcome.message.startswith("code: release "), outcome.message
    assert "serves again" in outcome.message
    serving(host, ENGINES)
    others("code")


def test_one_that_dies_comes_back_and_the_others_stay(host, others):
    host.check_output("kill -9 %s", pids(host, "chat")["chat"])
    until(lambda: completion(host, ENGINES[2])[0] == 200, 60)
    others("chat")


@pytest.mark.full
def test_after_a_reboot_each_waits_for_those_before_it(host, restart):
    restart()
    until(lambda: all(completion(host, entry)[0] == 200 for entry in ENGINES), 300)
    for before, after in (("vllm", "feedback"), ("feedback", "chat")):
        lines = host.check_output("journalctl --boot --unit %s --output short-monotonic --no-pager", before)
        served = re.search(r"^\[ *([0-9.]+)\].*Application startup complete", lines, re.MULTILINE)
        started = int(host.check_output(f"systemctl show {after} --property ExecMainStartTimestampMonotonic --value"))
        assert served and started / 1e6 > float(served[1]), (after, started, lines[-2000:])


GROUP = listed({"name": "chat", "group": "evaluation"}, {"name": "feedback", "group": "evaluation"})


def state(host, name: str) -> tuple[str, str]:
    return host.run(f"systemctl is-active {name}").stdout.strip(), host.run(
        f"systemctl is-enabled {name}"
    ).stdout.strip()


@pytest.mark.full
def test_one_of_a_group_serves_and_a_switch_exchanges_them(host, converge, others):
    outcome = converge(GROUP)
    assert outcome.code == 0, outcome.message
    assert state(host, "chat") == ("inactive", "disabled")
    others("chat")
    outcome = converge({**GROUP, "to": "chat"}, playbook="switch.yml")
    assert outcome.code == 0, outcome.message
    assert (state(host, "chat"), state(host, "feedback")) == (("active", "enabled"), ("inactive", "disabled"))
    serving(host, [ENGINES[2]])
    others("chat", "feedback")
    assert not converge(GROUP).changed
    assert not converge({**GROUP, "to": "chat"}, playbook="switch.yml").changed


@pytest.mark.full
def test_a_switch_to_one_that_does_not_serve_comes_back(host, converge, others):
    assert converge(GROUP).code == 0
    broken = deepcopy(GROUP)
    broken["engines"][2] |= {"context": 1 << 30, "start_timeout": 20}
    outcome = converge({**broken, "to": "chat"}, playbook="switch.yml")
    assert outcome.code != 0
    assert "chat does not serve" in outcome.message and "feedback serves again" in outcome.message, outcome.message
    serving(host, [ENGINES[1]])
    others("chat", "feedback")
