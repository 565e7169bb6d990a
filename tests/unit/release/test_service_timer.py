"""A service started by a timer: the timer is enabled, restarted and checked."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest

from plugins.module_utils.incident import evidence
from plugins.module_utils.release import checks, contents, deploy, removal, rollback, serving, store, systemd_unit
from plugins.module_utils.release.description import Refused, digest

UNIT = {"Service": {"ExecStart": "/bin/look"}}
HOURLY, DAILY = ({"Timer": {"OnCalendar": when}} for when in ("hourly", "daily"))


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host below ``tmp_path``; ``active`` and ``enabled`` are units in these states, ``said`` the commands."""
    there = SimpleNamespace(active=set(), enabled=set(), said=[], root=tmp_path)

    def run(*argv, **_):
        there.said.append(" ".join(argv[1:]))
        if argv[1] in ("enable", "disable"):
            (there.enabled.add if argv[1] == "enable" else there.enabled.discard)(argv[-1])
        if argv[1] == "restart":
            there.active.add(argv[-1])
        if argv[1] == "stop" or "--now" in argv:
            there.active.discard(argv[-1])
        wrong = argv[:2] == ("systemd-analyze", "calendar") and argv[-1] not in ("hourly", "daily")
        return SimpleNamespace(returncode=int(wrong), stdout="", stderr="")

    def show(unit):
        on = "enabled" if unit in there.enabled else "static"
        return {"ActiveState": "active" if unit in there.active else "inactive", "UnitFileState": on, "MainPID": "0"}

    monkeypatch.setattr(store, "STORE", tmp_path / "services")
    monkeypatch.setattr(store, "UNITS", tmp_path / "units")
    monkeypatch.setattr(serving, "TIMER_STAMPS", tmp_path / "stamps")
    monkeypatch.setattr("shutil.chown", lambda *_: None)
    monkeypatch.setattr(contents, "attributes", lambda path: ("0644", "root", "root") if path.exists() else None)
    monkeypatch.setattr(systemd_unit, "run", run)
    monkeypatch.setattr(systemd_unit, "show", show)
    monkeypatch.setattr(systemd_unit, "journal", lambda *_: [])
    there.service = store.Service("look")
    return there


def serve(host, timer, unit=None):
    release = contents.build(host.service, [], [], unit or UNIT, timer=timer)
    before = host.service.release(host.service.state()["current"])
    contents.put(host.service, release)
    if before:
        contents.take_away(host.service, before, but=release)
    host.service.note(current=digest(release))
    serving.start(host.service)
    rollback.confirm(host.service)
    return release


def test_the_units_that_are_written(host):
    release = serve(host, HOURLY)
    unit, timer = (path.read_text() for path in (host.service.unit_path, host.service.timer_path))
    assert "\nType=oneshot\n" in unit and "NoNewPrivileges=yes" in unit and "[Install]" not in unit
    assert "\nOnCalendar=hourly\n" in timer and "\nWantedBy=timers.target\n" in timer
    assert (host.enabled, host.active) == ({"look.timer"}, {"look.timer"})
    assert contents.differences(host.service, release) == []
    assert serving.restart_reason(host.service, release, []) is None


def test_an_incident_checks_the_timer(host):
    assert evidence.unit_of("look", {}) == "look.service"
    serve(host, HOURLY)
    assert evidence.unit_of("look", {}) == "look.timer"
    assert evidence.unit_of("look", {"unit": "other.service"}) == "other.service"


def test_another_program_restarts_nothing_and_another_time_restarts_the_timer(host):
    serve(host, HOURLY)
    other = contents.build(host.service, [], [], {"Service": {"ExecStart": "/bin/other"}}, timer=HOURLY)
    assert serving.restart_reason(host.service, other, contents.differences(host.service, other)) is None
    later = contents.build(host.service, [], [], UNIT, timer=DAILY)
    why = serving.restart_reason(host.service, later, contents.differences(host.service, later))
    assert why == f"changed: {host.service.timer_path}"
    assert len({digest(each) for each in (other, later)}) == 2


def test_new_times_start_the_service_for_no_time_that_has_passed(host):
    serve(host, HOURLY)
    stamp = host.root / "stamps/stamp-look.timer"
    stamp.parent.mkdir()
    stamp.touch()
    os.utime(stamp, (0, 0))
    host.said.clear()
    serve(host, HOURLY, {"Service": {"ExecStart": "/bin/other"}})
    assert "stop look.timer" not in host.said
    host.said.clear()
    serve(host, DAILY)
    order = ["stop look.timer", "daemon-reload", "restart look.timer"]
    assert [said for said in host.said if said in order] == order
    assert stamp.stat().st_mtime > time.time() - 60


@pytest.mark.parametrize("check_mode", [False, True])
@pytest.mark.parametrize(
    ("variable", "begin"),
    [("look_schedule", "look_schedule is every night; set a calendar expression"),
     (None, "look: OnCalendar of the timer is every night; set a calendar expression")],
)  # fmt: skip
def test_wrong_times_are_refused_before_anything_is_changed(host, monkeypatch, check_mode, variable, begin):
    monkeypatch.setattr(checks, "check_unit", lambda *_: [])
    monkeypatch.setattr(checks, "reread", lambda *_: False)
    wanted = {
        "files": [], "secrets": [], "links": [], "inputs": {}, "unit": UNIT, "user": None, "listens": [], "trials": [],
        "directories": [{"path": f"{host.root}/new", "owner": "root", "group": "root", "mode": "0755", "keep": False}],
        "timer": {"Timer": {"OnCalendar": ["daily", "every night"]}}, "schedule_variable": variable,
    }  # fmt: skip
    with pytest.raises(Refused) as refused:
        deploy.deploy(host.service, wanted, check_mode)
    assert str(refused.value).startswith(begin)
    assert list(host.root.iterdir()) == []


def test_a_timer_without_times_of_the_calendar_is_not_asked_for_them(host):
    checks.check_times(host.service, {"Timer": {"OnUnitActiveSec": "60s"}}, None)
    checks.check_times(host.service, {}, None)
    assert host.said == []


def test_a_timer_that_was_stopped_or_is_off_at_boot_is_seen(host):
    release = serve(host, HOURLY)
    assert serving.poll(host.service, [], 0, 60)["ready"]
    host.active.clear()
    host.enabled.clear()
    assert serving.restart_reason(host.service, release, []) == "its timer was not running (inactive)"
    assert [each["what"] for each in contents.differences(host.service, release)] == ["look.timer at boot"]
    seen = serving.poll(host.service, [], 0, 60)
    assert seen["dead"] and seen["why"].startswith("its timer is inactive")


def test_a_rollback_brings_the_earlier_time_back(host):
    first = serve(host, HOURLY)
    serve(host, DAILY)
    host.said.clear()
    assert rollback.go_back(host.service) == digest(first)
    assert "OnCalendar=hourly" in host.service.timer_path.read_text()
    assert "restart look.timer" in host.said and "restart look.service" not in host.said


def test_a_service_without_its_timer_has_none(host):
    serve(host, HOURLY)
    serve(host, None)
    assert not host.service.timer_path.exists() and host.enabled == {"look.service"}
    assert host.service.main_unit() == "look.service"
    serve(host, HOURLY)
    assert (host.enabled, host.active) == ({"look.timer"}, {"look.timer"}), "the process of before is stopped"


def test_a_removal_stops_the_timer_first(host):
    serve(host, HOURLY)
    host.said.clear()
    assert removal.remove(host.service, purge=False)
    assert host.said[:2] == ["disable --now look.timer", "disable --now look.service"]
    assert list((host.root / "units").iterdir()) == [] and not host.enabled and not host.active


def test_a_release_without_a_timer_keeps_its_digest(host):
    release = contents.build(host.service, [], [], UNIT)
    assert "timer" not in release and "[Install]\nWantedBy=multi-user.target" in release["unit"]
