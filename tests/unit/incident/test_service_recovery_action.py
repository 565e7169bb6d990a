"""What the controller does after a recovery: it waits, names the cause, and rolls back to a release."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from plugins.action import service_recovery


@pytest.fixture
def plugin(monkeypatch):
    """The action plugin with a host whose answers the test sets; ``asked`` records the calls."""
    action = service_recovery.ActionModule.__new__(service_recovery.ActionModule)
    action._task = SimpleNamespace(args={"name": "vllm"})
    there = SimpleNamespace(action=action, asked=[], told={}, wait={}, causes=[], blame={}, back={})
    monkeypatch.setattr(service_recovery.ActionBase, "run", lambda *_: {})

    def module(name, args, _):
        there.asked.append(args.get("phase"))
        return {"recovery": there.told} if args["phase"] == "recover" else {"recovery": there.blame}

    releases = SimpleNamespace(wait=lambda *_: there.wait, step=lambda step, *_, **__: there.asked.append(step))
    action._module, action._causes = module, lambda *_: there.causes
    action._releases, action._go_back = lambda *_: releases, lambda *_: there.back
    there.run = lambda: action.run(task_vars={"inventory_hostname": "host1"})
    return there


TOLD = {
    **{"release": "new", "serves": False, "did": "restarted it", "found": "refused", "await": True, "next": ""},
    **{"changed": True, "start_timeout": 60},
}


def test_nothing_is_waited_for_where_it_serves(plugin):
    plugin.told = {**TOLD, "serves": True, "did": "nothing", "found": "it serves", "await": False, "changed": False}
    result = plugin.run()
    assert result["rows"] == [{"what": "vllm", "measured": "it serves", "ok": True, "cure": ""}]
    assert (result["changed"], result["serves"]) == (False, True)


def test_a_restart_that_helps_is_confirmed(plugin):
    plugin.told, plugin.wait = TOLD, {"ready": True, "elapsed": 3.2}
    result = plugin.run()
    assert result["serves"] is True and result["restarted"] is True
    assert result["rows"][0]["measured"] == "restarted it: refused → it serves after 3.2 s"
    assert plugin.asked == ["recover", "confirm"]


def test_one_that_helps_not_names_cause_and_next_step(plugin):
    plugin.told, plugin.wait = TOLD, {"dead": True, "why": "its process left"}
    plugin.causes = [{"says": "the disk is full.", "cure": "Make room.", "area": "host"}]
    result = plugin.run()
    assert result["serves"] is False
    assert [row["ok"] for row in result["rows"]] == [False, False]
    assert result["rows"][0]["cure"].endswith("-e step=escalate -l host1")
    assert result["rows"][1]["measured"] == "the disk is full."


@pytest.mark.parametrize("good", [True, False])
def test_the_newest_release_gives_way_where_it_is_to_blame(plugin, good):
    plugin.told, plugin.wait = TOLD, {"dead": True, "why": "its process left"}
    plugin.blame, plugin.back = (
        {"target": "old", "why": "it has never served"},
        {} if good else {"failed": True, "msg": "no"},
    )
    result = plugin.run()
    assert result["serves"] is good and result["changed"]
    assert result["rows"][-1]["measured"].startswith("it has never served → back to old; ")


def test_a_lock_that_another_run_holds_is_said(plugin):
    plugin.action._module = lambda *_: {"failed": True, "msg": "vllm: another run is changing this service now"}
    result = plugin.run()
    assert result["serves"] is False and not result["changed"]
    assert "another run is changing this service now" in result["rows"][0]["measured"]
