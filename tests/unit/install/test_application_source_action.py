"""A tree of the controller is sent only if the host asks for it, and what was sent is removed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from plugins.action import application_source


@pytest.fixture
def task(tmp_path, monkeypatch):
    """A task on a host where another module of the same task has made the directory ``/tmp/first``."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app/main.py").write_text("app = 1\n")
    calls, removed = [], []
    shell = SimpleNamespace(tmpdir="/tmp/first", join_path=lambda *parts: "/".join(parts))
    action = application_source.ActionModule.__new__(application_source.ActionModule)
    action._task = SimpleNamespace(args={"root": "/app/releases", "path": str(tmp_path / "app")})
    action._connection = SimpleNamespace(_shell=shell)

    def make() -> str:
        shell.tmpdir = "/tmp/second"
        return shell.tmpdir

    def remove(path: str) -> None:
        removed.append(path)
        shell.tmpdir = None

    action._make_tmp_path, action._remove_tmp_path = make, remove
    action._transfer_file = lambda local, remote: remote
    action._fixup_perms2 = lambda paths: None
    monkeypatch.setattr(ActionBase, "run", lambda *_: {})
    return SimpleNamespace(action=action, calls=calls, removed=removed, shell=shell)


def answers(task, *results):
    left = list(results)
    task.action._execute_module = lambda **call: task.calls.append(call["module_args"]) or left.pop(0)
    return task.action.run(task_vars={})


def test_a_tree_that_is_there_is_not_sent(task):
    assert answers(task, {"changed": False, "path": "/app/releases/1"}) == {"changed": False, "path": "/app/releases/1"}
    assert task.removed == [] and task.calls[0]["digest"] and "file" not in task.calls[0]


def test_a_tree_is_sent_and_the_directory_of_the_task_stays_known(task):
    """Ansible removes the task's own directory at the end; that of a batch has the arguments of all its steps."""
    assert answers(task, {"changed": True, "send": True}, {"changed": True}) == {"changed": True}
    assert task.calls[1] == {**task.calls[0], "file": "/tmp/second/source"}
    assert task.removed == ["/tmp/second"] and task.shell.tmpdir == "/tmp/first"


def test_a_missing_tree_is_named(task):
    task.action._task.args["path"] = "/nowhere"
    with pytest.raises(
        AnsibleActionFail, match=r"^the application's source /nowhere: there is no such directory here$"
    ):
        answers(task)
