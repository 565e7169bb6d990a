"""The effective unit: drop-ins, masks and links that change it are reported."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from plugins.module_utils.release import checklist, checks, contents, removal, serving, store, systemd_unit
from plugins.module_utils.release.description import Refused, digest
from plugins.module_utils.release.store import Service

UNIT = {"Service": {"User": "app", "ExecStart": "/opt/app --port=1", "Environment": ["A=1", "B=2"]}}


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host whose systemd has four unit directories below ``tmp_path`` and answers with ``live``."""
    places = [tmp_path / name for name in ("etc/system.control", "etc/system", "run/system", "usr/system")]
    for place in places:
        place.mkdir(parents=True)
    said, live = [], {"ActiveState": "active", "UnitFileState": "enabled", "NRestarts": "0", "MainPID": "7"}
    live |= {"LoadState": "loaded", "FragmentPath": str(places[1] / "app.service"), "SubState": "running"}
    live |= {"ExecMainStartTimestampMonotonic": str(int(time.monotonic() * 1e6))}
    monkeypatch.setattr(store, "STORE", tmp_path / "services")
    monkeypatch.setattr(store, "UNITS", places[1])
    monkeypatch.setattr("shutil.chown", lambda *_: None)
    monkeypatch.setattr(systemd_unit, "unit_places", lambda: [str(place) for place in places])
    monkeypatch.setattr(systemd_unit, "show", lambda _: live)
    monkeypatch.setattr(systemd_unit, "run", lambda *argv, **_: said.append(" ".join(argv)))
    monkeypatch.setattr(systemd_unit, "journal_end", lambda: 0)
    service = Service("app")
    release = contents.build(service, [], [], UNIT)
    contents.put(service, release)
    service.note(current=digest(release))
    monkeypatch.setattr(systemd_unit, "running_release", lambda _: digest(release))
    return SimpleNamespace(service=service, release=release, places=places, said=said, live=live)


def drop_in(host, text, folder="app.service.d", name="override.conf", place=1):
    path = host.places[place] / folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_alone_it_is_what_was_written(host):
    assert checks.altered(host.service, host.release) == ([], [])
    assert checklist.unit("app.service") == ("active, enabled, 0 restarts", True)


@pytest.mark.parametrize(
    "text, directive",
    [
        ("[Service]\nExecStart=\nExecStart=/bin/other", "ExecStart"),
        ("[Service]\nExecStart=/opt/app \\\n --port=1 --more", "ExecStart"),
        ("[Service]\nExecStartPre=/bin/true", "ExecStartPre"),
        ("[Service]\nUser=root", "User"),
        ("[Service]\nProtectSystem=no", "ProtectSystem"),
        ("[Service]\nNoNewPrivileges = false", "NoNewPrivileges"),
        ("[Service]\nCapabilityBoundingSet=CAP_NET_RAW", "CapabilityBoundingSet"),
        ("[Service]\nSystemCallFilter=", "SystemCallFilter"),
        ("[Service]\nEnvironment=A=2", "Environment"),
        ("[Service]\nEnvironmentFile=/etc/more", "EnvironmentFile"),
        ("[Service]\nRestart=no", "Restart"),
        ("[Service]\nRootDirectory=/srv", "RootDirectory"),
    ],
)
@pytest.mark.parametrize("folder", ["app.service.d", "service.d"])
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_drop_in_that_makes_another_process_of_it_is_refused(host, text, directive, folder, place):
    path = drop_in(host, text, folder, place=place)
    with pytest.raises(Refused, match=f"{path} changes {directive} of app.service"):
        checks.check_unit(host.service, host.release, check_mode=False)
    measured, good = checklist.unit("app.service")
    assert not good and f"{path} changes {directive}" in measured


@pytest.mark.parametrize(
    "text",
    [
        "[Service]\nLimitNOFILE=4096\nMemoryMax=1G\nNice=5",
        "[Unit]\nAfter=other.service\nDescription=mine",
        "[Service]\nNoNewPrivileges=true",
        "[Service]\nExecStart=\nExecStart=/opt/app --port=1",
        "# [Service]\n; ExecStart=/bin/other\n",
    ],
)
def test_a_drop_in_that_only_adds_is_reported_and_accepted(host, text):
    path = drop_in(host, text)
    assert checks.check_unit(host.service, host.release, check_mode=False) == [f"{path} adds to app.service"]
    assert checklist.unit("app.service")[1]


def test_a_drop_in_can_be_hidden_by_one_of_its_name_and_by_a_link_to_nothing(host):
    other = "[Service]\nExecStart=/bin/other"
    drop_in(host, other, place=3)
    drop_in(host, "[Service]\nNice=1", place=2)
    drop_in(host, other, name="a.conf", place=3)
    (host.places[1] / "app.service.d").mkdir()
    (host.places[1] / "app.service.d/a.conf").symlink_to("/dev/null")
    faults, besides = checks.altered(host.service, host.release)
    assert (faults, len(besides)) == ([], 1)


def test_one_for_all_units_of_the_same_beginning_counts(host):
    (host.places[1] / "a-.service.d").mkdir()
    (host.places[1] / "a-.service.d/x.conf").write_text("")
    (host.places[1] / "a-b.service.d").mkdir()
    (host.places[1] / "a-b.service.d/y.conf").write_text("")
    (host.places[1] / "a-b-.service.d").mkdir()
    (host.places[1] / "a-b-.service.d/z.conf").write_text("")
    assert [path.name for path in systemd_unit.drop_ins("a-b-c.service")] == ["x.conf", "z.conf"]


@pytest.mark.parametrize(
    "target, sentence", [("/dev/null", "masks the unit, so somebody keeps it"), ("/srv/x", "is a link to /srv/x")]
)
@pytest.mark.parametrize("place", [0, 1])
def test_a_mask_or_a_link_in_its_place_is_refused_and_stays(host, target, sentence, place):
    path = host.places[place] / "app.service"
    path.unlink(missing_ok=True)
    path.symlink_to(target)
    with pytest.raises(Refused, match=f"{path} {sentence}"):
        checks.check_unit(host.service, host.release, check_mode=False)
    measured, good = checklist.unit("app.service")
    assert not good and sentence in measured
    host.said.clear()
    removal.remove(host.service, purge=False)
    assert path.is_symlink()
    assert place == 0 or not any("disable" in line for line in host.said)


def test_a_file_that_was_edited_is_red(host):
    host.service.unit_path.write_text(host.release["unit"] + "# more\n")
    assert "is not what was written" in checklist.unit("app.service")[0]


@pytest.mark.parametrize(
    "live, sentence",
    [({"NeedDaemonReload": "yes"}, "has not read its files"), ({"FragmentPath": "/usr/x"}, "systemd has it from")],
)
def test_what_systemd_read_is_another(host, live, sentence):
    host.live.update(live)
    measured, good = checklist.unit("app.service")
    assert not good and sentence in measured


class TestProcessOfBefore:
    def test_a_process_started_with_the_drop_in_is_restarted_after_its_removal(self, host):
        path = drop_in(host, "[Service]\nExecStart=/bin/other")
        host.live["ExecMainStartTimestampMonotonic"] = str(int((time.monotonic() + 5) * 1e6))
        with pytest.raises(Refused):
            checks.check_unit(host.service, host.release, check_mode=False)
        path.unlink()
        checks.check_unit(host.service, host.release, check_mode=False)
        why = serving.restart_reason(host.service, host.release, [])
        assert why == "it was started while others had changed its unit"
        serving.start(host.service)
        assert serving.restart_reason(host.service, host.release, []) is None

    def test_one_that_began_before_goes_on(self, host):
        host.live["ExecMainStartTimestampMonotonic"] = str(int((time.monotonic() - 5) * 1e6))
        path = drop_in(host, "[Service]\nExecStart=/bin/other")
        with pytest.raises(Refused):
            checks.check_unit(host.service, host.release, check_mode=False)
        path.unlink()
        assert serving.restart_reason(host.service, host.release, []) is None

    def test_a_check_notes_nothing(self, host):
        drop_in(host, "[Service]\nExecStart=/bin/other")
        before = host.service.state()
        with pytest.raises(Refused):
            checks.check_unit(host.service, host.release, check_mode=True)
        assert host.service.state() == before

    @pytest.mark.parametrize("gone", [True, False])
    def test_systemd_reads_again_what_changed_since(self, host, gone):
        path = drop_in(host, "[Service]\nNice=5")
        host.live.update(NeedDaemonReload="yes", DropInPaths=str(path))
        if gone:
            path.unlink()
        host.said.clear()
        assert checks.reread(host.service)
        assert host.said == ["systemctl daemon-reload"]
        assert bool(serving.restart_reason(host.service, host.release, [])) == gone
