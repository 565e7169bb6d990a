"""While the variables are validated, the connection for the next task is opened; it makes no difference if it fails."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.action import ActionBase
from ansible.template import Templar

from plugins.action.validate_variables import ActionModule


@pytest.fixture
def validate(monkeypatch):
    """A function that runs a task with a connection; it returns the result."""
    monkeypatch.setattr(ActionBase, "run", lambda *_: {})

    def run(exec_command, **args) -> dict:
        action = ActionModule.__new__(ActionModule)
        action._task = SimpleNamespace(args=args)
        action._loader = DataLoader()
        action._templar = Templar(action._loader)
        action._connection = SimpleNamespace(exec_command=exec_command)
        return action.run(task_vars={})

    return run


def test_the_connection_is_opened_without_root_and_the_result_does_not_wait_for_it(validate):
    asked, opened, end = [], threading.Event(), threading.Event()

    def slow(command, *, sudoable):
        asked.append((command, sudoable))
        opened.set()
        end.wait(10)

    assert validate(slow, connect=True)["problems"] == []
    assert opened.wait(10) and not end.is_set() and asked == [("true", False)]
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
    monkeypatch.setattr(threading, "Thread", lambda **_: pytest.fail("connected"))
    assert validate(None)["problems"] == []
