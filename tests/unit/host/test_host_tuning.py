"""Settings of kernel and GPU: complete runs on a tree that imitates a machine, with a configurable card."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from plugins.module_utils.errors import UserError
from plugins.module_utils.gpu import nvidia_smi
from plugins.module_utils.host import host_tuning
from plugins.module_utils.host.host_tuning import (
    HUGE_PAGES,
    NOTE,
    SYSCTL,
    TMPFILES,
    UNIT,
    UNIT_FILE,
    Host,
    Wanted,
    carry_out,
    change,
)
from plugins.module_utils.release import checklist, systemd_unit

KERNEL = {
    "net/core/rmem_max": "212992",
    "net/core/wmem_max": "212992",
    "net/ipv4/tcp_rmem": "4096\t131072\t6291456",
    "net/ipv4/tcp_wmem": "4096\t16384\t4194304",
    "fs/nr_open": "4096",
    "fs/file-max": "9223372036854775807",
}
CARD = """<nvidia_smi_log><driver_version>580.95.05</driver_version><gpu>
  <product_name>NVIDIA L4</product_name><uuid>GPU-1</uuid><persistence_mode>{mode}</persistence_mode>
  <gpu_power_readings><current_power_limit>{power} W</current_power_limit>
    <min_power_limit>{least}</min_power_limit><max_power_limit>72.00 W</max_power_limit></gpu_power_readings>
  <supported_clocks><supported_mem_clock><supported_graphics_clock>2040 MHz</supported_graphics_clock>
    <supported_graphics_clock>210 MHz</supported_graphics_clock></supported_mem_clock></supported_clocks>
</gpu></nvidia_smi_log>"""
SMI = "/usr/bin/nvidia-smi"
ALL = Wanted(128, 65536, "madvise", True, 60, [300, 1500], ["vllm.service"])
PLAIN = Wanted(128, 65536, "madvise", True, engines=["vllm.service"])


class Machine(Host):
    """A tree with the files of the kernel, and a card."""

    def __init__(self, root: Path, gpu: bool = True) -> None:
        super().__init__(root, self.command, self.answer, lambda: SMI if gpu else None)
        self.mode, self.power, self.clocks, self.least = "Disabled", "72.00", "", "40.00 W"
        self.active, self.enabled, self.deaf = "inactive", "", False
        self.commands: list[str] = []
        for name, value in KERNEL.items():
            self.write(f"/proc/sys/{name}", f"{value}\n")
        self.write(HUGE_PAGES, "[always] madvise never\n")

    def pages(self) -> str:
        """Like the kernel, return the selected word in brackets."""
        text = self.read(HUGE_PAGES).strip()
        if text in ("always", "madvise", "never"):
            shown = " ".join(f"[{each}]" if each == text else each for each in ("always", "madvise", "never"))
            self.write(HUGE_PAGES, f"{shown}\n")
        return super().pages()

    def answer(self) -> str:
        return CARD.format(mode=self.mode, power=self.power, least=self.least)

    def smi(self, words: list[str]) -> None:
        if words[0] == "-pm" and not self.deaf:
            self.mode = "Enabled" if words[1] == "1" else "Disabled"
        elif words[0] == "-pl":
            self.power = f"{float(words[1]):.2f}"
        elif words[0] in ("-lgc", "-rgc"):
            self.clocks = "".join(words[1:])

    def command(self, *argv: str, check: bool = True) -> SimpleNamespace:
        output = ""
        if argv[0] == SMI:
            self.smi([word for word in argv[1:] if word not in ("-i", "GPU-1")])
        elif argv[:2] == ("systemctl", "show"):
            return SimpleNamespace(stdout=f"ActiveState={self.active}\nUnitFileState={self.enabled}\n")
        elif argv[1] == "restart":
            for line in self.read(UNIT_FILE).splitlines():
                if line.startswith("ExecStart="):
                    self.smi(line.split()[1:])
            self.active = "active"
        elif argv[1] == "enable":
            self.enabled = "enabled"
        elif argv[1] == "disable":
            self.active, self.enabled = "inactive", ""
        self.commands.append(" ".join(argv))
        return SimpleNamespace(stdout=output)

    def boot(self) -> None:
        """Reset what a boot resets, then do what a boot does."""
        for name, value in KERNEL.items():
            self.write(f"/proc/sys/{name}", f"{value}\n")
        self.write(HUGE_PAGES, "[always] madvise never\n")
        self.mode, self.power, self.clocks, self.active = "Disabled", "72.00", "", "inactive"
        for line in self.read(SYSCTL).splitlines()[1:]:
            name, _, value = line.partition(" = ")
            self.write(f"/proc/sys/{name.replace('.', '/')}", f"{value}\n")
        for line in self.read(TMPFILES).splitlines()[1:]:
            self.write(HUGE_PAGES, f"{line.split()[-1]}\n")
        if self.enabled:
            self.command("systemctl", "restart", UNIT)

    def state(self) -> dict:
        kernel = {name: self.read(f"/proc/sys/{name}").split() for name in KERNEL}
        return {**kernel, "pages": self.pages(), "gpu": (self.mode, self.power, self.clocks)}


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def converge(machine: Machine, wanted: Wanted) -> bool:
    planned = change(machine, wanted)
    carry_out(machine, planned)
    assert not change(machine, wanted).needed, change(machine, wanted)
    return planned.needed


def test_fresh_repeat_reboot_and_back(machine):
    before = machine.state()
    assert converge(machine, ALL)
    during = machine.state()
    assert during["net/core/rmem_max"] == ["134217728"]
    assert during["net/ipv4/tcp_wmem"] == ["4096", "16384", "134217728"]
    assert during["fs/nr_open"] == ["65536"] and during["fs/file-max"] == ["9223372036854775807"]
    assert (during["pages"], during["gpu"]) == ("madvise", ("Enabled", "60.00", "300,1500"))
    assert "ExecStart=/usr/bin/nvidia-smi -pm 1\nExecStart=/usr/bin/nvidia-smi -pl 60\n" in machine.read(UNIT_FILE)
    assert "Before=vllm.service\n" in machine.read(UNIT_FILE)
    machine.commands.clear()
    assert not converge(machine, ALL)
    assert machine.commands == []
    machine.boot()
    assert machine.state() == during
    assert not converge(machine, ALL)
    assert converge(machine, Wanted())
    assert machine.state() == before
    assert [path for path in (SYSCTL, TMPFILES, UNIT_FILE, NOTE) if machine.at(path).exists()] == []
    assert not converge(machine, Wanted())


def test_absent_touches_nothing_where_the_role_never_ran(machine):
    machine.write(TMPFILES.replace("00-host-tuning", "other"), "x\n")
    assert not change(machine, Wanted()).needed
    assert machine.commands == []


def test_only_what_is_no_longer_wanted_is_restored(machine):
    converge(machine, ALL)
    assert converge(machine, PLAIN)
    assert machine.state()["gpu"] == ("Enabled", "72.00", "")
    assert machine.state()["pages"] == "madvise"
    assert converge(machine, Wanted(open_files=65536))
    assert machine.state()["gpu"] == ("Disabled", "72.00", "")
    assert not machine.at(UNIT_FILE).exists() and not machine.at(TMPFILES).exists()
    assert machine.state()["net/ipv4/tcp_rmem"] == ["4096", "131072", "6291456"]
    assert set(json.loads(machine.read(NOTE))) == {"fs.nr_open", "fs.file-max"}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda machine: machine.write("/proc/sys/net/core/rmem_max", "1\n"),
        lambda machine: machine.write("/proc/sys/net/ipv4/tcp_rmem", "4096 131072 5\n"),
        lambda machine: machine.write("/proc/sys/fs/file-max", "100\n"),
        lambda machine: machine.write(HUGE_PAGES, "always\n"),
        lambda machine: machine.write(SYSCTL, "net.core.rmem_max = 1\n"),
        lambda machine: machine.at(TMPFILES).unlink(),
        lambda machine: machine.at(UNIT_FILE).unlink(),
        lambda machine: setattr(machine, "mode", "Disabled"),
        lambda machine: setattr(machine, "power", "50.00"),
        lambda machine: setattr(machine, "active", "failed"),
        lambda machine: setattr(machine, "enabled", "disabled"),
    ],
)
def test_manual_changes_are_corrected(machine, spoil):
    converge(machine, ALL)
    during, note = machine.state(), machine.read(NOTE)
    spoil(machine)
    assert change(machine, ALL).differences() != []
    assert converge(machine, ALL)
    assert (machine.state(), machine.read(NOTE)) == (during, note)


def test_an_interrupted_run_is_finished_and_knows_what_was_before(machine, monkeypatch):
    before = machine.state()

    def fail(*argv, check=True):
        raise systemd_unit.SystemdError("interrupted")

    monkeypatch.setattr(machine, "run", fail)
    with pytest.raises(systemd_unit.SystemdError):
        carry_out(machine, change(machine, ALL))
    monkeypatch.setattr(machine, "run", machine.command)
    assert machine.state()["net/core/rmem_max"] == ["134217728"]
    assert converge(machine, ALL)
    converge(machine, Wanted())
    assert machine.state() == before


def test_a_host_without_a_gpu_has_no_unit(tmp_path):
    machine = Machine(tmp_path, gpu=False)
    assert converge(machine, PLAIN)
    assert not machine.at(UNIT_FILE).exists() and machine.commands == []
    with pytest.raises(UserError) as caught:
        change(machine, ALL)
    assert "host_tuning_gpu_power_limit_watts is 60, and nvidia-smi is not installed" in str(caught.value)
    assert "host_tuning_gpu_clocks_mhz is [300, 1500]" in str(caught.value)


@pytest.mark.parametrize(
    ("wanted", "sentence"),
    [
        (
            Wanted(gpu_power_limit_watts=300),
            "host_tuning_gpu_power_limit_watts is 300, and GPU 0 (NVIDIA L4) takes 40 to",
        ),
        (Wanted(gpu_power_limit_watts=39), "takes 40 to 72 W; write one of these"),
        (
            Wanted(gpu_clocks_mhz=[300, 3000]),
            "host_tuning_gpu_clocks_mhz is 300, 3000, and GPU 0 (NVIDIA L4) takes 210 to",
        ),
    ],
)
def test_what_the_card_does_not_take_is_refused_and_nothing_is_touched(machine, wanted, sentence):
    before = machine.state()
    with pytest.raises(UserError) as caught:
        change(machine, wanted)
    assert sentence in str(caught.value)
    assert machine.state() == before and not machine.at(NOTE).exists()


def test_a_card_without_limits_cannot_be_set(machine):
    machine.least = "N/A"
    with pytest.raises(UserError, match=r"GPU 0 \(NVIDIA L4\) does not let it be set; leave the variable out"):
        change(machine, ALL)


def test_a_driver_that_does_not_answer_is_a_sentence_or_nothing(machine):
    converge(machine, PLAIN)

    def broken():
        raise nvidia_smi.GpuError("no_driver", "The NVIDIA driver is not running.")

    machine.query = broken
    with pytest.raises(UserError, match="host_tuning_gpu_persistence: The NVIDIA driver is not running, or take"):
        change(machine, PLAIN)
    assert converge(machine, Wanted())
    assert not machine.at(UNIT_FILE).exists()


def test_a_kernel_without_a_setting_is_a_sentence(machine):
    machine.at("/proc/sys/net/core/wmem_max").unlink()
    machine.at(HUGE_PAGES).unlink()
    with pytest.raises(UserError) as caught:
        change(machine, PLAIN)
    assert str(caught.value) == (
        "host_tuning_socket_buffer_mib: this kernel has no net.core.wmem_max; write host_tuning_socket_buffer_mib: 0 "
        "or take the host out of the group host_tuning; host_tuning_transparent_hugepages: this kernel has no "
        'transparent huge pages; write host_tuning_transparent_hugepages: ""'
    )


def test_what_cannot_be_written_is_a_sentence(machine, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match=r"host_tuning_open_files: fs\.nr_open cannot be changed on this machine"):
        change(machine, Wanted(open_files=65536))


def test_a_failed_unit_reports_nvidia_smis_message(machine):
    def command(*argv, check=True):
        if argv[:2] == ("systemctl", "restart"):
            raise systemd_unit.SystemdError("Job failed")
        words = "Setting persistence\nmode is not supported" if argv[0] == "journalctl" else ""
        return SimpleNamespace(stdout=words)

    planned = change(machine, PLAIN)
    machine.run = command
    with pytest.raises(UserError, match=f"{UNIT} could not set up the GPUs: Setting persistence mode is not supp"):
        carry_out(machine, planned)


def test_a_later_file_is_named_in_one_sentence(machine):
    machine.write("/etc/sysctl.d/zz-other.conf", "net.core.rmem_max = 5\n")
    converge(machine, PLAIN)
    assert change(machine, PLAIN).warnings() == [
        "At the next boot /etc/sysctl.d/zz-other.conf sets net.core.rmem_max to 5, after "
        "/etc/sysctl.d/99-zz-host-tuning.conf: take the line out of /etc/sysctl.d/zz-other.conf."
    ]


def test_the_checklist(machine, monkeypatch):
    monkeypatch.setattr(checklist.host_tuning, "Host", lambda: machine)
    options = {"socket_buffer_mib": 128, "transparent_hugepages": "madvise", "gpu_persistence": True}
    row = checklist.run({"what": "t", "kind": "tuning", "options": options, "cure": "c"})
    assert row["ok"] is False and "net.core.rmem_max is 212992 and not 134217728" in row["measured"]
    converge(machine, Wanted(**options))
    assert checklist.tuning(**options) == ("6 in force and at boot", True)
    machine.write("/etc/sysctl.d/zz-other.conf", "net.core.rmem_max = 5\n")
    assert checklist.tuning(**options)[1] is False
    assert checklist.tuning(gpu_power_limit_watts=1)[1] is False


def test_an_older_driver_has_other_names():
    text = (
        CARD.format(mode="Enabled", power="72.00", least="40.00 W")
        .replace("gpu_power_readings", "power_readings")
        .replace("current_power_limit", "power_limit")
    )
    (card,) = nvidia_smi.adjustable(text)
    assert card == {
        "index": 0, "uuid": "GPU-1", "name": "NVIDIA L4", "persistence": "Enabled", "power_limit": 72.0,
        "power_range": (40.0, 72.0), "clock_range": (210.0, 2040.0),
    }  # fmt: skip


def test_a_card_that_was_read():
    """Besides the card's limits there are the module's, all N/A, which must not be read as the card's."""
    (card,) = nvidia_smi.adjustable((Path(__file__).parent.parent / "data/nvidia_smi/h100.xml").read_text())
    assert (card["persistence"], card["power_limit"]) == ("Enabled", 700.0)
    assert (card["power_range"], card["clock_range"]) == ((200.0, 700.0), (345.0, 1980.0))
    wanted = Wanted(gpu_persistence=True, gpu_power_limit_watts=90, gpu_clocks_mhz=[5, 99999])
    result = host_tuning._card_problems(wanted, [card])
    assert [each.rsplit(" takes ", 1)[1] for each in result] == [
        "200 to 700 W; write one of these",
        "345 to 1980 MHz; write one of these",
    ]
