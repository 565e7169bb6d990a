"""What is collected from a host in an incident: it contains no secret, and a broken source affects no other."""

from __future__ import annotations

import json
import tarfile
import time
from types import SimpleNamespace

import pytest

from plugins.module_utils.diagnosis import host
from plugins.module_utils.errors import UserError
from plugins.module_utils.incident import archive, evidence, summary
from plugins.module_utils.release import store as release_store
from plugins.module_utils.release import systemd_unit

KEY, TOKEN, CALLER = "canary-engine-key", "hf_canary0123456789", "canary-of-a-caller"
HOOK = "https://hooks.slack.com/services/T0/B0/canaryhook"
PLANTED = (
    f"key {KEY}, token {TOKEN}, caller {CALLER}, hook {HOOK}, Authorization: Bearer canary-header-0123, "
    "OCR_API=canary-plain-value, https://user:canary-password@index.example/simple"
)


@pytest.fixture
def machine(tmp_path, monkeypatch, server):
    """A host whose every source contains all secrets: commands, files, pages and the diagnosis."""
    store = tmp_path / "services"
    settings = tmp_path / "app.env"
    settings.write_text(f"VLLM_API_KEY={KEY}\nAI_SERVER_API_KEYS={CALLER}\nOCR_API=canary-plain-value\nLEVEL=INFO\n")
    secret_file = tmp_path / "password"
    secret_file.write_text("canary-whole\n")
    secrets = [
        {"path": str(settings), "plain": ["LEVEL"], "lines": []},
        {"path": str(secret_file), "plain": [], "whole": True, "lines": []},
    ]
    for name in ("vllm", "ai-server"):
        (store / name / "releases").mkdir(parents=True)
        (store / name / "probes").mkdir()
        (store / name / "releases" / "one.json").write_text(json.dumps({"secrets": secrets}))
        (store / name / "state.json").write_text(json.dumps({"current": "one", "failed": None}))
        probe = {"http": {"url": f"{server.url}/health"}}
        (store / name / "probes" / "one.json").write_text(json.dumps({"probes": [probe]}))
    server.pages |= {"/health": (500, PLANTED), "/metrics": (200, PLANTED)}
    log = tmp_path / "log" / "app.log"
    log.parent.mkdir()
    log.write_text(f"{PLANTED}\n")
    commands = []

    def run(argv, **_):
        commands.append(argv)
        return SimpleNamespace(stdout=f"{' '.join(argv)}: {PLANTED} canary-whole\n", stderr=PLANTED, returncode=0)

    monkeypatch.setattr(release_store, "STORE", store)
    monkeypatch.setattr(release_store, "UNITS", tmp_path / "units")
    monkeypatch.setattr(evidence.subprocess, "run", run)
    monkeypatch.setattr(evidence.shutil, "which", lambda _: "/usr/bin/nvidia-smi")
    line = {"text": PLANTED, "level": None, "speaker": "vllm", "unit": "vllm.service", "raw": PLANTED, "start": ""}
    unit = {"unit": "vllm.service", "running": False, "failing": True, "begun": 0, "lines": [line], "states": []}
    seen = {"services": {"vllm": unit}, "host": {"lines": [], "states": []}, "problems": [PLANTED], "seconds": 1.0}
    monkeypatch.setattr(host, "look", lambda *_: seen)
    services = [{"name": "vllm", "metrics": f"{server.url}/metrics"}]
    return SimpleNamespace(services=services, logs=[str(log)], asked=commands, secrets=(KEY, TOKEN, CALLER, HOOK))


def gather(machine):
    return evidence.gather(machine.services, True, [], machine.logs)


def test_no_source_shows_a_secret(machine):
    found = gather(machine)
    result = json.dumps(found)
    assert "canary" not in result, result[result.index("canary") - 60 : result.index("canary") + 60]
    assert found["problems"] == []
    for name in (
        *("resources.txt", "processes.txt", "sockets.txt", "gpu.txt", "kernel.txt", "watchdog.txt"),
        *("units/vllm.txt", "journals/vllm.txt", "releases/vllm.json", "metrics/vllm.txt", "journals/ai-server.txt"),
    ):
        assert found["files"][name], name
    (log,) = (text for name, text in found["files"].items() if name.startswith("logs/"))
    assert "key ********, token hf_********, caller ********" in log
    assert found["answers"]["vllm"]["ok"] is False
    assert "answered 500 instead of 200" in found["answers"]["vllm"]["says"]


def test_what_breaks_or_is_missing_ends_alone(machine, monkeypatch):
    def run(argv, **_):
        raise FileNotFoundError(2, "No such file or directory", argv[0])

    def broken(*_):
        raise ValueError("a table is broken")

    monkeypatch.setattr(evidence.subprocess, "run", run)
    monkeypatch.setattr(host, "look", broken)
    machine.services[0]["metrics"] = "http://127.0.0.1:1/metrics"
    found = gather(machine)
    result = "; ".join(found["problems"])
    assert "diagnosis: a table is broken" in result
    assert "metrics/vllm.txt: connection refused" in result
    assert "journalctl" in result
    assert "MemAvailable" in found["files"]["resources.txt"]
    assert found["diagnosis"] is None


def test_only_commands_that_change_nothing_are_run(machine):
    gather(machine)
    commands = {tuple(argv[:2]) if argv[0] in ("systemctl", "journalctl") else argv[0] for argv in machine.asked}
    assert commands <= {
        *("uptime", "df", "ps", "ss", "nvidia-smi"),
        *(("systemctl", word) for word in ("status", "show", "list-units", "list-jobs")),
        *(("journalctl", word) for word in ("--unit", "--dmesg")),
    }


def test_a_text_keeps_its_end():
    assert evidence.clipped("ab") == "ab"
    assert evidence.clipped("a" + "b" * evidence.PAGE_BYTES) == evidence.CLIPPED + "b" * evidence.PAGE_BYTES


@pytest.mark.parametrize("released", [True, False])
def test_the_address_of_the_repository_is_shown_and_its_password_is_not(tmp_path, monkeypatch, released):
    file = tmp_path / "secrets.env"
    file.write_text(f"RESTIC_REPOSITORY=/srv/a-repository\nRESTIC_PASSWORD={TOKEN}\n")
    store = tmp_path / "services"
    (store / "llm-backup" / "releases").mkdir(parents=True)
    if released:
        release = {"secrets": [{"path": str(file), "plain": ["RESTIC_REPOSITORY"]}]}
        (store / "llm-backup" / "releases" / "one.json").write_text(json.dumps(release))
    monkeypatch.setattr(release_store, "STORE", store)
    monkeypatch.setattr(release_store, "UNITS", tmp_path / "units")
    monkeypatch.setattr(evidence, "BACKUP_SECRETS", tmp_path / "none" if released else file)
    told = evidence.secrets_of_host()(f"/srv/a-repository {TOKEN}")
    assert told.startswith("/srv/a-repository ") and TOKEN not in told


@pytest.mark.parametrize(
    ("shown", "ok"),
    [
        ({"LoadState": "not-found"}, None),
        ({"LoadState": "loaded", "ActiveState": "active"}, True),
        ({"LoadState": "loaded", "ActiveState": "failed"}, False),
    ],
)
def test_a_service_without_notes_is_judged_by_its_unit(tmp_path, monkeypatch, shown, ok):
    monkeypatch.setattr(release_store, "STORE", tmp_path)
    monkeypatch.setattr(systemd_unit, "show", lambda _: shown)
    assert evidence.answer("vllm", "vllm.service")["ok"] is ok


def test_the_archive_is_private_and_has_no_secret_of_the_controller(tmp_path):
    place = tmp_path / "new" / "incidents"
    path = archive.write(place, "host/1", {"a.txt": "a canary\n", "b/c.txt": "b"}, ["canary"], now=0)
    assert path.name == "host_1-19700101T000000Z.tar.gz"
    assert path.stat().st_mode & 0o777 == 0o600
    assert place.stat().st_mode & 0o777 == 0o700
    with tarfile.open(path) as kept:
        texts = {entry.name.partition("/")[2]: kept.extractfile(entry).read().decode() for entry in kept}
    assert texts == {"a.txt": "a ********\n", "b/c.txt": "b"}
    assert [each.name for each in place.iterdir()] == [path.name]


GATHERED = {"answers": {"vllm": {"ok": False, "says": "refused"}, "promtail": None}, "problems": ["gpu.txt: late"]}
CAUSE = {"service": "vllm", "says": "the disk is full.", "cure": "Make room."}


class TestSummary:
    def test_what_does_not_serve_and_what_comes_next(self):
        rows = summary.found("host1", GATHERED, {"causes": [CAUSE], "report": ["…"], "healthy": False})
        by_name = {row["what"]: row for row in rows}
        assert by_name["vllm"]["cure"] == f"{summary.RECOVER} -l host1"
        assert by_name["promtail"]["ok"] is False
        assert by_name["diagnosis"]["measured"] == "vllm: the disk is full."
        assert by_name["diagnosis"]["cure"] == "Make room."
        assert by_name["not gathered"]["measured"] == "gpu.txt: late"

    def test_the_text_has_all_rows_and_the_diagnosis(self):
        rows = [summary.row("vllm", "serves"), summary.row("x", "y", None)]
        text = summary.text("host1", rows, {"report": ["Nothing is wrong."]})
        assert text == "Incident on host1\n\nok      vllm: serves\n-       x: y\n\nNothing is wrong.\n"


def test_it_ends_in_time_whatever_hangs(machine, monkeypatch):
    monkeypatch.setattr(evidence, "LIMIT", 0.5)
    monkeypatch.setattr(host, "look", lambda *_: time.sleep(2))
    found = gather(machine)
    assert found["seconds"] < 1.5
    assert found["problems"] == ["diagnosis: no end within 0.5 s"]


@pytest.mark.parametrize("error", [ValueError("half a release"), OSError("no right"), UserError("not NAME=value")])
def test_a_damaged_release_leaves_the_unit_of_the_service(monkeypatch, error):
    def damaged(_):
        raise error

    monkeypatch.setattr(evidence.store.Service, "main_unit", damaged)
    assert evidence.unit_of("app", {}) == "app.service"
    assert evidence.unit_of("app", {"unit": "other.service"}) == "other.service"


def test_the_service_of_a_timer_is_collected_too():
    made = evidence.pieces({"idle-stop": {"unit": "idle-stop.timer"}}, [])
    assert {"units/idle-stop.txt", "units/idle-stop.service.txt", "journals/idle-stop.service.txt"} <= set(made)
