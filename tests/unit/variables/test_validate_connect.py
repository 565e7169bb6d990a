"""While the variables are validated, the connection for the next task is opened; it makes no difference if it fails."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.action import ActionBase
from ansible.template import Templar

from plugins.action import validate_variables


@pytest.fixture
def validate(monkeypatch):
    """A function that runs a task with a connection; it returns the result."""
    monkeypatch.setattr(ActionBase, "run", lambda *_: {})

    def run(exec_command, **args) -> dict:
        action = validate_variables.ActionModule.__new__(validate_variables.ActionModule)
        action._task = SimpleNamespace(args=args)
        action._loader = DataLoader()
        action._templar = Templar(action._loader)
        action._connection = SimpleNamespace(exec_command=exec_command)
        return action.run(task_vars={})

    return run


def test_the_connection_is_open_before_the_next_task_needs_it(validate):
    asked = []

    def slow(command, *, sudoable):
        time.sleep(0.2)
        asked.append((command, sudoable))

    assert validate(slow, connect=True)["problems"] == []
    assert asked == [("true", False)]


@pytest.mark.parametrize("problem", [True, False])
def test_the_result_waits_for_it_only_for_some_time_and_not_if_there_are_problems(validate, monkeypatch, problem):
    end = threading.Event()
    monkeypatch.setattr(validate_variables, "CONNECTING", 30 if problem else 0.1)
    options = {"options": {"missing": {"type": "str", "required": True}}} if problem else {}
    start = time.monotonic()
    result = validate(lambda *_, **__: end.wait(60), connect=True, **options)
    assert time.monotonic() - start < 10 and bool(result.get("failed")) is problem
    end.set()


def test_a_host_that_cannot_be_reached_makes_no_difference(validate, monkeypatch):
    started, uncaught = [], []
    monkeypatch.setattr(threading, "excepthook", uncaught.append)
    original = threading.Thread.start
    monkeypatch.setattr(threading.Thread, "start", lambda thread: (started.append(thread), original(thread)))

    def unreachable(*_, **__):
        raise AnsibleConnectionFailure("no route to host")

    assert not validate(unreachable, connect=True).get("failed")
    (thread,) = started
    thread.join(10)
    assert thread.daemon and not thread.is_alive() and uncaught == []


def test_otherwise_the_host_is_left_alone(validate, monkeypatch):
    monkeypatch.setattr(threading.Thread, "start", lambda _: pytest.fail("connected"))
    assert validate(None)["problems"] == []
