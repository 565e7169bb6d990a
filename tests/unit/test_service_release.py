"""Releases of a service, on a directory that stands in for the host and a systemd that only remembers."""

from __future__ import annotations

import fcntl
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible.module_utils import service_release, systemd_unit
from ansible.module_utils.service_release import Refused, Service, digest

from plugins.modules import service_release as module

UNIT = {"Service": {"User": "app", "ExecStart": "/opt/app/current/app"}}


class Systemd:
    """What `systemctl` would know of one unit."""

    def __init__(self):
        self.said, self.running, self.enabled, self.restarts, self.dead = [], None, False, 0, False

    def run(self, *argv, check=True, timeout=120):
        self.said.append(" ".join(argv[:2]))
        if argv[:2] == ("systemctl", "enable"):
            self.enabled = True
        if argv[:2] == ("systemctl", "restart"):
            self.running = self.environment().strip().partition("=")[2]
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    def show(self, unit):
        return {
            "ActiveState": "failed" if self.dead else ("active" if self.running else "inactive"),
            "SubState": "running",
            "MainPID": "7" if self.running and not self.dead else "0",
            "NRestarts": str(self.restarts),
            "UnitFileState": "enabled" if self.enabled else "disabled",
            "Result": "exit-code",
            "ExecMainStatus": "1",
            "ExecMainStartTimestampMonotonic": "0",
        }


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host below ``tmp_path``: store, units, locks, and nobody but root."""
    systemd = Systemd()
    monkeypatch.setattr(service_release, "STORE", tmp_path / "var/lib/llm-server/services")
    monkeypatch.setattr(service_release, "UNITS", tmp_path / "etc/systemd/system")
    monkeypatch.setattr(service_release, "LOCKS", tmp_path)
    monkeypatch.setattr(service_release, "LOCK_TIMEOUT", 0)
    monkeypatch.setattr(service_release.shutil, "chown", lambda *_: None)

    def attributes(path):
        return (f"{path.stat().st_mode & 0o7777:04o}", "root", "root") if path.exists() else None

    monkeypatch.setattr(service_release, "attributes", attributes)
    monkeypatch.setattr(service_release, "accounts", lambda: {"root"})
    monkeypatch.setattr(systemd_unit, "run", systemd.run)
    monkeypatch.setattr(systemd_unit, "show", systemd.show)
    monkeypatch.setattr(systemd_unit, "running_release", lambda pid: systemd.running)
    monkeypatch.setattr(systemd_unit, "journal", lambda unit, since: ["a line"])
    service = Service("app")
    systemd.environment = lambda: service.environment.read_text()
    return SimpleNamespace(systemd=systemd, service=service, root=tmp_path)


def wanted(host, text="a: 1\n", version="1.0", name="app.yml"):
    """Return the release of a service with one file and one link."""
    target = host.root / "opt/app" / version
    target.mkdir(parents=True, exist_ok=True)
    file = {"path": str(host.root / "etc/app" / name), "content": text, "mode": "0640", "owner": "root"}
    link = {"path": str(host.root / "opt/app/current"), "target": str(target)}
    return host.service.build([{**file, "group": "root"}], [link], UNIT)


def serve(host, release):
    """Write, start and verify a release, as a run does."""
    host.service.put(release)
    host.service.note(current=digest(release))
    host.service.start()
    host.service.confirm()


class TestDigest:
    @pytest.mark.parametrize("change", [{"text": "a: 2\n"}, {"version": "1.1"}, {"name": "other.yml"}])
    def test_another_part_is_another_release(self, host, change):
        assert digest(wanted(host)) != digest(wanted(host, **change))

    def test_the_same_parts_are_the_same_release(self, host):
        assert digest(wanted(host)) == digest(wanted(host))

    def test_the_same_version_from_another_archive_is_another_release(self, host):
        before = digest(wanted(host))
        (host.root / "opt/app/1.0/.release.json").write_text('{"checksum": "sha256:aa"}')
        assert digest(wanted(host)) != before


TRIAL = {"script": "print(1)", "argv": ["/opt/app/current/bin/python", "%s", "part"]}


class TestTrials:
    @pytest.fixture
    def trials(self, host, monkeypatch, tmp_path):
        """Systemd runs one-shot units: it notes their text, and says and ends as it is told to."""
        run, told = host.systemd.run, SimpleNamespace(units=[], code=0, said="")
        monkeypatch.setattr(service_release, "RUNTIME_UNITS", tmp_path / "run")

        def start(*argv, check=True, timeout=120):
            if argv[:2] != ("systemctl", "start"):
                return run(*argv, check=check, timeout=timeout)
            text = (tmp_path / "run" / argv[2]).read_text()
            told.units.append(text)
            output = text.partition("StandardOutput=append:")[2].splitlines()[0]
            Path(output).write_text(told.said)
            script = text.partition("ExecStart=")[2].split('"')[3]
            assert Path(script).read_text() == TRIAL["script"]
            return SimpleNamespace(returncode=told.code, stdout="", stderr="Job failed.")

        monkeypatch.setattr(systemd_unit, "run", start)
        return told

    def test_it_runs_by_the_new_program_and_leaves_no_unit(self, host, trials, tmp_path):
        release = {**wanted(host), "unit": "[Service]\nExecStart=/bin/app\n"}
        release["links"] = [{"path": "/opt/app/current", "target": "/opt/app/9"}]
        host.service.try_out(release, [{**TRIAL, "argv": ["/opt/app/9/bin/python", "%s", "part"]}])
        (text,) = trials.units
        assert 'ExecStart="/opt/app/9/bin/python"' in text and '"part"' in text
        assert not any((tmp_path / "run").iterdir())

    def test_what_it_says_last_is_the_refusal(self, host, trials, tmp_path):
        trials.code, trials.said = 1, "working\ntriton cannot be compiled: there is no C compiler: install gcc.\n"
        with pytest.raises(Refused, match=r"^app: triton cannot be compiled: there is no C compiler: install gcc\.$"):
            host.service.try_out(wanted(host), [TRIAL])
        assert not any((tmp_path / "run").iterdir())

    def test_one_that_did_not_begin_is_refused_with_systemds_words(self, host, trials):
        trials.code = 1
        with pytest.raises(Refused, match=r"app: Job failed\."):
            host.service.try_out(wanted(host), [TRIAL])


class TestDifferences:
    def test_a_bare_host_lacks_everything(self, host):
        release = wanted(host)
        assert [Path(each["what"]).name for each in host.service.differences(release)] == [
            "app.yml", "app.service", "current", "app.service at boot",
        ]  # fmt: skip

    def test_what_was_put_differs_in_nothing(self, host):
        release = wanted(host)
        serve(host, release)
        assert host.service.differences(release) == []
        assert host.service.restart_reason(release, []) is None

    @pytest.mark.parametrize("path", ["etc/app/app.yml", "etc/systemd/system/app.service"])
    def test_a_changed_file_and_a_changed_mode_are_seen(self, host, path):
        release = wanted(host)
        serve(host, release)
        (host.root / path).write_text("edited\n")
        assert [each["what"] for each in host.service.differences(release)] == [str(host.root / path)]
        host.service.put(release)
        (host.root / path).chmod(0o666)
        assert [each["what"] for each in host.service.differences(release)] == [str(host.root / path)]

    def test_a_lost_environment_and_a_unit_that_is_off_at_boot_are_seen(self, host):
        release = wanted(host)
        serve(host, release)
        host.service.environment.unlink()
        assert [each["what"] for each in host.service.differences(release)] == [str(host.service.environment)]
        host.service.put(release)
        host.systemd.enabled = False
        assert [each["what"] for each in host.service.differences(release)] == ["app.service at boot"]


class TestRestart:
    def test_a_stopped_service_is_started(self, host):
        release = wanted(host)
        host.service.put(release)
        assert host.service.restart_reason(release, []) == "it was not running (inactive, running)"

    def test_a_run_that_ended_before_the_start_is_healed(self, host):
        serve(host, wanted(host))
        new = wanted(host, text="a: 2\n")
        host.service.put(new)
        assert host.service.differences(new) == []
        reason = host.service.restart_reason(new, [])
        assert reason == "the running process was not started with what is written"

    def test_a_change_is_named(self, host):
        serve(host, wanted(host))
        new = wanted(host, text="a: 2\n")
        reason = host.service.restart_reason(new, host.service.differences(new))
        assert reason == f"changed: {host.root}/etc/app/app.yml"


class TestLook:
    def test_it_is_ready_when_its_probes_are(self, host):
        serve(host, wanted(host))
        seen = host.service.look([], 0, 60)
        assert (seen["ready"], seen["dead"], seen["journal"]) == (True, False, [])

    def test_a_process_that_left_is_dead_at_once(self, host):
        serve(host, wanted(host))
        host.systemd.dead = True
        seen = host.service.look([], 30, 60)
        assert (seen["ready"], seen["dead"]) == (False, True)
        assert seen["why"] == "its process left (exit-code, status 1)"
        assert seen["journal"] == ["a line"]

    def test_a_restart_by_systemd_during_the_start_is_a_death(self, host):
        serve(host, wanted(host))
        host.systemd.restarts = 1
        assert host.service.look([], 30, 60)["dead"] is True

    def test_a_crash_loop_before_the_start_is_not(self, host):
        serve(host, wanted(host))
        host.systemd.restarts = 2
        host.service.start()
        assert host.service.look([], 0, 60)["ready"] is True

    def test_a_restart_of_long_ago_is_not(self, host):
        serve(host, wanted(host))
        host.systemd.restarts = 3
        host.service.watch()
        assert host.service.look([], 0, 60)["ready"] is True

    def test_the_journal_is_this_processs_own(self, host, monkeypatch):
        told = []
        monkeypatch.setattr(systemd_unit, "journal", lambda unit, since: told.append(since) or [])
        monkeypatch.setattr(systemd_unit, "journal_end", lambda: "s=1;i=2")
        serve(host, wanted(host))
        host.systemd.dead = True
        host.service.look([], 0, 60)
        # One that this run found running is told from its own start on, an hour ago.
        usual = host.systemd.show("app.service")
        begun = str(int((time.monotonic() - 3600) * 1e6))
        monkeypatch.setattr(systemd_unit, "show", lambda _: {**usual, "ExecMainStartTimestampMonotonic": begun})
        host.service.watch()
        host.service.look([], 0, 60)
        assert told[0] == "s=1;i=2"
        assert told[1] == pytest.approx(time.time() - 3600, abs=5)

    def test_a_clock_that_jumps_is_no_late_start(self, host, monkeypatch):
        serve(host, wanted(host))
        now = time.time()
        monkeypatch.setattr(service_release.time, "time", lambda: now + 7200)
        monkeypatch.setattr(service_release.probes, "first_failure", lambda *_: "not yet")
        seen = host.service.look([{}], 0, 60)
        assert (seen["dead"], seen["why"]) == (False, "not yet") and seen["elapsed"] < 60

    def test_the_time_to_stop_the_process_before_is_not_its_own(self, host, monkeypatch):
        serve(host, wanted(host))
        now, usual = time.monotonic(), host.systemd.run

        def slow(*argv, **options):
            if argv[1] == "restart":
                monkeypatch.setattr(service_release.time, "monotonic", lambda: now + 30)
            return usual(*argv, **options)

        monkeypatch.setattr(systemd_unit, "run", slow)
        host.service.start()
        assert host.service.look([], 0, 20)["elapsed"] < 1

    def test_it_does_not_look_past_its_limit(self, host, monkeypatch):
        serve(host, wanted(host))
        host.service.note(since=host.service.state()["since"] - 59.9)
        within = []
        monkeypatch.setattr(service_release.probes, "first_failure", lambda _, most: within.append(most) or "not yet")
        seen = host.service.look([{}], 600, 60)
        assert (seen["ready"], seen["dead"], seen["why"]) == (False, False, "not yet")
        assert within[0] == 1 and len(within) <= 2


class TestBack:
    def test_the_last_verified_release_comes_back_whole(self, host):
        old, new = wanted(host), wanted(host, text="a: 2\n", version="1.1", name="other.yml")
        serve(host, old)
        host.service.put(new)
        host.service.take_away(old, but=new)
        host.service.note(current=digest(new))
        assert host.service.back() == digest(old)
        assert host.service.differences(old) == []
        assert host.systemd.running == digest(old)
        assert not (host.root / "etc/app/other.yml").exists()

    def test_the_failed_one_is_kept_until_something_newer_serves(self, host):
        old, bad, new = (wanted(host, version=version) for version in ("1.0", "1.1", "1.2"))
        serve(host, old)
        host.service.put(bad)
        host.service.note(current=digest(bad), failed=digest(bad))
        host.service.back()
        host.service.confirm()
        assert host.service.state()["failed"] == digest(bad)
        assert (host.root / "opt/app/1.1").is_dir() and host.service.release(digest(bad)) == bad
        serve(host, new)
        assert host.service.state()["failed"] is None and not (host.root / "opt/app/1.1").exists()

    def test_a_service_that_is_not_here_is_named_with_those_that_are(self, host):
        serve(host, wanted(host))
        with pytest.raises(Refused, match="there is no service ap on this host; there are: app"):
            Service("ap").earlier()

    def test_without_an_earlier_one_there_is_no_way_back(self, host):
        serve(host, wanted(host))
        with pytest.raises(Refused, match="no earlier verified release is kept here"):
            host.service.back()

    def test_one_that_is_not_kept_is_refused_with_the_kept_ones(self, host):
        old, new = wanted(host), wanted(host, text="a: 2\n")
        serve(host, old)
        serve(host, new)
        with pytest.raises(Refused, match=f"release nope is not kept here; kept are: {digest(old)}"):
            host.service.back("nope")

    def test_three_are_kept_and_the_programs_that_none_needs_go(self, host):
        releases = [wanted(host, version=f"1.{number}") for number in range(5)]
        for release in releases:
            serve(host, release)
        assert host.service.state()["verified"] == [digest(release) for release in releases[2:]]
        assert sorted(path.name for path in (host.root / "opt/app").iterdir()) == ["1.2", "1.3", "1.4", "current"]
        assert len(list((host.service.store / "releases").iterdir())) == 3


def test_what_a_program_refuses_is_told_without_its_usage(host, tmp_path):
    lines = ["Some library is missing, never mind", "usage: app [-h]", "           [--port PORT]"]
    program = tmp_path / "app"
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}' >&2\n" for line in lines))
    with program.open("a") as handle:
        handle.write("echo 'app: error: unrecognized arguments: --no-such' >&2\nexit 2\n")
    program.chmod(0o755)
    file = {"path": "/etc/app.yml", "content": ""}
    with pytest.raises(
        Refused, match=r"^app: app refuses /etc/app.yml: app: error: unrecognized arguments: --no-such$"
    ):
        host.service._ask_program([str(program), "%s"], file, tmp_path, None)


@pytest.mark.parametrize("mode, told", [("0640", "a: 2"), ("0600", "secret")])
def test_the_way_back_is_shown_before_it_is_gone(host, mode, told):
    file = {"path": str(host.root / "etc/app/app.yml"), "mode": mode, "owner": "root", "group": "root"}
    for text in ("a: 1\n", "a: 2\n"):
        serve(host, host.service.build([{**file, "content": text}], [], UNIT))
    said = len(host.systemd.said)
    foreseen = module.dry_run(host.service, {"state": "previous", "release": None})
    assert foreseen["release"] == host.service.earlier() and foreseen["changed"]
    (shown,) = foreseen["diff"]
    assert told in shown.get("before", shown.get("prepared"))
    assert len(host.systemd.said) == said
    done = module.act(host.service, {"state": "previous", "release": None, "phase": "apply"})
    assert (done["release"], done["diff"]) == (foreseen["release"], foreseen["diff"])


class TestLostNotes:
    @pytest.mark.parametrize("text", [None, '{"current": "72', "[1]", ""])
    def test_what_runs_is_adopted_as_it_is(self, host, monkeypatch, text):
        release = wanted(host)
        serve(host, release)
        note = host.service.store / "state.json"
        note.unlink() if text is None else note.write_text(text)
        restarts = host.systemd.said.count("systemctl restart")
        monkeypatch.setattr(host.service, "build", lambda *_: release)
        arguments = {
            "files": [],
            "secrets": [],
            "links": [],
            "unit": {},
            "directories": [],
            "listens": [],
            "probes": [],
        }
        arguments |= {"user": None, "home": "/", "start_timeout": 60}
        result = module.apply(host.service, arguments, check_mode=False)
        assert (result["restarted"], result["await"]) == (None, True)
        assert host.service.state()["current"] == digest(release)
        host.service.confirm()
        assert host.service.state()["verified"] == [digest(release)]
        assert host.systemd.said.count("systemctl restart") == restarts


class TestRefusal:
    @pytest.mark.parametrize("port", [0, 65536, -1])
    def test_a_number_that_is_no_port(self, host, port):
        with pytest.raises(Refused, match=f"{port} is no TCP port"):
            host.service.check_ports([port])

    def test_a_port_of_another(self, host, monkeypatch):
        monkeypatch.setattr(systemd_unit, "port_holder", lambda port, unit: "nginx (pid 12)" if port == 80 else None)
        host.service.check_ports([81])
        with pytest.raises(Refused, match=r"app: port 80 is taken by nginx \(pid 12\); stop it or choose another port"):
            host.service.check_ports([81, 80])

    def test_a_second_run_at_the_same_time(self, host):
        with (host.root / "llm-server-app.lock").open("w") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            with pytest.raises(Refused, match="another run is changing this service now"), host.service.lock():
                pass
        with host.service.lock():
            assert not host.service.store.exists()


class TestRemoval:
    def put_directories(self, host, keep):
        for entry in (
            {"path": str(host.root / "srv/app"), "owner": "root", "group": "root", "mode": "0755", "keep": False},
            {"path": str(host.root / "srv/data/app"), "owner": "root", "group": "root", "mode": "0750", "keep": keep},
        ):
            host.service.put_directory(entry)

    def test_everything_that_was_made_goes_and_the_rest_stays(self, host):
        (host.root / "srv").mkdir()
        (host.root / "srv/mine").write_text("mine")
        self.put_directories(host, keep=False)
        serve(host, wanted(host))
        assert host.service.remove(purge=False) is True
        assert sorted(path.name for path in (host.root / "srv").iterdir()) == ["mine"]
        assert not (host.root / "var/lib/llm-server").exists()
        assert not (host.root / "etc/app/app.yml").exists()
        assert not host.service.unit_path.exists()
        assert "systemctl disable" in host.systemd.said
        assert host.service.remove(purge=False) is False

    def test_data_stays_until_purging_is_asked_for(self, host):
        self.put_directories(host, keep=True)
        serve(host, wanted(host))
        (host.root / "srv/data/app/model").write_text("weights")
        assert host.service.remove(purge=False) is True
        assert (host.root / "srv/data/app/model").read_text() == "weights"
        assert host.service.remove(purge=False) is False
        assert host.service.remove(purge=True) is True
        assert not (host.root / "srv/data").exists()

    def test_a_directory_is_noted_before_it_is_made(self, host, monkeypatch):
        monkeypatch.setattr(Path, "mkdir", self.killed_below(host.root / "srv"))
        with pytest.raises(KeyboardInterrupt):
            self.put_directories(host, keep=False)
        noted = [entry["path"] for entry in host.service.state()["created"]["directories"]]
        assert noted == [str(host.root / "srv"), str(host.root / "srv/app")]

    @staticmethod
    def killed_below(place):
        usual = Path.mkdir

        def mkdir(path, *args, **kwargs):
            if path.is_relative_to(place):
                raise KeyboardInterrupt
            return usual(path, *args, **kwargs)

        return mkdir


class TestWrite:
    def test_a_reader_never_sees_half_a_file(self, host, monkeypatch):
        path = host.root / "etc/app.yml"
        service_release.write(path, "old", 0o600)
        monkeypatch.setattr(service_release.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            service_release.write(path, "new", 0o600)
        assert path.read_text() == "old"

    def test_mode_is_set_before_the_text_is_there(self, host):
        path = host.root / "secret"
        service_release.write(path, "text", 0o600)
        assert path.stat().st_mode & 0o777 == 0o600


def test_probes_are_kept_with_their_release(host):
    questions = [{"http": {"url": "http://127.0.0.1:1/health"}}]
    host.service.store_proof("abc", questions, 600)
    assert host.service.proof_of("abc") == (questions, 600)
    assert host.service.proof_of("other") == ([], None)
    assert (host.service.store / "probes/abc.json").stat().st_mode & 0o777 == 0o600


class TestUnit:
    def test_defaults_are_hardened_and_can_be_taken_away(self):
        text = systemd_unit.render({"Service": {"ExecStart": "/x", "ProtectHome": None, "PrivateTmp": False}})
        assert "NoNewPrivileges=yes\n" in text
        assert "ProtectHome" not in text
        assert "PrivateTmp=no\n" in text
        assert text.index("[Unit]") < text.index("[Service]") < text.index("[Install]")

    def test_a_list_repeats_its_directive(self):
        text = systemd_unit.render({"Service": {"Environment": ["A=1", "B=2"]}})
        assert "Environment=A=1\nEnvironment=B=2\n" in text
