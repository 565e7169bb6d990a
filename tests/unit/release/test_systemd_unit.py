"""systemd_unit: which systemd commands are called, and how their answers are used."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from plugins.module_utils.release import systemd_unit


@pytest.mark.parametrize("after, place", [("s=1;i=2", ["--after-cursor", "s=1;i=2"]), (5.0, ["--since", "@5.000"])])
def test_the_journal_gives_the_last_lines(monkeypatch, after, place):
    asked = []

    def run(*argv, **_):
        asked.append(list(argv))
        return SimpleNamespace(stdout="".join(f"line {number}\n" for number in range(500)))

    monkeypatch.setattr(systemd_unit, "run", run)
    lines = systemd_unit.journal("vllm.service", after, lines=3)
    assert lines == ["line 497", "line 498", "line 499"]
    assert asked[1][3:5] == place
    assert "--lines" not in asked[1], "beside a place to begin at it would give the first ones"


def test_a_command_without_end_is_a_failure_with_a_sentence():
    with pytest.raises(systemd_unit.SystemdError, match=r"^sleep 5: no end after 0 s$"):
        systemd_unit.run("sleep", "5", timeout=0.1)


def test_a_failed_command_reports_its_last_line():
    with pytest.raises(systemd_unit.SystemdError, match="No such file"):
        systemd_unit.run("ls", "/no/such/place")
    assert isinstance(systemd_unit.run("ls", "/no/such/place", check=False), subprocess.CompletedProcess)


def test_a_trial_has_the_sandbox_of_the_unit_and_neither_its_command_nor_its_secrets(tmp_path):
    text = systemd_unit.render(
        {
            "Service": {
                "User": "vllm",
                "EnvironmentFile": ["/etc/vllm/secrets.env"],
                "Environment": ['"HOME=/srv/home"'],
                "ExecStartPre": ["+/usr/bin/nvidia-smi -L"],
                "ExecStart": "/srv/venv/bin/vllm serve",
            }
        }
    )
    trial = systemd_unit.in_sandbox(text, ["/srv/venv/bin/python", "50% of $HOME", "a b"], tmp_path / "out", 900)
    lines = trial.splitlines()
    assert 'ExecStart="/srv/venv/bin/python" "50%% of $$HOME" "a b"' in lines
    for line in ("Type=oneshot", "User=vllm", 'Environment="HOME=/srv/home"', "ExecStartPre=+/usr/bin/nvidia-smi -L"):
        assert line in lines
    assert {f"{name}={value}" for name, value in systemd_unit.HARDENED.items() if isinstance(value, str)} <= set(lines)
    for absent in ("secrets.env", "vllm serve", "Restart=", "[Install]", "Type=simple"):
        assert absent not in trial


def test_the_holder_of_a_port_is_named_whatever_bytes_its_name_has():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        own = Path("/proc/self/comm")
        before = own.read_bytes()
        own.write_bytes(b"caf\xe9")
        try:
            held = systemd_unit.port_holder(listening.getsockname()[1], "x.service")
        finally:
            own.write_bytes(before.strip())
    assert held == f"caf\ufffd (pid {os.getpid()})"


def test_no_value_of_a_unit_is_a_specifier():
    """systemd must pass every value on as it was written, without expanding specifiers."""
    text = systemd_unit.render({"Unit": {"Description": "50%"}, "Service": {"Environment": ['"A=%n"', '"B=%%"']}})
    assert {"Description=50%%", 'Environment="A=%%n"', 'Environment="B=%%%%"'} <= set(text.splitlines())


@pytest.mark.parametrize(
    ("own", "there"),
    [
        ({}, True),
        ({"PrivateDevices": "yes"}, True),
        ({"PrivateDevices": "no"}, False),
        ({"PrivateDevices": False}, False),
        ({"PrivateDevices": "no", "ProtectClock": "yes"}, True),
    ],
)
def test_a_service_that_needs_devices_is_not_shut_off_from_them_by_its_clock(own, there):
    assert ("ProtectClock=yes" in systemd_unit.render({"Service": own}).splitlines()) == there


LIMITS = {"oom_score_adjust": 1000, "memory_max": "10%"}


def test_memory_limits_are_in_the_service_as_written():
    text = systemd_unit.render({"Service": {"ExecStart": "/bin/app"}})
    limited = systemd_unit.limited(text, LIMITS)
    service = limited.partition("[Service]")[2].partition("[Install]")[0].splitlines()
    assert {"OOMScoreAdjust=1000", "MemoryMax=10%", "MemorySwapMax=0"} <= set(service)
    assert limited.endswith("\n[Install]\nWantedBy=multi-user.target\n")
    assert systemd_unit.limited(text, {}) == text
    assert "MemorySwapMax" not in systemd_unit.limited(text, {**LIMITS, "memory_max": "infinity"})


@pytest.mark.parametrize(
    ("limit", "mib"),
    [("1048576", 1), ("512K", 0.5), ("256M", 256), ("2G", 2048), ("1T", 1 << 20), ("infinity", float("inf"))],
)
def test_a_limit_in_mib(limit, mib):
    assert systemd_unit.memory_mib(limit) == mib


def test_a_share_of_the_memory_is_one_of_this_host():
    assert systemd_unit.memory_mib("100%") == pytest.approx(
        os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**20
    )
    assert systemd_unit.memory_mib("10%") == pytest.approx(systemd_unit.memory_mib("100%") / 10)


@pytest.fixture
def child(monkeypatch):
    """A process of the unit app.service with the OOM score ``said``."""
    said = SimpleNamespace(score="700")
    monkeypatch.setattr(systemd_unit, "run", lambda *_, **__: SimpleNamespace(stdout=f"{said.score}\n"))
    with subprocess.Popen(["sleep", "60"]) as process:
        monkeypatch.setattr(systemd_unit, "_is_of", lambda path, unit: path.name == str(process.pid))
        yield SimpleNamespace(said=said, path=Path(f"/proc/{process.pid}"))
        process.kill()


def test_processes_that_run_get_the_units_place_at_the_oom_killer(child):
    assert systemd_unit.unscored("app.service") == [child.path]
    systemd_unit.score("app.service")
    assert (child.path / "oom_score_adj").read_text() == "700\n"
    assert systemd_unit.unscored("app.service") == []
    child.said.score = ""  # systemd does not know the unit
    assert systemd_unit.unscored("app.service") == []


def test_a_place_that_this_machine_may_not_give_is_not_missed(child, monkeypatch):
    child.said.score = "-500"
    monkeypatch.setattr(systemd_unit, "_has_capability", lambda _: False)
    assert systemd_unit.unscored("app.service") == []  # its score is 0, the lowest possible here
    monkeypatch.setattr(systemd_unit, "_has_capability", lambda _: True)
    assert systemd_unit.unscored("app.service") == [child.path]


def test_the_memory_of_a_unit_is_that_of_its_processes(monkeypatch):
    monkeypatch.setattr(systemd_unit, "_is_of", lambda path, unit: path.name == str(os.getpid()))
    before, held = systemd_unit.memory_used("app.service"), bytearray(os.urandom(1 << 20) * 64)
    assert 60 <= systemd_unit.memory_used("app.service") - before <= 70
    assert len(held) == 64 << 20
