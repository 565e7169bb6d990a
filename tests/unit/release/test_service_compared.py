"""A release that is the same on the host is one call: that of the module batch, which compares it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from plugins.action.service_release import ActionModule
from plugins.plugin_utils.service import ServiceStart

SAME = {"changed": False, "release": "abc", "await": False, "out": False, "may_roll_back": False, "new_secrets": False}
DEPLOYED = {"changed": True, "release": "new"}


@pytest.fixture
def deploy(monkeypatch):
    """A function that runs a task whose comparison has a result; ``calls`` has the arguments of the comparisons."""
    calls = []

    def run(answer: dict, check_mode: bool = False, compared: bool = False, **args) -> dict:
        action = ActionModule.__new__(ActionModule)
        action._task = SimpleNamespace(args={"name": "app", "unit": {}, **args}, check_mode=check_mode)
        action.compared = compared
        action._execute_module = lambda module, arguments, **_: calls.append((module, arguments)) or answer
        return action.run(task_vars={"inventory_hostname": "gpu-1"})

    monkeypatch.setattr(ServiceStart, "run", lambda *_: dict(DEPLOYED))
    return SimpleNamespace(run=run, calls=calls)


def test_without_a_difference_the_result_is_that_of_the_comparison(deploy):
    assert deploy.run({"compared": [SAME]}) == {"changed": False, "release": "abc"}
    step = {"name": "service_release", "module": "service_release", "options": {"name": "app", "unit": {}}}
    assert deploy.calls == [("llm.server.batch", {"steps": [step]})]


@pytest.mark.parametrize(
    "answer",
    [
        {"compared": [{**SAME, "changed": True}]},
        {"compared": [{**SAME, "await": True}]},
        {"compared": [{**SAME, "out": True}]},
        {"compared": [{"failed": True, "msg": "app: port 80 is taken"}]},
        {"failed": True, "msg": "no Python"},
    ],
)
def test_what_differs_or_cannot_be_compared_is_deployed(deploy, answer):
    assert deploy.run(answer) == DEPLOYED


@pytest.mark.parametrize("case", [{"check_mode": True}, {"compared": True}, {"state": "absent"}])
def test_what_needs_no_comparison_is_deployed_without_one(deploy, case):
    assert deploy.run({"compared": [SAME]}, **case) == DEPLOYED and deploy.calls == []
