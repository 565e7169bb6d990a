"""What is restarted in an incident, what is left alone, and when an earlier release is started again."""

from __future__ import annotations

import json
import os
from types import SimpleNamespace

import pytest

from plugins.module_utils.incident import recovery
from plugins.module_utils.release import rollback
from plugins.module_utils.release.description import Refused


class Service:
    """A service of a host: its notes, and the actions on it."""

    unit, name = "vllm.service", "vllm"

    def __init__(self, store):
        self.store, self.done = store, []
        self.noted = {"current": "new", "verified": ["old", "new"], "failed": None, "blocked": None}
        self.links, self.changed, self.faults, self.before_start = [], [], [], []

    def state(self):
        return dict(self.noted)

    def release(self, name):
        return {"links": self.links} if name else {}

    def proof_of(self, _):
        return {"probes": [{}], "before_start": self.before_start, "start_timeout": 300}

    def differences(self, _):
        return [{"what": what} for what in self.changed]

    def altered(self, _):
        return self.faults, []

    def start(self, conditions, regardless):
        self.done.append((conditions, regardless))

    def served_last(self):
        return self.noted["current"] == (self.noted["verified"] or [None])[-1]

    def earlier(self):
        others = [name for name in self.noted["verified"] if name != self.noted["current"]]
        if not others:
            raise Refused("nothing to go back to")
        return others[-1]


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host with one service; ``why`` is the probes' result, ``shown`` systemd's, ``told`` the budget's."""
    there = SimpleNamespace(
        service=Service(tmp_path), why=None, told={"granted": True, "left": 2}, asked=[], pages=[], age=9000
    )
    there.shown = {"ActiveState": "active", "Result": "success"}

    def show(_):
        begun = (recovery.time.monotonic() - there.age) * 1e6
        return {**there.shown, "ExecMainStartTimestampMonotonic": str(int(begun))}

    def spend(unit):
        there.asked.append(unit)
        return there.told

    monkeypatch.setattr(recovery.systemd_unit, "show", show)
    monkeypatch.setattr(recovery.probes, "first_failure", lambda *_: there.why)
    for package, names in (
        (recovery.contents, ["differences"]),
        (recovery.checks, ["altered"]),
        (recovery.serving, ["start"]),
        (rollback, ["served_last", "earlier"]),
    ):
        for name in names:
            monkeypatch.setattr(package, name, getattr(Service, name))
    monkeypatch.setattr(recovery, "spend", spend)
    monkeypatch.setattr(recovery, "produced", lambda _: there.pages.pop(0) if there.pages else None)
    monkeypatch.setattr(recovery, "WATCHED", 0)
    monkeypatch.setattr(recovery, "METRICS", str(tmp_path / "page"))
    return there


def recover(host, check_mode=False):
    return recovery.recover(host.service, "http://127.0.0.1:1/metrics", check_mode)


def test_one_that_serves_is_left_alone(host):
    result = recover(host)
    assert (result["serves"], result["found"], result["changed"], host.asked) == (True, "it serves", False, [])


def test_a_service_with_changed_files_is_reported(host):
    host.service.changed = ["/etc/vllm/config.yaml"]
    result = recover(host)
    assert result["found"] == "it serves; not as its release wrote it: /etc/vllm/config.yaml"
    assert result["next"] == "run site.yml" and not host.service.done


def test_one_that_hangs_is_restarted_once_with_its_conditions(host):
    host.why, host.service.before_start = "http://x: no answer in time", [{"gpu_free": {"mib": 1}}]
    result = recover(host)
    assert host.service.done == [([{"gpu_free": {"mib": 1}}], True)]
    assert result["did"] == "restarted it, GPU memory was free (2 restarts left)"
    assert result["await"] and result["changed"] and result["serves"] is False


def test_one_that_does_not_run_is_restarted(host):
    host.shown = {"ActiveState": "failed", "Result": "exit-code"}
    result = recover(host)
    assert result["found"] == "vllm.service is failed (exit-code)"
    assert len(host.service.done) == 1


def test_memory_that_is_not_free_is_reported_with_its_holder(host):
    host.why, host.service.before_start = "refused", [{"gpu_free": {"mib": 1}}]
    host.service.noted["blocked"] = "GPU 0 has 1 MiB free (held by x)"
    assert "GPU memory was not free: GPU 0 has 1 MiB free (held by x)" in recover(host)["did"]


def test_a_busy_engine_is_left_alone_and_a_stuck_one_is_not(host):
    host.why, host.pages = "completion: no answer in time", [10, 11]
    result = recover(host)
    assert result["serves"] is True and "busy" in result["found"] and not host.service.done
    host.pages = [11, 11]
    assert recover(host)["changed"]


def test_tokens_do_not_excuse_a_wrong_answer(host):
    host.why, host.pages = "http://x answered 500 instead of 200", [10, 11]
    assert recover(host)["changed"]


def test_a_start_is_waited_for_unless_this_process_has_served(host, tmp_path):
    host.why, host.age = "connection refused", 120
    result = recover(host)
    assert result["await"] and result["watch"] and not result["changed"] and not host.asked
    (tmp_path / "page").write_text('llm_watchdog_ready{unit="vllm.service"} 1\n')
    assert recover(host)["changed"]
    host.age = 30  # the page may be about the earlier process
    assert not recover(host)["changed"]


def test_no_restart_without_a_budget(host):
    host.why, host.told = "refused", {"granted": False, "why": "3 restarts did not help"}
    result = recover(host)
    assert result["did"] == "no restart: 3 restarts did not help"
    assert not result["await"] and not host.service.done


@pytest.mark.parametrize("kind", ["masked", "gone"])
def test_what_no_restart_cures_costs_no_budget(host, kind):
    host.why = "refused"
    if kind == "masked":
        host.service.faults = ["/etc/systemd/system/vllm.service masks the unit"]
    else:
        host.service.links = [{"target": "/nonexistent/venv"}]
    result = recover(host)
    assert ("masks the unit" if kind == "masked" else "/nonexistent/venv is gone") in result["found"]
    assert result["next"] == "cure that, then run site.yml"
    assert not host.asked and not host.service.done


def test_check_mode_touches_nothing(host):
    host.why = "refused"
    result = recover(host, check_mode=True)
    assert result["did"] == "would restart it" and result["changed"] and not host.asked and not host.service.done


def test_one_that_is_not_here(host):
    host.service.noted["current"] = None
    assert recover(host)["serves"] is None


# -- the budget --


@pytest.fixture
def watchdog(tmp_path, monkeypatch):
    """A watchdog that returns ``answers``."""
    answers = []
    program = tmp_path / "watchdog.py"
    program.touch()
    monkeypatch.setattr(recovery, "WATCHDOG", ("/usr/bin/python3", "-I", str(program), "settings"))
    monkeypatch.setattr(recovery.subprocess, "run", lambda *_, **__: SimpleNamespace(stdout=answers.pop(0)))
    return SimpleNamespace(answers=answers, program=program)


def test_the_pause_is_waited_for_within_reason(watchdog):
    watchdog.answers += ['{"granted": false, "wait": 0}', '{"granted": true, "left": 1}']
    assert recovery.spend("a.service") == {"granted": True, "left": 1}
    watchdog.answers += ['{"granted": false, "wait": 900}']
    assert recovery.spend("a.service")["why"] == "it was restarted a moment ago; run again in 900 s"


def test_a_budget_that_cannot_be_read_allows_nothing(watchdog):
    watchdog.answers += ["no JSON"]
    result = recovery.spend("a.service")
    assert not result["granted"] and "run site.yml -t watchdog" in result["why"]


def test_a_host_without_a_watchdog_has_no_budget(watchdog):
    watchdog.program.unlink()
    assert recovery.spend("a.service") == {"granted": True}


# -- whether the release is the cause --

ENGINE = [{"area": "engine", "says": "an adapter does not fit."}]


def written(host, age):
    (host.service.store / "releases").mkdir()
    path = host.service.store / "releases" / "new.json"
    path.write_text(json.dumps({}))
    os.utime(path, (1e9 - age, 1e9 - age))


@pytest.mark.parametrize(
    ("noted", "age", "causes", "target"),
    [
        ({}, 3600, ENGINE, "old"),
        ({}, 3600, [{"area": "gpu", "says": "the GPU fell off the bus."}], None),
        ({}, 3600, [], None),
        ({}, 90000, ENGINE, None),
        ({"verified": ["old"]}, 90000, [], "old"),
        ({"verified": ["new"]}, 3600, ENGINE, None),
        ({"failed": "old"}, 3600, ENGINE, None),
    ],
)
def test_the_release_to_go_back_to(host, noted, age, causes, target):
    host.service.noted |= noted
    written(host, age)
    assert rollback.to_go_back_to(host.service, causes, 1e9)["target"] == target


def test_an_engine_that_another_one_serves_instead_of_is_left_alone(host, monkeypatch):
    host.why = "connection refused"
    monkeypatch.setattr(recovery, "other_serves", lambda name: "it is stopped, feedback serves instead")
    result = recover(host)
    assert result["serves"] is None and result["found"] == "it is stopped, feedback serves instead"
    assert not host.service.done


def test_what_serves_instead_of_an_engine_is_read_from_the_note(tmp_path):
    tree = recovery.host_text.Tree(tmp_path)
    assert recovery.other_serves("chat", tree) == ""
    note = {"chat": {"state": "asleep", "instead": "feedback", "since": "2026-11-27T02:00:00Z", "level": 1}}
    tree.write(recovery.engine_states.NOTE, recovery.engine_states.text_of(note))
    assert recovery.other_serves("chat", tree) == "it is asleep, feedback serves instead"
    assert recovery.other_serves("feedback", tree) == ""
    tree.write(recovery.engine_states.NOTE, "not JSON")
    assert recovery.other_serves("chat", tree) == ""
