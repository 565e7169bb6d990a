"""systemd_unit: what the commands of systemd are asked, and what becomes of their answers."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from ansible.module_utils import systemd_unit


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


def test_a_command_that_fails_says_its_own_last_words():
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
    """Whatever writes a value into a unit, systemd hands over what was meant."""
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
