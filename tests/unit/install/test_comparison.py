"""A module is compared with the host by the module batch; the list of engines is written only if it differs."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible.plugins.action import ActionBase

from plugins.action.engine_list import ActionModule
from plugins.plugin_utils.comparison import ask_batch, public

BATCH, LIST = "llm.server.batch", "llm.server.engine_list"
SAME = {"changed": False, "recorded": True}


@pytest.fixture
def task(monkeypatch):
    """A task whose modules answer as the test sets; ``calls`` has them with their arguments."""
    there = SimpleNamespace(calls=[], quiet=[])

    def make(answer: dict, check_mode: bool = False) -> ActionModule:
        action = ActionModule.__new__(ActionModule)
        action._task = SimpleNamespace(args={"engines": [], "state": "begun"}, check_mode=check_mode)

        def execute(name, arguments, *, task_vars):
            there.calls.append((name, arguments))
            there.quiet.append(task_vars.get("ansible_no_target_syslog"))
            return dict(answer) if name == BATCH else {"changed": False, "gone": ["written"]}

        action._execute_module = execute
        return action

    monkeypatch.setattr(ActionBase, "run", lambda *_: {})
    there.make = make
    return there


def test_a_comparison_is_one_call_that_leaves_nothing_in_the_journal(task):
    assert ask_batch(task.make({"compared": [SAME]}), "checklist", {"checks": ["key"]}, {}) == SAME
    assert task.calls == [
        (BATCH, {"steps": [{"name": "checklist", "module": "checklist", "options": {"checks": ["key"]}}]})
    ]
    assert task.quiet == [True]


def test_what_ansible_says_and_finds_out_is_kept(task):
    """So that it does not look for the host's Python at each call."""
    python = {"discovered_interpreter_python": "/usr/bin/python3"}
    answer = {"compared": [{**SAME, "warnings": ["own"]}], "warnings": ["an old Python"], "ansible_facts": python}
    found = ask_batch(task.make({**answer, "invocation": "canary"}), "checklist", {}, {})
    assert found == {**SAME, "warnings": ["an old Python", "own"], "ansible_facts": python}


def test_a_call_that_fails_is_the_result(task):
    assert ask_batch(task.make({"failed": True, "msg": "no Python"}), "checklist", {}, {}) == {
        "failed": True,
        "msg": "no Python",
    }


def test_keys_between_module_and_plugin_are_not_public():
    assert public({**SAME, "pending": True, "await": False}) == SAME


def test_a_list_without_differences_is_one_call(task):
    assert task.make({"compared": [{**SAME, "pending": False}]}).run(task_vars={}) == SAME
    assert [name for name, _ in task.calls] == [BATCH]


@pytest.mark.parametrize("found", [{**SAME, "pending": True}, {**SAME, "changed": True}, {"failed": True, "msg": "no"}])
def test_a_list_that_differs_or_cannot_be_compared_is_left_to_the_module(task, found):
    result = task.make({"compared": [found]}).run(task_vars={})
    assert task.calls[1:] == [(LIST, {"engines": [], "state": "begun"})] and result["gone"] == ["written"]


def test_in_check_mode_the_comparison_is_the_result(task):
    assert task.make({"compared": [{**SAME, "pending": True}]}, check_mode=True).run(task_vars={}) == SAME
    assert [name for name, _ in task.calls] == [BATCH]
