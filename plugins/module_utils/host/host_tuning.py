"""Kernel and GPU settings for a model server: applied now and at every boot, and reversible.

The wanted values are compared with those in effect, so a manual change is corrected. The values from before the first
change are in a record, and are restored for settings that are no longer wanted. Plain Python.
Sources: sysctl.d(5), tmpfiles.d(5), tcp(7), the kernel's Documentation/admin-guide/sysctl and mm/transhuge.rst,
nvidia-smi(1), NVIDIA's document "Driver Persistence".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .. import host_text
from ..errors import UserError
from ..gpu import nvidia_smi
from ..release import systemd_unit
from . import sysctl

NOTE = "/var/lib/llm-server/host_tuning.json"
# After 99-sysctl.conf, the link to /etc/sysctl.conf: the last file overrides at every boot.
SYSCTL = "/etc/sysctl.d/99-zz-host-tuning.conf"
# If several lines have the same path, systemd-tmpfiles uses the first.
TMPFILES = "/etc/tmpfiles.d/00-host-tuning.conf"
HUGE_PAGES = "/sys/kernel/mm/transparent_hugepage/enabled"
UNIT = "host-tuning-gpu.service"
UNIT_FILE = f"/etc/systemd/system/{UNIT}"
WRITTEN = "# Written by Ansible; changes made here are undone by the next run.\n"

BUFFERS = ("net.core.rmem_max", "net.core.wmem_max")
TCP_BUFFERS = ("net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem")
FILES = ("fs.nr_open", "fs.file-max")
KERNEL = (*BUFFERS, *TCP_BUFFERS, *FILES)
PAGES = "transparent_hugepage"
# The clock lock can be set and removed, but nothing reports whether it is set.
CLOCKS = "gpu clocks"


@dataclass(frozen=True)
class Wanted:
    """The role's variables. Empty, 0 and False leave a setting unchanged; ``Wanted()`` leaves all unchanged."""

    socket_buffer_mib: int = 0
    open_files: int = 0
    transparent_hugepages: str = ""
    gpu_persistence: bool = False
    gpu_power_limit_watts: int = 0
    gpu_clocks_mhz: list[int] = field(default_factory=list)
    engines: list[str] = field(default_factory=list)

    @property
    def gpu(self) -> bool:
        return bool(self.gpu_persistence or self.gpu_power_limit_watts or self.gpu_clocks_mhz)


def is_clock_range(clocks: list) -> bool:
    """Return whether ``clocks`` is empty, or the lowest and the highest clock of a GPU in MHz."""
    return not clocks or (len(clocks) == 2 and 0 < clocks[0] <= clocks[1])


class Host(host_text.Tree):
    """The machine, or in tests a directory tree like one; commands are run by ``run(*argv)``."""

    def __init__(
        self,
        root: Path = Path("/"),
        run: Callable = systemd_unit.run,
        query: Callable[[], str] = nvidia_smi.query,
        program: Callable[[], str | None] = nvidia_smi.program,
    ) -> None:
        super().__init__(root)
        self.run, self.query, self.program = run, query, program

    @property
    def note(self) -> dict[str, str]:
        """The values from before the first change, by setting."""
        return json.loads(self.read(NOTE) or "{}")

    def pages(self) -> str:
        """Return the mode of transparent huge pages, which is the one in brackets; empty if the kernel has none."""
        chosen = re.search(r"\[(\w+)\]", self.read(HUGE_PAGES))
        return chosen[1] if chosen else ""

    def unit(self) -> dict[str, str]:
        output = self.run("systemctl", "show", UNIT, "--property", "ActiveState,UnitFileState", check=False).stdout
        return dict(line.split("=", 1) for line in output.splitlines() if "=" in line)


@dataclass(frozen=True)
class Change:
    """The change to make: values by setting, texts of files, and GPU settings."""

    values: dict[str, tuple[str, str]]  # setting: (in effect, wanted), if they differ
    note: dict[str, str]
    texts: dict[str, tuple[str, str]]  # path: (before, after), if they differ
    commands: list[list[str]]  # restore earlier values of the GPUs; the unit sets the wanted ones
    unit: str  # "start", "stop" or nothing
    settings: int  # number of managed settings
    overridden: dict[str, tuple[str, str]]

    @property
    def needed(self) -> bool:
        return bool(self.values or self.texts or self.commands or self.unit)

    def warnings(self) -> list[str]:
        """Return a sentence for each setting that another file overrides at the next boot."""
        return [
            f"At the next boot {path} sets {name} to {line}, after {SYSCTL}: take the line out of {path}."
            for name, (path, line) in self.overridden.items()
        ]

    def differences(self) -> list[str]:
        """Return in words what differs from the wanted settings."""
        found = [f"{name} is {now or 'unknown'} and not {value}" for name, (now, value) in self.values.items()]
        found += [f"{path} is not what was written" for path in self.texts if path != NOTE]
        return found or ([f"{UNIT} has not run or is not enabled"] if self.unit else [])


def change(host: Host, wanted: Wanted) -> Change:
    """Compare the host with the wanted settings. Raises UserError with all reasons why it cannot be changed."""
    note = host.note
    cards, problems = _cards(host, wanted, note)
    now = {name: sysctl.value(host, name) for name in KERNEL} | {PAGES: host.pages(), CLOCKS: ""}
    for card in cards:
        now |= _of_card(card)
    found = {**now, **{name: before for name, before in note.items() if name in now}}
    targets = _kernel_targets(wanted, found) | _gpu_targets(wanted, cards)
    problems += _kernel_problems(host, wanted, targets, now) + _card_problems(wanted, cards)
    if problems:
        raise UserError("; ".join(problems))
    back = {name: before for name, before in note.items() if name not in targets and name in now}
    values = {name: (now[name], value) for name, value in {**targets, **back}.items() if now[name] != value}
    values.pop(CLOCKS, None)
    commands = _commands(host, {name: value for name, value in back.items() if name in values or name == CLOCKS})
    texts = _texts(host, wanted, targets)
    texts[NOTE] = json.dumps({name: found[name] for name in targets}, indent=1) + "\n" if targets else ""
    differences = {path: (host.read(path), text) for path, text in texts.items() if host.read(path) != text}
    return Change(
        values,
        {name: found[name] for name in (*targets, *back)},
        differences,
        commands,
        _unit_step(host, texts[UNIT_FILE], differences, [name for name in values if name in targets]),
        len(targets),
        sysctl.overridden(host, SYSCTL, {name: value for name, value in targets.items() if name in KERNEL}),
    )


def _cards(host: Host, wanted: Wanted, note: dict[str, str]) -> tuple[list[dict], list[str]]:
    """Return the GPUs, if they are needed, and why they cannot be read."""
    settings = [
        f"host_tuning_{name} is {value}" for name, value in (
            ("gpu_power_limit_watts", wanted.gpu_power_limit_watts), ("gpu_clocks_mhz", wanted.gpu_clocks_mhz),
        ) if value
    ]  # fmt: skip
    if host.program() is None:
        why = "nvidia-smi is not installed on this host: install the driver, or leave the variable out"
        return [], [f"{each}, and {why}" for each in settings]
    if not wanted.gpu and not any(" " in name for name in note):
        return [], []
    try:
        return nvidia_smi.adjustable(host.query()), []
    except nvidia_smi.GpuError as error:
        # Without a running driver nothing is left of the earlier settings.
        cure = "or take the host's GPU out of the tuning by host_tuning_gpu_persistence: false"
        return [], [f"host_tuning_gpu_persistence: {str(error).rstrip('.')}, {cure}"] if wanted.gpu else []


def _of_card(card: dict) -> dict[str, str]:
    power = "" if card["power_limit"] is None else f"{card['power_limit']:g}"
    return {f"{card['uuid']} persistence": card["persistence"], f"{card['uuid']} power limit": power}


def _kernel_targets(wanted: Wanted, found: dict[str, str]) -> dict[str, str]:
    targets = {}
    if wanted.socket_buffer_mib:
        size = str(wanted.socket_buffer_mib << 20)
        targets |= dict.fromkeys(BUFFERS, size)
        # Minimum, initial and maximum size: TCP tunes itself up to the maximum, whatever rmem_max is.
        targets |= {name: " ".join([*found[name].split()[:2], size]) for name in TCP_BUFFERS}
    if wanted.open_files:
        # Never lowered: systemd has raised them at boot to their maximum.
        targets |= {name: str(max(wanted.open_files, int(found[name] or 0))) for name in FILES}
    if wanted.transparent_hugepages:
        targets[PAGES] = wanted.transparent_hugepages
    return targets


def _gpu_targets(wanted: Wanted, cards: list[dict]) -> dict[str, str]:
    targets = {}
    for card in cards:
        if wanted.gpu_persistence and card["persistence"] in ("Enabled", "Disabled"):
            targets[f"{card['uuid']} persistence"] = "Enabled"
        if wanted.gpu_power_limit_watts:
            targets[f"{card['uuid']} power limit"] = f"{wanted.gpu_power_limit_watts:g}"
    if cards and wanted.gpu_clocks_mhz:
        targets[CLOCKS] = ",".join(map(str, wanted.gpu_clocks_mhz))
    return targets


def _kernel_problems(host: Host, wanted: Wanted, targets: dict[str, str], now: dict[str, str]) -> list[str]:
    """Return the settings that this machine refuses, before anything is changed."""
    variables = {**dict.fromkeys((*BUFFERS, *TCP_BUFFERS), "socket_buffer_mib"), **dict.fromkeys(FILES, "open_files")}
    found: dict[str, str] = {}  # one sentence per variable
    for name in targets:
        problem = sysctl.problem(host, name) if name in variables else None
        if problem:
            leave = f"write host_tuning_{variables[name]}: 0 or take the host out of the group host_tuning"
            found.setdefault(variables[name], f"host_tuning_{variables[name]}: {problem}; {leave}")
    if wanted.transparent_hugepages and not now[PAGES]:
        found[PAGES] = (
            "host_tuning_transparent_hugepages: this kernel has no transparent huge pages; "
            'write host_tuning_transparent_hugepages: ""'
        )
    return list(found.values())


def _card_problems(wanted: Wanted, cards: list[dict]) -> list[str]:
    """Return errors about a power limit and clocks that a GPU does not accept."""
    found = []
    for card in cards:
        label = f"GPU {card['index']} ({card['name']})"
        for name, unit, requested, allowed in (
            ("gpu_power_limit_watts", "W", [wanted.gpu_power_limit_watts], card["power_range"]),
            ("gpu_clocks_mhz", "MHz", wanted.gpu_clocks_mhz, card["clock_range"]),
        ):
            if not any(requested):
                continue
            message = f"host_tuning_{name} is {', '.join(map(str, requested))}"
            if allowed is None:
                found.append(f"{message}, and {label} does not let it be set; leave the variable out")
            elif not all(allowed[0] <= each <= allowed[1] for each in requested):
                found.append(
                    f"{message}, and {label} takes {allowed[0]:g} to {allowed[1]:g} {unit}; write one of these"
                )
    return found


def _texts(host: Host, wanted: Wanted, targets: dict[str, str]) -> dict[str, str]:
    kernel = sysctl.text({name: value for name, value in targets.items() if name in KERNEL})
    pages = f"w {HUGE_PAGES} - - - - {targets[PAGES]}\n" if PAGES in targets else ""
    kinds = {name.partition(" ")[2] for name in targets}
    commands = [
        "-pm 1" if "persistence" in kinds else "",
        f"-pl {wanted.gpu_power_limit_watts}" if "power limit" in kinds else "",
        f"-lgc {targets[CLOCKS]}" if CLOCKS in targets else "",
    ]
    commands = [f"{host.program()} {command}" for command in commands if command]
    return {
        SYSCTL: kernel and WRITTEN + kernel,
        TMPFILES: pages and WRITTEN + pages,
        UNIT_FILE: unit_text(commands, wanted.engines) if commands else "",
    }


def unit_text(commands: list[str], engines: list[str]) -> str:
    """Return the unit that configures the GPUs at boot, before the engines."""
    # If NVIDIA's daemon is installed, it keeps the mode, as set by nvidia-smi; otherwise the driver keeps it.
    daemon = "nvidia-persistenced.service"
    # nvidia-smi loads the driver and creates its device nodes. ProtectClock of systemd before 253 blocks all devices
    # that are not named (systemd#18142); the clock is still protected without the capability and the system calls.
    needed = {
        "CapabilityBoundingSet": "~CAP_SYS_TIME CAP_WAKE_ALARM",
        "SystemCallFilter": "~@clock",
        "ProtectClock": "no",
        "ProcSubset": "all",
        "ProtectProc": "default",
    }
    needed |= dict.fromkeys(
        ("PrivateDevices", "PrivateUsers", "ProtectKernelModules", "ProtectKernelTunables", "MemoryDenyWriteExecute"),
        "no",
    )
    return systemd_unit.render(
        {
            "Unit": {
                "Description": "Persistence mode, power limit and clocks of the GPUs",
                "Wants": daemon,
                "After": daemon,
                "Before": " ".join(engines) or None,
                "StartLimitIntervalSec": None,
            },
            "Service": {
                **{"Type": "oneshot", "RemainAfterExit": "yes", "Restart": None, "RestartSec": None},
                # A driver that hangs must not keep the engines from starting.
                "TimeoutStartSec": "60",
                "ExecStart": commands,
                **needed,
            },
        }
    )


def _unit_step(host: Host, text: str, differences: dict, differing: list[str]) -> str:
    if not text:
        return "stop" if UNIT_FILE in differences else ""
    if UNIT_FILE in differences or any(name not in (*KERNEL, PAGES) for name in differing):
        return "start"
    live = host.unit()
    return "" if live.get("ActiveState") == "active" and live.get("UnitFileState") == "enabled" else "start"


def _commands(host: Host, back: dict[str, str]) -> list[list[str]]:
    """Return the commands that restore GPU settings; persistence mode last, since the driver then forgets the rest."""
    program, commands, last = host.program() or "", [], []
    for name, value in back.items():
        uuid, _, what = name.partition(" ")
        if name == CLOCKS:
            commands.append([program, "-rgc"])
        elif what == "power limit":
            commands.append([program, "-i", uuid, "-pl", value])
        elif what == "persistence":
            last.append([program, "-i", uuid, "-pm", str(int(value == "Enabled"))])
    return commands + last


def carry_out(host: Host, wanted: Change) -> None:
    """Make the change. The record is written first, so that after an interruption the next run knows earlier values."""
    if not wanted.needed:
        return
    if wanted.note:
        host.write(NOTE, json.dumps(wanted.note, indent=1) + "\n")
    for name, (_, value) in wanted.values.items():
        if name in KERNEL:
            sysctl.put(host, name, value)
        elif name == PAGES:
            host.at(HUGE_PAGES).write_text(f"{value}\n")
    if wanted.unit == "stop":
        host.run("systemctl", "disable", "--now", UNIT, check=False)
    for path, (_, text) in wanted.texts.items():
        if path != NOTE:
            host.keep(path, text)
    if UNIT_FILE in wanted.texts:
        host.run("systemctl", "daemon-reload")
    for command in wanted.commands:
        host.run(*command)
    if wanted.unit == "start":
        host.run("systemctl", "enable", UNIT)
        _start(host)
    if NOTE in wanted.texts:
        host.keep(NOTE, wanted.texts[NOTE][1])


def _start(host: Host) -> None:
    try:
        host.run("systemctl", "restart", UNIT)
    except systemd_unit.SystemdError:
        # Only nvidia-smi's message, without systemd's messages about it.
        output = host.run(
            "journalctl", "--unit", UNIT, "_TRANSPORT=stdout", "--lines", "3", "--output", "cat", check=False
        )
        words = " ".join(output.stdout.split()) or "see its journal"
        raise UserError(f"{UNIT} could not set up the GPUs: {words}") from None
