"""Virtual machines of the laboratory: how they are started and found again."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lab import __main__ as cli
from lab import host, qemu


@pytest.fixture
def machines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(qemu, "MACHINES", tmp_path)
    return tmp_path


def test_a_machine_is_emulated_and_reached_by_loopback_only():
    command = qemu.qemu_command(Path("/cache/debian12-x.img"), Path("/state/swap"), 2222)
    assert command[command.index("-accel") + 1].startswith("tcg")
    assert "user,id=net,hostfwd=tcp:127.0.0.1:2222-:22" in command
    assert command[command.index("-kernel") + 1] == "/cache/debian12-x.vmlinuz"
    assert "systemd.hostname=swap" in command[command.index("-append") + 1]


def test_a_number_that_went_to_another_process_is_not_the_machine(machines):
    (machines / "swap").mkdir()
    (machines / "swap" / "pid").write_text(f"{os.getpid()}\n")
    assert qemu.process("swap") is None and not qemu.running("swap")
    assert qemu.process("none") is None


def test_the_command_line_finds_the_kind_of_a_machine_by_its_name(machines):
    (machines / "swap").mkdir()
    (machines / "swap" / "machine.json").write_text(json.dumps({"name": "swap", "port": 2222}))
    assert qemu.names() == ["swap"]
    assert cli.kind_of("swap") is qemu
    assert cli.kind_of("other").__name__ == "lab.machine"
    assert qemu.describe("swap")["port"] == 2222


def test_an_unknown_machine_is_reported_with_the_cure(machines):
    with pytest.raises(host.Problem, match="python -m lab up gone --virtual"):
        qemu.describe("gone")


def test_down_removes_all_that_belongs_to_a_machine(machines):
    (machines / "swap").mkdir()
    (machines / "swap" / "disk.img").write_text("")
    qemu.down("swap")
    assert list(machines.iterdir()) == []
