"""The modules of a service: how each uses its arguments, and what a step refuses."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import yaml

from plugins.doc_fragments.service import ModuleDocFragment
from plugins.module_utils.doors import service_account, service_release
from plugins.module_utils.release import account, arguments, deploy, door, serving, store
from plugins.module_utils.release.description import Refused
from plugins.modules import service_drain, service_rollback, service_step


@pytest.fixture
def service(tmp_path, monkeypatch):
    """A service of a host below ``tmp_path``, without a release yet."""
    monkeypatch.setattr(store, "STORE", tmp_path / "services")
    monkeypatch.setattr(store, "LOCKS", tmp_path / "locks")
    monkeypatch.setattr("shutil.chown", lambda *_: None)
    (tmp_path / "locks").mkdir()
    return store.Service("app")


class Module:
    """An `AnsibleModule` that exits with an exception that has the result."""

    class Ended(Exception):
        pass

    def __init__(self, check_mode=False, **params):
        self.params, self.check_mode, self.warned = {"name": "app", **params}, check_mode, []
        self.warn = self.warned.append

    def exit_json(self, **result):
        raise self.Ended(result)

    def fail_json(self, **result):
        raise self.Ended({"failed": True, **result})


def end(module, *work, **options) -> dict:
    with pytest.raises(Module.Ended) as ended:
        door.run(module, *work, **options)
    return ended.value.args[0]


def test_a_change_holds_the_lock_and_a_preview_does_not(service, tmp_path):
    lock = tmp_path / "locks/llm-server-app.lock"
    works = [lambda *_: {"did": "preview", "lock": lock.exists()}, lambda *_: {"did": "change", "lock": lock.exists()}]
    assert end(Module(check_mode=True), *works) == {"did": "preview", "lock": False}
    assert end(Module(), *works) == {"did": "change", "lock": True}


def test_what_is_refused_is_one_sentence_and_what_others_added_is_a_warning(service):
    def refuse(*_):
        raise Refused("app: no")

    assert end(Module(), refuse, refuse) == {"failed": True, "msg": "app: no"}
    module = Module()
    assert end(module, refuse, lambda *_: {"changed": False, "besides": ["x adds to app.service"]}) == {
        "changed": False
    }
    assert module.warned == ["app: x adds to app.service; it is left as it is"]


@pytest.mark.parametrize("name", ["", "../app", "a b"])
def test_an_invalid_name(service, name):
    result = end(Module(name=name), dict, dict)
    assert result["failed"] and "it must be a service's" in result["msg"]


def test_a_rollback_of_a_service_that_is_not_here_leaves_no_lock(service, tmp_path):
    module = Module(release=None)
    result = end(module, service_rollback.preview, service_rollback.change, before=service_rollback.target)
    assert "there is no service app on this host" in result["msg"]
    assert not any((tmp_path / "locks").iterdir())


def test_user_and_directories_exist_before_a_release(service, tmp_path, monkeypatch):
    added = []
    monkeypatch.setattr(account, "accounts", lambda: {"root", *added})
    monkeypatch.setattr(account, "add_user", lambda _, user, home: added.append(user))
    here = {"path": str(tmp_path / "srv/app"), "owner": "root", "group": "root", "mode": "0750", "keep": False}
    wanted = {"user": "app", "groups": [], "home": "/nonexistent", "directories": [here]}
    assert service_account.preview(service, wanted)["changed"] and not (tmp_path / "srv").exists()
    assert service_account.change(service, wanted)["changed"]
    assert added == ["app"] and (tmp_path / "srv/app").stat().st_mode & 0o777 == 0o750
    assert service.state()["needs"] == {"user": "app", "directories": [here["path"]]}
    monkeypatch.setattr(account.contents, "attributes", lambda _: ("0750", "root", "root"))
    assert service_account.preview(service, wanted) == {"changed": False, "pending": False}
    assert not service_account.change(service, wanted)["changed"]
    # What exists already is recorded too, or the removal of another service would take it.
    service.note(needs={"user": None, "directories": []})
    assert service_account.preview(service, wanted) == {"changed": False, "pending": True}
    assert not service_account.change(service, wanted)["changed"] and account.recorded(service, "app", [here])


@pytest.mark.parametrize("left", [True, False])
def test_a_comparison_only_finishes_an_interrupted_removal(service, monkeypatch, left):
    removed = []
    monkeypatch.setattr(service_release.removal, "removable", lambda *_: left)
    monkeypatch.setattr(service_release.removal, "remove", lambda *_: bool(removed.append("all")))
    wanted = {"state": "absent", "purge": False, "compare_only": True}
    assert service_release.change(service, wanted) == {"changed": left}
    assert removed == ([] if left else ["all"])


def test_a_comparison_does_not_wait_for_another_run(service, monkeypatch):
    waited = []
    monkeypatch.setattr(store.time, "sleep", lambda seconds: waited.append(seconds) or monkeypatch.undo())
    with store.Service("app").lock():
        told = end(Module(compare_only=True), None, lambda *_: {"changed": False})
    assert told["failed"] and "another run is changing this service now" in told["msg"] and waited == []


def test_a_drained_host_is_recorded_once(service):
    with pytest.raises(Refused, match="app is not on this host"):
        service_drain.change(service, {})
    service.note(current="abc")
    assert service_drain.preview(service, {}) == {"changed": True}
    assert [service_drain.change(service, {})["changed"] for _ in range(2)] == [True, False]
    assert service_step.change(service, {"step": "restore"}) == {"changed": True}
    assert not service.state()["out"]


@pytest.mark.parametrize("step", ["poll", "confirm", "roll_back", "blame"])
def test_a_step_about_the_release_of_another_run_is_refused(service, step):
    service.note(current="theirs")
    with pytest.raises(Refused, match="another run changed this service meanwhile"):
        service_step.change(service, {"step": step, "release": "mine"})


class TestPreview:
    @pytest.fixture
    def wanted(self, monkeypatch):
        """The step's arguments; ``tried`` has the trials that ran, ``restart`` the deployment's prediction."""
        there = SimpleNamespace(tried=[], restart="changed: /etc/app")
        monkeypatch.setattr(deploy, "deploy", lambda *_, check_mode: {"restarted": there.restart, "changed": True})
        monkeypatch.setattr(deploy, "wanted_release", lambda *_: {})
        monkeypatch.setattr(service_step.checks, "try_out", lambda *asked: there.tried.append(asked[2]))
        there.arguments = {"step": "preview", "state": "present", "user": None, "trials": ["a trial"]}
        return there

    def test_an_interruption_is_tried_first(self, service, wanted):
        service.note(current="abc", verified=["abc"])
        assert service_step.change(service, wanted.arguments) == {"changed": False, "interrupts": True}
        assert wanted.tried == [["a trial"]]

    @pytest.mark.parametrize(("verified", "restart"), [([], "it was not running"), (["abc"], None)])
    def test_nothing_that_serves_is_interrupted(self, service, wanted, verified, restart):
        service.note(current="abc", verified=verified)
        wanted.restart = restart
        assert service_step.change(service, wanted.arguments)["interrupts"] is False
        assert wanted.tried == []

    def test_deploying_a_service_of_a_timer_interrupts_nothing(self, service, wanted, monkeypatch):
        service.note(current="abc", verified=["abc"])
        monkeypatch.setattr(service, "main_unit", lambda *_: "app.timer")
        assert service_step.change(service, wanted.arguments)["interrupts"] is False

    def test_a_rollback_to_nothing_is_refused_before_the_host_is_drained(self, service, wanted):
        service.note(current="abc", verified=["abc"])
        with pytest.raises(Refused, match="no earlier verified release is kept here"):
            service_step.change(service, {"step": "preview", "state": "previous", "release": None})

    def test_a_removal_interrupts_what_serves(self, service, wanted, monkeypatch):
        monkeypatch.setattr(service_step.removal, "removable", lambda *_: True)
        service.note(current="abc", verified=["abc"])
        asked = {**wanted.arguments, "state": "absent", "purge": False}
        assert service_step.change(service, asked)["interrupts"] is True


@pytest.mark.parametrize(("target", "failed"), [("old", "bad"), (None, None)])
def test_a_release_that_is_to_blame_is_recorded_as_failed(service, monkeypatch, target, failed):
    monkeypatch.setattr(service_step.rollback, "to_go_back_to", lambda *_: {"target": target, "why": "so"})
    service.note(current="bad", verified=["old"])
    told = service_step.change(service, {"step": "blame", "release": "bad", "causes": []})
    assert told == {"changed": bool(target), "target": target, "why": "so"}
    assert service.state()["failed"] == failed


def test_a_failed_release_without_an_earlier_one_is_stopped(service, monkeypatch):
    stopped = []
    monkeypatch.setattr(serving, "stop", stopped.append)
    service.note(current="bad")
    told = service_step.change(service, {"step": "roll_back", "release": "bad"})
    assert told == {"changed": True, "rolled_back_to": None} and stopped == [service]
    assert service.state()["failed"] == "bad"


@pytest.mark.parametrize("part", ["START", "ROTATION", "ACCOUNT", "PROGRAM", "CONTENTS"])
def test_shared_arguments_are_documented(part):
    def types(options):
        """Return options as nested names and types; a module names suboptions differently."""
        return {
            name: (option["type"], types(option.get("suboptions") or option.get("options") or {}))
            for name, option in options.items()
        }

    documented = yaml.safe_load(getattr(ModuleDocFragment, part))["options"]
    assert types(documented) == types(getattr(arguments, part))


def test_the_doors_share_their_arguments():
    for each in (service_release.ARGUMENTS, service_step.ARGUMENTS):
        assert set(service_rollback.ARGUMENTS) - {"drain_command", "restore_command", "release"} <= set(each)
    assert "drain_command" not in service_step.ARGUMENTS
