"""Releases of a service, on a directory that replaces the host and a systemd that only records calls."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from plugins.module_utils.doors import service_release
from plugins.module_utils.release import (
    account,
    checks,
    contents,
    deploy,
    removal,
    rollback,
    serving,
    store,
    systemd_unit,
)
from plugins.module_utils.release.description import Refused, digest
from plugins.module_utils.release.store import Service
from plugins.modules import service_rollback, service_step

UNIT = {"Service": {"User": "app", "ExecStart": "/opt/app/current/app"}}


class Systemd:
    """The state of one unit that `systemctl` would report."""

    def __init__(self):
        self.said, self.running, self.enabled, self.restarts, self.dead = [], None, False, 0, False

    def run(self, *argv, check=True, timeout=120):
        self.said.append(" ".join(argv[:2]))
        if argv[:2] == ("systemctl", "enable"):
            self.enabled = True
        if argv[:2] == ("systemctl", "restart"):
            self.running = self.environment().strip().partition("=")[2]
        if argv[:2] == ("systemctl", "stop"):
            self.running = None
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
    """A host below ``tmp_path``: store, units, locks, and only root as user."""
    systemd = Systemd()
    monkeypatch.setattr(store, "STORE", tmp_path / "var/lib/llm-server/services")
    monkeypatch.setattr(store, "UNITS", tmp_path / "etc/systemd/system")
    monkeypatch.setattr(store, "LOCKS", tmp_path)
    monkeypatch.setattr(store, "LOCK_TIMEOUT", 0)
    monkeypatch.setattr("shutil.chown", lambda *_: None)

    def attributes(path):
        return (f"{path.stat().st_mode & 0o7777:04o}", "root", "root") if path.exists() else None

    monkeypatch.setattr(contents, "attributes", attributes)
    monkeypatch.setattr(account, "accounts", lambda: {"root"})
    monkeypatch.setattr(systemd_unit, "run", systemd.run)
    monkeypatch.setattr(systemd_unit, "show", systemd.show)
    monkeypatch.setattr(systemd_unit, "running_release", lambda pid: systemd.running)
    monkeypatch.setattr(systemd_unit, "journal", lambda unit, since, count: ["a line"])
    service = Service("app")
    systemd.environment = lambda: service.environment.read_text()
    return SimpleNamespace(systemd=systemd, service=service, root=tmp_path)


def wanted(host, text="a: 1\n", version="1.0", name="app.yml"):
    """Return the release of a service with one file and one link."""
    target = host.root / "opt/app" / version
    target.mkdir(parents=True, exist_ok=True)
    file = {"path": str(host.root / "etc/app" / name), "content": text, "mode": "0640", "owner": "root"}
    link = {"path": str(host.root / "opt/app/current"), "target": str(target)}
    return contents.build(host.service, [{**file, "group": "root"}], [link], UNIT)


def serve(host, release):
    """Write, start and verify a release, as a run does."""
    contents.put(host.service, release)
    host.service.note(current=digest(release))
    serving.start(host.service)
    rollback.confirm(host.service)


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

    def test_a_release_that_an_earlier_version_stored_keeps_its_digest(self, host):
        """Another digest would restart every service; this one was computed before the modules were split."""
        owned = {"owner": "root", "group": "root"}
        live = {"path": "/etc/app/live.json", "content": "{}", "mode": "0644", "live": True, **owned}
        key = {"path": "/etc/app/env", "content": "KEY=canary\nMODEL=a\n", "mode": "0600", "plain": ["MODEL"], **owned}
        word = {"path": "/etc/app/word", "content": "canary", "mode": "0600", "plain": [], "whole": True, **owned}
        program = {"ExecStart": "/opt/app/current/app", "PrivateDevices": "no", "ProtectHome": None}
        host.service._own_key = "0" * 64
        host.service.environment = Path("/var/lib/llm-server/services/app/environment")
        release = contents.build(
            host.service,
            [{"path": "/etc/app/a.yml", "content": "a: 1\n", "mode": "0640", **owned}, live],
            [{"path": "/opt/app/current", "target": "/opt/app/1.0"}],
            {"Unit": {"Description": "App 100%"}, "Service": program},
            [key, word],
            {"input": 1},
            ["adm"],
            ["localhost"],
            {"oom_score_adjust": 1, "memory_max": "1G"},
        )
        assert digest(release) == "8d62214492218379"


TRIAL = {"script": "print(1)", "argv": ["/opt/app/current/bin/python", "%s", "part"]}


class TestTrials:
    @pytest.fixture
    def trials(self, host, monkeypatch, tmp_path):
        """Systemd runs one-shot units: it records their text, and prints and exits as the test sets."""
        run, told = host.systemd.run, SimpleNamespace(units=[], code=0, said="")
        monkeypatch.setattr(checks, "RUNTIME_UNITS", tmp_path / "run")

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
        checks.try_out(host.service, release, [{**TRIAL, "argv": ["/opt/app/9/bin/python", "%s", "part"]}])
        (text,) = trials.units
        assert 'ExecStart="/opt/app/9/bin/python"' in text and '"part"' in text
        assert not any((tmp_path / "run").iterdir())

    def test_its_last_line_is_the_refusal(self, host, trials, tmp_path):
        trials.code, trials.said = 1, "working\ntriton cannot be compiled: there is no C compiler: install gcc.\n"
        with pytest.raises(Refused, match=r"^app: triton cannot be compiled: there is no C compiler: install gcc\.$"):
            checks.try_out(host.service, wanted(host), [TRIAL])
        assert not any((tmp_path / "run").iterdir())

    def test_one_that_did_not_begin_is_refused_with_systemds_words(self, host, trials):
        trials.code = 1
        with pytest.raises(Refused, match=r"app: Job failed\."):
            checks.try_out(host.service, wanted(host), [TRIAL])


class TestDifferences:
    def test_a_bare_host_lacks_everything(self, host):
        release = wanted(host)
        assert [Path(each["what"]).name for each in contents.differences(host.service, release)] == [
            "app.yml", "app.service", "current", "app.service at boot",
        ]  # fmt: skip

    def test_what_was_put_differs_in_nothing(self, host):
        release = wanted(host)
        serve(host, release)
        assert contents.differences(host.service, release) == []
        assert serving.restart_reason(host.service, release, []) is None

    @pytest.mark.parametrize("path", ["etc/app/app.yml", "etc/systemd/system/app.service"])
    def test_a_changed_file_and_a_changed_mode_are_seen(self, host, path):
        release = wanted(host)
        serve(host, release)
        (host.root / path).write_text("edited\n")
        assert [each["what"] for each in contents.differences(host.service, release)] == [str(host.root / path)]
        contents.put(host.service, release)
        (host.root / path).chmod(0o666)
        assert [each["what"] for each in contents.differences(host.service, release)] == [str(host.root / path)]

    def test_a_lost_environment_and_a_unit_that_is_off_at_boot_are_seen(self, host):
        release = wanted(host)
        serve(host, release)
        host.service.environment.unlink()
        assert [each["what"] for each in contents.differences(host.service, release)] == [str(host.service.environment)]
        contents.put(host.service, release)
        host.systemd.enabled = False
        assert [each["what"] for each in contents.differences(host.service, release)] == ["app.service at boot"]


class TestLimits:
    FEW, MORE = ({"oom_score_adjust": 1000, "memory_max": most} for most in ("256M", "512M"))

    def limited(self, host, limits, **changes):
        return {**wanted(host, **changes), "limits": limits}

    def test_another_limit_is_written_and_restarts_nothing(self, host):
        serve(host, self.limited(host, self.FEW))
        more = self.limited(host, self.MORE)
        differences = contents.differences(host.service, more)
        assert [Path(each["what"]).name for each in differences] == ["app.service"]
        assert "MemoryMax=512M" in differences[0]["after"]
        assert serving.restart_reason(host.service, more, differences) is None
        contents.put(host.service, more)
        assert contents.differences(host.service, more) == []
        assert "MemoryMax=512M" in host.service.unit_path.read_text()

    def test_a_service_of_before_there_were_limits_is_not_restarted_for_them(self, host):
        before = wanted(host)
        del before["limits"]
        serve(host, before)
        assert serving.restart_reason(host.service, self.limited(host, self.FEW), []) is None

    def test_processes_with_another_place_are_seen(self, host, monkeypatch):
        release = self.limited(host, self.FEW)
        serve(host, release)
        monkeypatch.setattr(systemd_unit, "unscored", lambda unit: [Path("/proc/7")])
        assert [each["what"] for each in contents.differences(host.service, release)] == ["OOM score"]

    def test_going_back_keeps_those_of_today(self, host):
        serve(host, self.limited(host, self.FEW))
        serve(host, self.limited(host, self.MORE, text="a: 2\n"))
        rollback.go_back(host.service)
        assert host.service.release(host.service.state()["current"])["limits"] == self.MORE
        assert "MemoryMax=512M" in host.service.unit_path.read_text()

    def test_less_than_it_uses_is_refused(self, host, monkeypatch):
        monkeypatch.setattr(systemd_unit, "memory_used", lambda unit: 300)
        checks.check_memory(host.service, self.MORE)
        checks.check_memory(host.service, {})
        with pytest.raises(
            Refused, match=r"^app: app_memory_max is 256M \(256 MiB on this host\), but the service now uses 300"
        ):
            checks.check_memory(host.service, self.FEW)


class TestLiveFiles:
    """Files and secrets that the process reloads while it runs."""

    @pytest.fixture(params=["files", "secrets"])
    def run(self, host, monkeypatch, request):
        """Run the module for a service with live files or secrets (name: text); return its result."""
        monkeypatch.setattr(checks, "check", lambda *_: None)
        monkeypatch.setattr(checks, "check_unit", lambda *_: [])

        def run(texts, plain="a: 1\n", reload="/bin/kill -HUP $MAINPID", probes=(), installed=None):
            common = {"mode": "0640", "owner": "root", "group": "root", "validate": None}
            files = [{**common, "path": str(host.root / "etc/app/app.yml"), "content": plain, "live": False}]
            live = [{"path": str(host.root / "etc/app" / name), "content": text} for name, text in texts.items()]
            live = [{**common, **file, "plain": [], "whole": True, "live": True} for file in live]
            parts = {"files": files, "secrets": []}
            parts[request.param] = parts[request.param] + live
            unit = {"Service": {**UNIT["Service"], **({"ExecReload": reload} if reload else {})}}
            arguments = {
                **parts, "links": [], "unit": unit, "inputs": {}, "user": None, "directories": [], "listens": [],
                "trials": [], "probes": list(probes), "before_start": [], "start_timeout": 5, "installed": installed,
            }  # fmt: skip
            host.systemd.said.clear()
            result = deploy.deploy(host.service, arguments, check_mode=False)
            if result["await"]:
                rollback.confirm(host.service)
            return result

        return run

    def test_a_program_that_was_installed_is_a_change(self, run):
        run({})
        there = {"changed": False, "path": "/opt/app/1.0", "diff": {}}
        result = run({}, installed=there)
        assert (result["changed"], result["program"], result["diff"]) == (False, "/opt/app/1.0", [])
        result = run({}, installed={**there, "changed": True, "diff": {"before": "", "after": "app"}})
        assert (result["changed"], result["restarted"], result["diff"]) == (
            True,
            None,
            [{"before": "", "after": "app"}],
        )

    def test_another_text_is_reloaded_and_restarts_nothing(self, host, run):
        assert run({"targets.yml": "one"})["restarted"]
        first = host.service.state()["current"]
        result = run({"targets.yml": "two"})
        assert (result["changed"], result["restarted"], result["await"]) == (True, None, False)
        assert "systemctl reload" in host.systemd.said and "systemctl restart" not in host.systemd.said
        assert (host.root / "etc/app/targets.yml").read_text() == "two"
        assert host.service.state()["current"] == first
        assert not run({"targets.yml": "two"})["changed"]
        assert host.systemd.said == []

    def test_one_more_and_one_less_restart_nothing(self, host, run):
        run({"one.json": "{}"})
        assert run({"one.json": "{}", "two.json": "{}"})["restarted"] is None
        assert run({"two.json": "{}"})["restarted"] is None
        assert "systemctl reload" in host.systemd.said
        assert sorted(path.name for path in (host.root / "etc/app").iterdir()) == ["app.yml", "two.json"]
        assert not run({"two.json": "{}"})["changed"]

    def test_a_program_that_reloads_by_itself_gets_no_reload(self, host, run):
        run({"one.json": "{}"}, reload=None)
        assert run({"one.json": "[]"}, reload=None)["changed"]
        assert "systemctl reload" not in host.systemd.said

    def test_a_change_of_another_file_still_restarts(self, host, run):
        run({"targets.yml": "one"})
        assert run({"targets.yml": "two"}, plain="a: 2\n")["restarted"]
        assert "systemctl reload" not in host.systemd.said

    def test_going_back_keeps_those_of_today(self, host, run):
        run({"targets.yml": "one"})
        run({"targets.yml": "two", "more.yml": "three"}, plain="a: 2\n")
        rollback.go_back(host.service)
        assert {path.name: path.read_text() for path in (host.root / "etc/app").iterdir()} == {
            "app.yml": "a: 1\n", "targets.yml": "two", "more.yml": "three",
        }  # fmt: skip

    def test_one_that_another_wrote_belongs_to_the_service_afterwards(self, host, run):
        run({})
        path = host.root / "etc/app/targets.yml"
        path.write_text("one")
        path.chmod(0o640)
        assert not run({"targets.yml": "one"})["changed"]
        assert run({})["changed"] and not path.exists()

    def test_a_live_file_is_checked_alone_and_waits_for_nothing(self, host, run, monkeypatch):
        run({"one.json": "{}", "two.json": "{}"})
        done = []
        monkeypatch.setattr(checks, "check", lambda *words: done.append([file["path"] for file in words[2]]))
        monkeypatch.setattr(checks, "check_ports", lambda *_: done.append("ports"))
        run({"one.json": "[]", "two.json": "{}"})
        run({"one.json": "[]"})
        assert done == [[str(host.root / "etc/app/one.json")], []]
        run({"one.json": "{}"}, plain="a: 2\n")
        host.systemd.enabled = False
        run({"one.json": "{}"}, plain="a: 2\n")
        assert done[4] == "ports"
        assert done[2:4] == ["ports", [str(host.root / "etc/app" / name) for name in ("app.yml", "one.json")]]

    def test_other_live_files_do_not_make_the_release_newer(self, host, run):
        run({"one.json": "{}"})
        (record,) = (host.service.store / "releases").glob("*.json")
        os.utime(record, (1, 1))
        run({"one.json": "[]"})
        assert record.stat().st_mtime == 1


class TestLiveSecrets:
    """A secret that the process reloads, and whose text no release keeps."""

    @pytest.fixture
    def run(self, host, monkeypatch):
        """Deploy the service with ``text`` in its live secret, or without one; return the result."""
        monkeypatch.setattr(checks, "check", lambda *_: None)
        monkeypatch.setattr(checks, "check_unit", lambda *_: [])

        def run(text, plain, serves=True, others=()):
            owned = {"mode": "0640", "owner": "root", "group": "root", "validate": None}
            file = {**owned, "path": str(host.root / "etc/app/app.yml"), "content": plain, "live": False}
            secret = {**owned, "path": str(host.root / "etc/app/keys"), "content": text, "plain": [], "whole": True}
            arguments = {
                "files": [file], "secrets": [*([{**secret, "live": True}] if text else []), *others], "links": [],
                "unit": UNIT, "inputs": {}, "user": None, "directories": [], "listens": [], "trials": [], "probes": [],
                "before_start": [], "start_timeout": 5,
            }  # fmt: skip
            result = deploy.deploy(host.service, arguments, check_mode=False)
            if result["await"] and serves:
                rollback.confirm(host.service)
            return result

        return run

    def test_no_release_keeps_its_text(self, host, run):
        run("the-key", "a: 1\n")
        assert (host.root / "etc/app/keys").read_text() == "the-key"
        stored = "".join(path.read_text() for path in host.service.store.rglob("*") if path.is_file())
        assert "the-key" not in stored and "etc/app/keys" in stored

    def test_the_release_that_replaces_it_removes_it_once_it_serves(self, host, run):
        run("the-key", "a: 1\n")
        run("", "a: 2\n", serves=False)
        assert (host.root / "etc/app/keys").exists()
        assert rollback.roll_back(host.service)["rolled_back_to"]
        assert (host.root / "etc/app/keys").read_text() == "the-key"
        run("", "a: 2\n")
        assert not (host.root / "etc/app/keys").exists()

    def test_a_process_that_was_started_when_secrets_were_files_is_left_alone(self, host, run):
        owned = {"mode": "0600", "owner": "root", "group": "root"}
        other = {**owned, "path": str(host.root / "etc/app/token"), "content": "the-token"}
        secret = {**other, "plain": [], "whole": True, "validate": None}
        run("the-key", "a: 1\n", others=[secret])
        record = host.service.release(host.service.state()["current"])
        host.systemd.running = digest({**record, "files": [*record["files"], other], "secrets": []})
        assert run("the-key", "a: 1\n", others=[secret])["restarted"] is None

    def test_there_is_no_way_back_to_one_that_is_gone(self, host, run):
        run("the-key", "a: 1\n")
        run("", "a: 2\n")
        before = host.service.state()
        with pytest.raises(
            Refused, match=r"^app: .*/etc/app/keys is gone, and no release keeps a secret; run site.yml$"
        ):
            rollback.go_back(host.service)
        assert host.service.state() == before and (host.root / "etc/app/app.yml").read_text() == "a: 2\n"


class TestUnitsAmongTheFiles:
    def test_one_that_goes_is_stopped_first(self, host):
        timer = {"path": str(store.UNITS / "app-night.timer"), "mode": "0644", "owner": "root"}
        both = contents.build(host.service, [{**timer, "content": "[Timer]\n", "group": "root"}], [], UNIT)
        serve(host, both)
        none = contents.build(host.service, [], [], UNIT)
        contents.take_away(host.service, both, but=both)
        assert Path(timer["path"]).exists()
        host.systemd.said.clear()
        contents.take_away(host.service, both, but=none)
        assert not Path(timer["path"]).exists()
        assert host.systemd.said == ["systemctl stop"]


class TestRestart:
    def test_a_stopped_service_is_started(self, host):
        release = wanted(host)
        contents.put(host.service, release)
        assert serving.restart_reason(host.service, release, []) == "it was not running (inactive, running)"

    def test_a_run_that_ended_before_the_start_is_healed(self, host):
        serve(host, wanted(host))
        new = wanted(host, text="a: 2\n")
        contents.put(host.service, new)
        assert contents.differences(host.service, new) == []
        reason = serving.restart_reason(host.service, new, [])
        assert reason == "the running process was not started with what is written"

    def test_a_change_is_named(self, host):
        serve(host, wanted(host))
        new = wanted(host, text="a: 2\n")
        reason = serving.restart_reason(host.service, new, contents.differences(host.service, new))
        assert reason == f"changed: {host.root}/etc/app/app.yml"


class TestLook:
    def test_it_is_ready_when_its_probes_are(self, host):
        serve(host, wanted(host))
        seen = serving.poll(host.service, [], 0, 60)
        assert (seen["ready"], seen["dead"], seen["journal"]) == (True, False, [])

    def test_a_process_that_left_is_dead_at_once(self, host):
        serve(host, wanted(host))
        host.systemd.dead = True
        seen = serving.poll(host.service, [], 30, 60)
        assert (seen["ready"], seen["dead"]) == (False, True)
        assert seen["why"] == "its process left (exit-code, status 1)"
        assert seen["journal"] == ["a line"]

    def test_a_restart_by_systemd_during_the_start_is_a_death(self, host):
        serve(host, wanted(host))
        host.systemd.restarts = 1
        assert serving.poll(host.service, [], 30, 60)["dead"] is True

    def test_a_crash_loop_before_the_start_is_not(self, host):
        serve(host, wanted(host))
        host.systemd.restarts = 2
        serving.start(host.service)
        assert serving.poll(host.service, [], 0, 60)["ready"] is True

    def test_a_restart_of_long_ago_is_not(self, host):
        serve(host, wanted(host))
        host.systemd.restarts = 3
        serving.watch(host.service)
        assert serving.poll(host.service, [], 0, 60)["ready"] is True

    def test_the_journal_is_this_processs_own(self, host, monkeypatch):
        told = []
        monkeypatch.setattr(systemd_unit, "journal", lambda unit, since, count: told.append(since) or [])
        monkeypatch.setattr(systemd_unit, "journal_end", lambda: "s=1;i=2")
        serve(host, wanted(host))
        host.systemd.dead = True
        serving.poll(host.service, [], 0, 60)
        # For a process that this run found running, the journal is read from the process's start, an hour ago.
        usual = host.systemd.show("app.service")
        begun = str(int((time.monotonic() - 3600) * 1e6))
        monkeypatch.setattr(systemd_unit, "show", lambda _: {**usual, "ExecMainStartTimestampMonotonic": begun})
        serving.watch(host.service)
        serving.poll(host.service, [], 0, 60)
        assert told[0] == "s=1;i=2"
        assert told[1] == pytest.approx(time.time() - 3600, abs=5)

    def test_a_clock_that_jumps_does_not_count_as_a_late_start(self, host, monkeypatch):
        serve(host, wanted(host))
        now = time.time()
        monkeypatch.setattr(serving.time, "time", lambda: now + 7200)
        monkeypatch.setattr(serving.probes, "first_failure", lambda *_: "not yet")
        seen = serving.poll(host.service, [{}], 0, 60)
        assert (seen["dead"], seen["why"]) == (False, "not yet") and seen["elapsed"] < 60

    def test_the_time_to_stop_the_process_before_is_not_its_own(self, host, monkeypatch):
        serve(host, wanted(host))
        now, usual = time.monotonic(), host.systemd.run

        def slow(*argv, **options):
            if argv[1] == "restart":
                monkeypatch.setattr(serving.time, "monotonic", lambda: now + 30)
            return usual(*argv, **options)

        monkeypatch.setattr(systemd_unit, "run", slow)
        serving.start(host.service)
        assert serving.poll(host.service, [], 0, 20)["elapsed"] < 1

    def test_it_does_not_read_past_its_limit(self, host, monkeypatch):
        serve(host, wanted(host))
        host.service.note(since=host.service.state()["since"] - 59.9)
        within = []
        monkeypatch.setattr(serving.probes, "first_failure", lambda _, most: within.append(most) or "not yet")
        seen = serving.poll(host.service, [{}], 600, 60)
        assert (seen["ready"], seen["dead"], seen["why"]) == (False, False, "not yet")
        assert within[0] == 1 and len(within) <= 2


class TestBack:
    def test_the_last_verified_release_is_restored_completely(self, host):
        old, new = wanted(host), wanted(host, text="a: 2\n", version="1.1", name="other.yml")
        serve(host, old)
        contents.put(host.service, new)
        contents.take_away(host.service, old, but=new)
        host.service.note(current=digest(new))
        assert rollback.go_back(host.service) == digest(old)
        assert contents.differences(host.service, old) == []
        assert host.systemd.running == digest(old)
        assert not (host.root / "etc/app/other.yml").exists()

    def test_the_failed_one_is_kept_until_something_newer_serves(self, host):
        old, bad, new = (wanted(host, version=version) for version in ("1.0", "1.1", "1.2"))
        serve(host, old)
        contents.put(host.service, bad)
        host.service.note(current=digest(bad), failed=digest(bad))
        rollback.go_back(host.service)
        rollback.confirm(host.service)
        assert host.service.state()["failed"] == digest(bad)
        assert (host.root / "opt/app/1.1").is_dir() and host.service.release(digest(bad)) == bad
        serve(host, new)
        assert host.service.state()["failed"] is None and not (host.root / "opt/app/1.1").exists()

    def test_a_service_that_is_not_here_is_named_with_those_that_are(self, host):
        serve(host, wanted(host))
        with pytest.raises(Refused, match="there is no service ap on this host; there are: app"):
            rollback.earlier(Service("ap"))

    def test_without_an_earlier_release_there_is_no_rollback(self, host):
        serve(host, wanted(host))
        with pytest.raises(Refused, match="no earlier verified release is kept here"):
            rollback.go_back(host.service)

    def test_one_that_is_not_kept_is_refused_with_the_kept_ones(self, host):
        old, new = wanted(host), wanted(host, text="a: 2\n")
        serve(host, old)
        serve(host, new)
        with pytest.raises(Refused, match=f"release nope is not kept here; kept are: {digest(old)}"):
            rollback.go_back(host.service, "nope")

    def test_three_are_kept_and_the_programs_that_none_needs_go(self, host):
        releases = [wanted(host, version=f"1.{number}") for number in range(5)]
        for release in releases:
            serve(host, release)
        assert host.service.state()["verified"] == [digest(release) for release in releases[2:]]
        assert sorted(path.name for path in (host.root / "opt/app").iterdir()) == ["1.2", "1.3", "1.4", "current"]
        assert len(list((host.service.store / "releases").iterdir())) == 3


def test_a_programs_refusal_is_reported_without_its_usage(host, tmp_path):
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
        checks._ask_program(host.service, [str(program), "%s"], file, tmp_path, None)


def test_amtools_message_is_reported(host, tmp_path):
    program = tmp_path / "amtool"
    program.write_text(
        "#!/bin/sh\n"
        "echo \"Checking '$1'  FAILED: yaml: unmarshal errors:\"\n"
        "echo '  line 9: field address not found in type config.plain'\n"
        "echo 'amtool: error: failed to validate 1 file(s)' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    said = "yaml: unmarshal errors: | line 9: field address not found in type config.plain"
    with pytest.raises(Refused, match=f"^app: amtool refuses /etc/app.yml: {said}$".replace("|", r"\|")):
        checks._ask_program(host.service, [str(program), "%s"], {"path": "/etc/app.yml", "content": ""}, tmp_path, None)


@pytest.mark.parametrize("mode, told", [("0640", "a: 2"), ("0600", "secret")])
def test_the_rollback_is_previewed(host, mode, told):
    file = {"path": str(host.root / "etc/app/app.yml"), "mode": mode, "owner": "root", "group": "root"}
    for text in ("a: 1\n", "a: 2\n"):
        serve(host, contents.build(host.service, [{**file, "content": text}], [], UNIT))
    said = len(host.systemd.said)
    foreseen = service_rollback.preview(host.service, {"release": None})
    assert foreseen["release"] == rollback.earlier(host.service) and foreseen["changed"]
    (shown,) = foreseen["diff"]
    assert told in shown.get("before", shown.get("prepared"))
    assert len(host.systemd.said) == said
    done = service_rollback.change(host.service, {"release": None})
    assert (done["release"], done["diff"]) == (foreseen["release"], foreseen["diff"])


class TestLostNotes:
    @pytest.mark.parametrize("text", [None, '{"current": "72', "[1]", ""])
    def test_what_runs_is_adopted_as_it_is(self, host, monkeypatch, text):
        release = wanted(host)
        serve(host, release)
        note = host.service.store / "state.json"
        note.unlink() if text is None else note.write_text(text)
        restarts = host.systemd.said.count("systemctl restart")
        monkeypatch.setattr(contents, "build", lambda *_: release)
        arguments = {
            "files": [],
            "secrets": [],
            "links": [],
            "unit": {},
            "directories": [],
            "listens": [],
            "trials": [],
            "probes": [],
            "inputs": {},
            "before_start": [],
        }
        arguments |= {"user": None, "home": "/", "start_timeout": 60}
        result = deploy.deploy(host.service, arguments, check_mode=False)
        assert (result["restarted"], result["await"]) == (None, True)
        assert host.service.state()["current"] == digest(release)
        rollback.confirm(host.service)
        assert host.service.state()["verified"] == [digest(release)]
        assert host.systemd.said.count("systemctl restart") == restarts


class TestRefusal:
    @pytest.mark.parametrize("port", [0, 65536, -1])
    def test_an_invalid_port(self, host, port):
        with pytest.raises(Refused, match=f"{port} is no TCP port"):
            checks.check_ports(host.service, [port])

    def test_a_port_of_another(self, host, monkeypatch):
        monkeypatch.setattr(systemd_unit, "port_holder", lambda port, unit: "nginx (pid 12)" if port == 80 else None)
        checks.check_ports(host.service, [81])
        with pytest.raises(Refused, match=r"app: port 80 is taken by nginx \(pid 12\); stop it or choose another port"):
            checks.check_ports(host.service, [81, 80])

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
            account.put_directory(host.service, entry)

    def test_everything_that_was_made_goes_and_the_rest_stays(self, host):
        (host.root / "srv").mkdir()
        (host.root / "srv/mine").write_text("mine")
        self.put_directories(host, keep=False)
        serve(host, wanted(host))
        assert removal.remove(host.service, purge=False) is True
        assert sorted(path.name for path in (host.root / "srv").iterdir()) == ["mine"]
        assert not (host.root / "var/lib/llm-server").exists()
        assert not (host.root / "etc/app/app.yml").exists()
        assert not host.service.unit_path.exists()
        assert "systemctl disable" in host.systemd.said
        assert removal.remove(host.service, purge=False) is False

    def test_data_stays_until_a_purge(self, host):
        self.put_directories(host, keep=True)
        serve(host, wanted(host))
        (host.root / "srv/data/app/model").write_text("weights")
        assert removal.remove(host.service, purge=False) is True
        assert (host.root / "srv/data/app/model").read_text() == "weights"
        assert removal.remove(host.service, purge=False) is False
        assert removal.remove(host.service, purge=True) is True
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
        store.write(path, "old", 0o600)
        monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            store.write(path, "new", 0o600)
        assert path.read_text() == "old"

    def test_mode_is_set_before_the_text_is_there(self, host):
        path = host.root / "secret"
        store.write(path, "text", 0o600)
        assert path.stat().st_mode & 0o777 == 0o600


def test_probes_are_kept_with_their_release(host):
    proof = {"probes": [{"http": {"url": "http://127.0.0.1:1/health"}}], "before_start": [], "start_timeout": 600}
    host.service.store_proof("abc", proof)
    assert host.service.proof_of("abc") == proof
    assert host.service.proof_of("other") == {"probes": [], "before_start": [], "start_timeout": None}
    assert (host.service.store / "probes/abc.json").stat().st_mode & 0o777 == 0o600


class TestUnit:
    def test_hardened_defaults_can_be_removed(self):
        text = systemd_unit.render({"Service": {"ExecStart": "/x", "ProtectHome": None, "PrivateTmp": False}})
        assert "NoNewPrivileges=yes\n" in text
        assert "ProtectHome" not in text
        assert "PrivateTmp=no\n" in text
        assert text.index("[Unit]") < text.index("[Service]") < text.index("[Install]")

    def test_a_list_repeats_its_directive(self):
        text = systemd_unit.render({"Service": {"Environment": ["A=1", "B=2"]}})
        assert "Environment=A=1\nEnvironment=B=2\n" in text


OLD, NEW = "canary-old-key", "canary-new-key"


class TestSecrets:
    """A secret is only in its file, so a rollback does not change it."""

    def ask(self, host, key=OLD, text="a: 1\n", **others):
        """Return the arguments of a task: one file, one secret and a probe that uses it."""
        here = {"owner": "root", "group": "root", "validate": None}
        secret = {
            "path": str(host.root / "etc/app/env"),
            "content": f"KEY={key}\n",
            "mode": "0600",
            "plain": [],
            **here,
        }
        probe = {"http": {"url": "http://127.0.0.1:9/", "bearer_file": secret["path"], "bearer_variable": "KEY"}}
        return {
            "files": [{"path": str(host.root / "etc/app/app.yml"), "content": text, "mode": "0640", **here}],
            "secrets": [secret], "links": [], "inputs": {}, "unit": UNIT, "directories": [], "listens": [],
            "trials": [], "probes": [probe], "before_start": [], "user": None, "home": "/", "start_timeout": 60,
            "state": "present", "release": None, **others,
        }  # fmt: skip

    def run(self, host, verify=True, **change):
        result = service_release.change(host.service, self.ask(host, **change))
        if verify:
            rollback.confirm(host.service)
        return result

    def key(self, host):
        return (host.root / "etc/app/env").read_text()

    def stored(self, host):
        return "".join(path.read_text() for path in host.service.store.rglob("*") if path.is_file())

    def test_no_release_and_no_probe_has_it(self, host):
        self.run(host)
        assert self.key(host) == f"KEY={OLD}\n" and "etc/app/env" in self.stored(host)
        assert OLD not in self.stored(host)

    def test_what_is_stored_cannot_be_compared_with_guesses(self, host):
        self.run(host)
        (secret,) = host.service.release(host.service.state()["current"])["secrets"]
        ((name, keyed),) = secret["lines"]
        assert name == "KEY" and keyed != hashlib.sha256(OLD.encode()).hexdigest()
        assert host.service.key.stat().st_mode & 0o777 == 0o600
        before = self.run(host)["release"]
        host.service.key.unlink()
        del host.service._own_key
        assert self.run(host)["release"] != before, "another host has another key"

    def test_another_one_restarts_and_the_same_one_does_not(self, host):
        self.run(host)
        assert self.run(host)["changed"] is False
        result = self.run(host, key=NEW)
        assert result["restarted"] == f"changed: {host.root}/etc/app/env"
        assert result["diff"] == [{"prepared": f"{host.root}/etc/app/env: secret, its text is not shown\n"}]

    def test_going_back_keeps_the_new_one(self, host):
        self.run(host)
        self.run(host, key=NEW)
        assert self.run(host, verify=False, key=NEW, text="bad\n")["may_roll_back"] is True
        back = service_step.change(host.service, {"step": "roll_back", "release": host.service.state()["current"]})
        rollback.confirm(host.service)
        assert (host.root / "etc/app/app.yml").read_text() == "a: 1\n"
        assert self.key(host) == f"KEY={NEW}\n"
        assert host.systemd.running == back["rolled_back_to"] == host.service.state()["current"]
        result = self.run(host, key=NEW)
        assert (result["changed"], result["restarted"]) == (False, None)

    def test_going_back_over_a_rotation_keeps_the_new_one(self, host):
        self.run(host)
        old = host.service.state()["current"]
        self.run(host, key=NEW, text="a: 2\n")
        back = service_rollback.change(host.service, {"release": None})
        rollback.confirm(host.service)
        assert (host.root / "etc/app/app.yml").read_text() == "a: 1\n"
        assert self.key(host) == f"KEY={NEW}\n"
        assert back["release"] != old, "with another key it is another release"
        assert host.service.proof_of(back["release"])["probes"][0]["http"]["bearer_variable"] == "KEY"
        assert self.run(host, key=NEW)["changed"] is False

    def test_a_rotation_takes_no_place_among_the_releases_to_go_back_to(self, host):
        self.run(host)
        self.run(host, text="a: 2\n")
        for key in ("second", "third", "fourth"):
            self.run(host, key=key, text="a: 2\n")
        service_rollback.change(host.service, {"release": None})
        assert (host.root / "etc/app/app.yml").read_text() == "a: 1\n"
        assert self.key(host) == "KEY=fourth\n"

    def test_a_rotation_that_does_not_serve_stays(self, host):
        """No rollback is possible: the earlier release only differs in its secret, which is gone."""
        self.run(host)
        result = self.run(host, verify=False, key=NEW)
        assert (result["may_roll_back"], result["new_secrets"]) == (False, True)
        with pytest.raises(Refused, match="no earlier verified release is kept here"):
            rollback.earlier(host.service)

    def settings(self, host, text):
        return [self.ask(host)["secrets"][0] | {"content": text, "plain": ["MODEL", "URL"]}]

    def test_plain_values_are_restored_with_their_release(self, host):
        """A setting can be the error, and is in the same file as the keys."""
        self.run(host, secrets=self.settings(host, f"MODEL=a\nKEY={OLD}\nURL=http://u:{OLD}@host\nGONE={OLD}\n"))
        result = self.run(host, verify=False, secrets=self.settings(host, f"KEY={NEW}\nMODEL=b\nURL=\nMORE={NEW}\n"))
        assert (result["may_roll_back"], result["new_secrets"]) == (True, False)
        assert "MODEL=a" in self.stored(host) and OLD not in self.stored(host) and NEW not in self.stored(host)
        rollback.go_back(host.service)
        rollback.confirm(host.service)
        assert self.key(host) == f"MODEL=a\nKEY={NEW}\nURL=\n"
        text = f"MODEL=a\nKEY={NEW}\nURL=\n"
        assert self.run(host, secrets=self.settings(host, text))["restarted"] is None

    def test_a_line_ends_at_a_line_feed_alone(self, host):
        """A prompt may contain other characters at which Python ends a line."""
        text = f"MODEL='a\u2028b\x85c\x0bd'\nKEY={OLD}\n"
        self.run(host, secrets=self.settings(host, text))
        assert self.run(host, secrets=self.settings(host, text))["changed"] is False
        self.run(host, secrets=self.settings(host, text.replace("MODEL='a", "MODEL='other")))
        service_rollback.change(host.service, {"release": None})
        assert self.key(host) == text

    def test_a_file_of_secrets_that_cannot_be_read_line_by_line_is_refused(self, host):
        with pytest.raises(Refused, match=r"line 2 of .*/env is not NAME=value") as refusal:
            self.run(host, secrets=self.settings(host, f"KEY=1\n{OLD}\n"))
        assert OLD not in str(refusal.value)

    def test_a_file_that_is_a_secret_is_stored_nowhere_else(self, host):
        whole = {"plain": [], "whole": True}
        self.run(host, secrets=[self.ask(host)["secrets"][0] | {"content": f"{OLD}=x\n{OLD}", **whole}], probes=[])
        first = host.service.state()["current"]
        assert OLD not in str(host.service.release(first))
        again = [self.ask(host)["secrets"][0] | {"content": f"{OLD}=x\n{OLD}", **whole}]
        assert self.run(host, secrets=again, probes=[])["restarted"] is None
        self.run(host, secrets=[again[0] | {"content": NEW}], text="b\n", probes=[])
        rollback.go_back(host.service)
        assert (host.root / "etc/app/env").read_text() == NEW

    def test_a_missing_secret_is_named(self, host):
        self.run(host)
        self.run(host, text="a: 2\n")
        (host.root / "etc/app/env").unlink()
        with pytest.raises(Refused, match="etc/app/env is gone, and no release keeps a secret"):
            rollback.go_back(host.service)

    def test_a_secret_that_moved_stays_until_no_kept_release_needs_it(self, host):
        self.run(host)
        moved = self.ask(host, key=NEW)["secrets"][0] | {"path": str(host.root / "etc/other/env")}
        self.run(host, secrets=[moved])
        assert self.key(host) == f"KEY={OLD}\n"
        for number in range(3):
            self.run(host, secrets=[moved], text=f"{number}\n")
        assert not (host.root / "etc/app/env").exists()
        assert (host.root / "etc/other/env").exists()
        assert removal.remove(host.service, purge=True)
        assert not (host.root / "etc/other/env").exists()

    def put_as_before(self, host, text="a: 1\n", key=OLD):
        """Store a serving release in the format from before secrets were kept out; return its name."""
        asked = self.ask(host, key, text)
        release = contents.build(host.service, [*asked["files"], *asked["secrets"]], [], UNIT)
        name = digest(release)
        serve(host, release)
        stored = {key: release[key] for key in ("files", "links", "unit")}
        (host.service.store / f"releases/{name}.json").write_text(json.dumps(stored))
        probe = {"http": {"url": "http://127.0.0.1:9/", "bearer": key}, "models": None}
        proof = {"probes": [probe], "start_timeout": 60}
        store.write(host.service.store / f"probes/{name}.json", json.dumps(proof), 0o600)
        return name

    def test_a_store_of_before_is_cleaned_and_nothing_is_restarted(self, host, monkeypatch):
        monkeypatch.setattr(deploy, "first_failure", lambda _: None)
        older, running = self.put_as_before(host, text="a: 0\n"), self.put_as_before(host)
        assert OLD in self.stored(host)
        foreseen = service_release.preview(host.service, self.ask(host))
        assert OLD in self.stored(host), "check mode writes nothing"
        said = list(host.systemd.said)
        result = self.run(host, verify=False)
        assert (foreseen["restarted"], result["restarted"], result["await"]) == (None, None, False)
        assert [line for line in host.systemd.said[len(said) :] if "restart" in line] == []
        assert OLD not in self.stored(host)
        state = host.service.state()
        assert state["current"] == state["verified"][-1] == result["release"] != running
        assert len(state["verified"]) == 2 and older not in state["verified"]
        again = self.run(host, verify=False)
        assert (again["changed"], again["restarted"]) == (False, None)
        assert host.systemd.running == running, "the process still says the name that it was started with"
        service_rollback.change(host.service, {"release": None})
        probes = host.service.proof_of(host.service.state()["current"])["probes"]
        assert probes[0]["http"]["bearer_file"] == str(host.root / "etc/app/env")
        assert (host.root / "etc/app/app.yml").read_text() == "a: 0\n"

    def test_going_back_in_a_store_of_before_keeps_the_new_one(self, host):
        self.put_as_before(host, text="a: 0\n")
        self.put_as_before(host, key=NEW)
        service_rollback.change(host.service, {"release": None})
        assert (host.root / "etc/app/app.yml").read_text() == "a: 0\n"
        assert self.key(host) == f"KEY={NEW}\n"
        assert OLD not in self.stored(host) and NEW not in self.stored(host)

    def test_a_service_without_secrets_keeps_its_name(self, host):
        release = wanted(host)
        before = {key: release[key] for key in ("files", "links", "unit")}
        assert digest(release) == hashlib.sha256(json.dumps(before, sort_keys=True).encode()).hexdigest()[:16]
        serve(host, release)
        assert not host.service.key.exists()

    def test_another_input_is_a_restart(self, host):
        self.run(host, inputs={"files of the model": "abc"})
        assert self.run(host, inputs={"files of the model": "abc"})["changed"] is False
        result = self.run(host, inputs={"files of the model": "def"})
        assert result["restarted"] == "changed: input 'files of the model'"
        assert (result["diff"][0]["before"], result["diff"][0]["after"]) == ("abc\n", "def\n")
        assert self.run(host)["restarted"] == "changed: input 'files of the model'"

    def test_more_time_to_start_changes_nothing_but_is_kept(self, host, monkeypatch):
        monkeypatch.setattr(deploy, "first_failure", lambda _: None)
        self.run(host)
        result = self.run(host, verify=False, start_timeout=900)
        assert (result["changed"], result["restarted"], result["await"]) == (False, None, False)
        assert host.service.proof_of(result["release"])["start_timeout"] == 900

    def compare(self, host, **change):
        host.systemd.said.clear()
        return self.run(host, verify=False, compare_only=True, **change)

    def files(self, host):
        return {str(path): path.read_bytes() for path in host.root.rglob("*") if path.is_file()}

    @pytest.mark.parametrize("change", [{"text": "a: 2\n"}, {"key": NEW}, {"inputs": {"model": "b"}}])
    def test_a_comparison_reports_a_difference_and_leaves_it(self, host, change):
        self.run(host)
        before = self.files(host)
        result = self.compare(host, **change)
        assert result["changed"] and not result["await"]
        assert self.files(host) == before and set(host.systemd.said) <= {"systemctl show"}
        assert self.run(host, **change)["restarted"] == result["restarted"] is not None

    def test_a_comparison_of_a_new_service_leaves_nothing(self, host):
        before = self.files(host)
        assert self.compare(host)["changed"] and self.files(host) == before

    def test_a_comparison_without_differences_is_a_run(self, host, monkeypatch):
        """It keeps the probes for a rollback, and finds a service that does not serve."""
        failing = []
        monkeypatch.setattr(deploy, "first_failure", lambda _: next(iter(failing), None))
        self.run(host)
        result = self.compare(host, start_timeout=900)
        assert (result["changed"], result["await"]) == (False, False)
        assert host.service.proof_of(result["release"])["start_timeout"] == 900
        failing.append("connection refused")
        assert self.compare(host)["await"] is True

    def test_a_comparison_leaves_it_to_the_run_that_systemd_reads_the_files_again(self, host, monkeypatch):
        monkeypatch.setattr(deploy, "first_failure", lambda _: None)
        self.run(host)
        show = host.systemd.show
        monkeypatch.setattr(systemd_unit, "show", lambda unit: {**show(unit), "NeedDaemonReload": "yes"})
        monkeypatch.setattr(deploy.checks, "altered", lambda *_: ([], []))
        assert self.compare(host)["changed"] is True
        assert host.systemd.said == []


CONDITION = [{"gpu_free": {"mib": 20000}}]


class TestBeforeStart:
    """Conditions between the end of the old process and the start of the new one."""

    @pytest.fixture
    def held(self, host, monkeypatch):
        """The GPU's memory is held by another process until `held` is cleared."""
        holder = ["GPU 0 has 1 MiB free"]
        monkeypatch.setattr(serving, "BEFORE_START_TIMEOUT", 0)
        monkeypatch.setattr(serving.probes, "first_failure", lambda *_: holder[0] if holder else None)
        return holder

    def test_it_runs_after_the_previous_process_has_ended(self, host, held):
        held.clear()
        serve(host, wanted(host))
        said = len(host.systemd.said)
        serving.start(host.service, CONDITION)
        assert [line for line in host.systemd.said[said:] if line != "systemctl reset-failed"] == [
            "systemctl stop", "journalctl --lines", "systemctl restart",
        ]  # fmt: skip

    def test_without_one_the_service_is_restarted_in_one_step(self, host):
        serve(host, wanted(host))
        serving.start(host.service)
        assert "systemctl stop" not in host.systemd.said

    def test_nothing_is_started_where_it_does_not_hold(self, host, held):
        serve(host, wanted(host))
        restarts = host.systemd.said.count("systemctl restart")
        serving.start(host.service, CONDITION)
        seen = serving.poll(host.service, [], 0, 60)
        assert host.systemd.said.count("systemctl restart") == restarts
        assert (seen["dead"], seen["why"]) == (True, "GPU 0 has 1 MiB free after 0 s")

    def test_the_release_before_is_started_all_the_same(self, host, held):
        old, new = wanted(host), wanted(host, text="a: 2\n")
        serve(host, old)
        host.service.store_proof(digest(old), {"probes": [], "before_start": CONDITION, "start_timeout": 60})
        contents.put(host.service, new)
        host.service.note(current=digest(new))
        assert rollback.go_back(host.service) == host.systemd.running
        held.clear()
        assert serving.poll(host.service, [], 0, 60)["ready"] is True
        host.systemd.dead = True
        assert serving.poll(host.service, [], 0, 60)["why"] == "GPU 0 has 1 MiB free after 0 s"


class TestLeftovers:
    """What was built and then refused is removed at the end of a successful run."""

    def build(self, host, name, root="srv"):
        place = host.root / root / "environments" / name
        place.mkdir(parents=True)
        (place / ".environment.json").touch()
        return place

    def release(self, host, place, text="a: 1\n"):
        return contents.build(
            host.service,
            [
                {
                    "path": str(host.root / "etc/app.yml"),
                    "content": text,
                    "mode": "0644",
                    "owner": "root",
                    "group": "root",
                }
            ],
            [{"path": str(host.root / "srv/venv"), "target": str(place)}],
            UNIT,
        )

    def test_a_refused_one_goes_and_the_kept_ones_stay(self, host):
        older = self.build(host, "older")
        serve(host, self.release(host, older))
        newer, refused = self.build(host, "newer"), self.build(host, "refused")
        assert rollback.unused_builds(host.service, [self.release(host, newer)]) == [refused]
        serve(host, self.release(host, newer))
        assert older.exists() and newer.exists() and not refused.exists()

    def test_one_that_another_service_is_about_to_run_on_stays(self, host):
        good, coming = self.build(host, "good"), self.build(host, "coming")
        host.service.beside = [str(coming)]
        serve(host, self.release(host, good))
        assert coming.exists()
        host.service.beside = []
        serve(host, self.release(host, good, text="a: 2\n"))
        assert not coming.exists()

    def test_the_one_that_failed_stays_for_inspection_and_the_one_before_it_goes(self, host):
        good, first, second = (self.build(host, name) for name in ("good", "first", "second"))
        (host.root / "mine").mkdir()
        serve(host, self.release(host, good))
        for place in (first, second):
            place.mkdir(exist_ok=True)
            (place / ".environment.json").touch()
            bad = self.release(host, place)
            contents.put(host.service, bad)
            host.service.note(current=digest(bad), failed=digest(bad))
            rollback.go_back(host.service)
            rollback.confirm(host.service)
        assert [path.name for path in (good, first, second) if path.exists()] == ["good", "second"]

    def test_what_others_put_there_or_use_stays(self, host):
        good, others = self.build(host, "good"), self.build(host, "others")
        foreign = host.root / "srv/environments/by-hand"
        foreign.mkdir()
        other = Service("other")
        other.keep(self.release(host, others))
        serve(host, self.release(host, good))
        assert others.exists() and foreign.exists()

    def test_a_run_without_other_changes_removes_it_and_reports_it(self, host, monkeypatch):
        monkeypatch.setattr(deploy, "first_failure", lambda _: None)
        good = self.build(host, "good")
        release = self.release(host, good)
        serve(host, release)
        monkeypatch.setattr(contents, "build", lambda *_: release)
        refused = self.build(host, "refused")
        asked = {"state": "present", "user": None, "home": "/", "start_timeout": 60}
        asked |= {"files": [], "secrets": [], "links": [], "unit": UNIT, "inputs": {}, "directories": [], "listens": []}
        asked |= {"probes": [], "before_start": [], "trials": []}
        assert service_release.preview(host.service, asked)["changed"] is True and refused.exists()
        result = service_release.change(host.service, asked)
        assert (result["changed"], result["restarted"]) == (True, None)
        assert good.exists() and not refused.exists()
        assert service_release.change(host.service, asked)["changed"] is False
