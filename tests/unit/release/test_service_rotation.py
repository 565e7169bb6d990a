"""A host leaves rotation only for an interruption, and returns when its service serves."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from plugins.action.service_release import ActionModule
from plugins.plugin_utils import service

READY = {"ready": True, "elapsed": 1.0}
DEAD = {"dead": True, "why": "its process left", "journal": ["a line"], "elapsed": 1.0}


@pytest.fixture
def task(tmp_path, monkeypatch):
    """A task whose steps answer as the test sets; `said` has the steps and hooks in their order."""
    said, limits, note = [], [], tmp_path / "note"

    def hook(word: str) -> list[str]:
        return [sys.executable, "-c", f"open({str(note)!r}, 'a').write('{word} ')"]

    def make(answers: dict, check_mode: bool = False, **args) -> ActionModule:
        action = ActionModule.__new__(ActionModule)
        names = {"name": "app", "drain_command": hook("OUT"), "restore_command": hook("IN"), **args}
        action._task = SimpleNamespace(args=names, check_mode=check_mode)
        looks = list(answers.pop("looks", []))

        def step(name, task_vars, **extra):
            said.append(name)
            limits.append(extra.get("start_timeout"))
            return dict(looks.pop(0)) if name == "poll" else dict(answers.get(name, {"changed": False}))

        action.step = step
        action.apply = lambda task_vars: step("apply", task_vars)
        action.same = lambda task_vars: None
        return action

    monkeypatch.setattr(service.ActionBase, "run", lambda *_: {})
    return SimpleNamespace(
        make=make, said=said, limits=limits, hooks=lambda: note.read_text().split() if note.exists() else []
    )


def run(action: ActionModule) -> dict:
    return action.run(task_vars={"inventory_hostname": "gpu-1"})


APPLIED = {"changed": True, "release": "new", "restarted": "changed", "await": True, "may_roll_back": True, "out": True}
BACK = {"changed": True, "rolled_back_to": "old"}


def test_an_interruption_happens_out_of_rotation(task):
    result = run(task.make({"preview": {"interrupts": True}, "apply": APPLIED, "looks": [READY]}))
    assert task.said == ["preview", "drain", "apply", "poll", "confirm", "restore"]
    assert task.hooks() == ["OUT", "IN"]
    assert (result["rotation"], result.get("failed")) == ("back", None)


def test_a_run_without_an_interruption_calls_no_hook(task):
    quiet = {"changed": False, "release": "old", "restarted": None, "await": False, "out": False}
    assert run(task.make({"preview": {"interrupts": False}, "apply": quiet}))["changed"] is False
    assert task.hooks() == []


def test_what_is_refused_leaves_the_host_in_rotation(task):
    result = run(task.make({"preview": {"failed": True, "msg": "app: port 80 is taken"}}))
    assert result["msg"] == "app: port 80 is taken" and task.said == ["preview"] and task.hooks() == []


def test_a_host_that_cannot_leave_is_not_touched(task):
    fails = [sys.executable, "-c", "raise SystemExit('no such backend.')"]
    result = run(task.make({"preview": {"interrupts": True}}, drain_command=fails))
    assert result["failed"] and "apply" not in task.said
    assert result["msg"] == (
        "app: drain_command failed, so nothing was changed: no such backend. Correct it and run again."
    )


def test_a_missing_hook_is_reported(task):
    result = run(task.make({"preview": {"interrupts": True}}, drain_command=["/nowhere/hook"]))
    assert result["failed"] and "No such file or directory: '/nowhere/hook'" in result["msg"]


def test_the_release_before_serves_in_rotation(task):
    answers = {"preview": {"interrupts": True}, "apply": APPLIED, "looks": [DEAD, READY], "roll_back": BACK}
    result = run(task.make(answers))
    assert result["failed"] and result["msg"].endswith("Now release old serves again.")
    assert task.hooks() == ["OUT", "IN"] and result["rotation"] == "back"


def test_a_host_that_does_not_serve_stays_out(task):
    answers = {"preview": {"interrupts": True}, "apply": APPLIED, "looks": [DEAD, DEAD], "roll_back": BACK}
    result = run(task.make(answers))
    assert result["failed"] and result["msg"].endswith("The host stays out of rotation until a run ends well.")
    assert task.hooks() == ["OUT"]


def test_the_next_run_puts_back_what_an_interrupted_one_left_out(task):
    quiet = {"changed": False, "release": "old", "restarted": None, "await": False, "out": True}
    result = run(task.make({"preview": {"interrupts": False}, "apply": quiet}))
    assert task.hooks() == ["IN"] and result["changed"] is True and task.said[-1] == "restore"


def test_check_mode_calls_no_balancer(task):
    run(task.make({"apply": {"changed": True, "await": False}}, check_mode=True))
    assert task.said == ["apply"] and task.hooks() == []


def test_without_hooks_there_is_no_preview(task):
    run(task.make({"apply": {**APPLIED, "out": False}, "looks": [READY]}, drain_command=[], restore_command=[]))
    assert task.said == ["apply", "poll", "confirm"]


def test_the_release_before_has_the_time_that_it_was_given(task):
    answers = {"apply": APPLIED, "looks": [DEAD, READY], "roll_back": {**BACK, "start_timeout": 300}}
    run(task.make(answers, drain_command=[], restore_command=[], start_timeout=20))
    assert [limit for limit in task.limits if limit] == [20, 300]


@pytest.mark.parametrize(
    "answers, last",
    [
        ({"apply": APPLIED, "looks": [READY]}, "new"),
        ({"apply": APPLIED, "looks": [DEAD, READY], "roll_back": BACK}, "old"),
    ],
)
def test_what_was_built_for_other_services_is_kept_when_a_release_is_confirmed(task, answers, last):
    action = task.make(answers, beside=["/opt/vllm/environments/other"], drain_command=[])
    confirmed = []
    step = action.step
    action.step = lambda name, task_vars, **extra: confirmed.append((name, extra)) or step(name, task_vars, **extra)
    run(action)
    asked = dict(confirmed)["confirm"]
    assert asked == {"release": last, "beside": ["/opt/vllm/environments/other"]}
