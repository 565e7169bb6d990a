"""Read and write systemd's settings and state of one service.

Plain Python on top of ``systemctl``, ``journalctl`` and ``/proc``; no Ansible inside.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from ..errors import UserError

# Hardening for every service of this project. A service that needs one of these rights sets it in its own sections, so
# that each exception is written where the need is known.
# Source of the meanings: systemd.exec(5), scored by `systemd-analyze security`.
HARDENED = {
    "NoNewPrivileges": "yes",
    "CapabilityBoundingSet": "",
    "AmbientCapabilities": "",
    "ProtectSystem": "strict",
    "ProtectHome": "yes",
    "PrivateTmp": "yes",
    "PrivateDevices": "yes",
    "PrivateUsers": "yes",
    "ProtectClock": "yes",
    "ProtectControlGroups": "yes",
    "ProtectHostname": "yes",
    "ProtectKernelLogs": "yes",
    "ProtectKernelModules": "yes",
    "ProtectKernelTunables": "yes",
    "ProtectProc": "invisible",
    "ProcSubset": "pid",
    "RestrictAddressFamilies": "AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces": "yes",
    "RestrictRealtime": "yes",
    "RestrictSUIDSGID": "yes",
    "LockPersonality": "yes",
    "MemoryDenyWriteExecute": "yes",
    "RemoveIPC": "yes",
    "SystemCallArchitectures": "native",
    "SystemCallFilter": ["@system-service", "~@privileged @resources"],
    "SystemCallErrorNumber": "EPERM",
    "UMask": "0027",
}

DEFAULTS = {
    "Unit": {"Wants": "network-online.target", "After": "network-online.target", "StartLimitIntervalSec": "0"},
    "Service": {
        "Type": "simple",
        "Restart": "always",
        "RestartSec": "5",
        "TimeoutStopSec": "30",
        **HARDENED,
    },
    "Install": {"WantedBy": "multi-user.target"},
}

# A service that a timer starts runs to its end, and is neither restarted nor enabled.
TIMED = {
    "Unit": DEFAULTS["Unit"],
    "Service": {"Type": "oneshot", "TimeoutStopSec": "30", **HARDENED},
    "Install": {},
}
TIMER = {"Unit": {}, "Timer": {}, "Install": {"WantedBy": "timers.target"}}

RELEASE_VARIABLE = "SERVICE_RELEASE"

# Directives that a drop-in must not add, even if the service does not set them itself.
DECISIVE = re.compile(r"Exec\w+|\w*Environment\w*|User|Group|SupplementaryGroups|DynamicUser|Root\w+|Bind\w+")
SWITCHES = {"true": "yes", "on": "yes", "1": "yes", "false": "no", "off": "no", "0": "no"}

CAP_SYS_RESOURCE = 24  # from linux/capability.h

# SD_MESSAGE_UNIT_RESTART_SCHEDULED from sd-messages.h: systemd restarts a unit because its process has exited.
RESTART_SCHEDULED = "5eb03494b6584870a536b337290809b3"


class SystemdError(UserError):
    """A command of systemd failed; the text is its last line."""


def render(sections: dict, defaults: dict | None = None) -> str:
    """Return the text of a unit: ``sections`` merged over ``defaults``, by default the hardened ones of a service.

    ``sections`` is ``{section: {directive: value}}``; a list gives one line per item, ``None`` removes a default.
    Values are literal: systemd would expand ``%``, so every ``%`` is doubled here.
    """
    defaults = defaults or DEFAULTS
    lines = ["# Written by Ansible; changes made here are undone by the next run."]
    for section in defaults:
        own = {**_defaults(section, sections, defaults), **(sections.get(section) or {})}
        if not own:
            continue
        lines += ["", f"[{section}]"]
        for directive, value in own.items():
            if value is None:
                continue
            values = value if isinstance(value, list) else [value]
            lines += [f"{directive}={_text(item)}" for item in values]
    return "\n".join(lines) + "\n"


def limited(text: str, limits: dict) -> str:
    """Return the unit ``text`` with the memory ``limits`` of its service: ``oom_score_adjust`` and ``memory_max``.

    A service that exceeds ``memory_max`` is killed and restarted; it does not use up the swap of others. Source:
    systemd.resource-control(5) and systemd.exec(5); neither value takes specifiers.
    """
    if not limits:
        return text
    lines = [f"OOMScoreAdjust={limits['oom_score_adjust']}", f"MemoryMax={limits['memory_max']}"]
    lines += [] if limits["memory_max"] == "infinity" else ["MemorySwapMax=0"]
    head, install, tail = text.partition("\n[Install]\n")
    return head + "".join(f"{line}\n" for line in lines) + install + tail


def unscored(unit: str) -> list[Path]:
    """Return the processes of ``unit`` whose OOM score differs from the unit's, which was changed after their start.

    Without CAP_SYS_RESOURCE, as in a container, the score of a process cannot be lowered below its initial value.
    """
    wanted = run("systemctl", "show", unit, "--property", "OOMScoreAdjust", "--value", check=False).stdout.strip()
    if not wanted:
        return []
    score = int(wanted) if _has_capability(CAP_SYS_RESOURCE) else max(int(wanted), 0)
    found = []
    for process in _processes():
        try:
            if _is_of(process, unit) and int((process / "oom_score_adj").read_text()) != score:
                found.append(process)
        except OSError:  # the process has exited
            continue
    return found


def score(unit: str) -> None:
    """Set the OOM score of the running processes of ``unit``; systemd only sets it when it starts them."""
    wanted = run("systemctl", "show", unit, "--property", "OOMScoreAdjust", "--value", check=False).stdout.strip()
    for process in unscored(unit):
        try:
            (process / "oom_score_adj").write_text(wanted)
        except OSError:  # the process has exited, or this is a container
            continue


def memory_used(unit: str) -> int:
    """Return the anonymous memory of the processes of ``unit`` in MiB; it cannot be reclaimed."""
    used = 0
    for process in _processes():
        try:
            if _is_of(process, unit):
                found = re.search(r"^RssAnon:\s+(\d+) kB", (process / "status").read_text(), re.MULTILINE)
                used += int(found[1]) if found else 0
        except OSError:
            continue
    return used >> 10


def memory_mib(limit: str) -> float:
    """Convert a memory limit in systemd's format to MiB; a percentage is of this host's memory."""
    if limit == "infinity":
        return float("inf")
    if limit.endswith("%"):
        total = re.search(r"^MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
        return float(limit[:-1]) / 100 * int(total[1]) / 1024
    number, unit = re.fullmatch(r"([\d.]+)([KMGT]?)", limit).groups()
    return float(number) * 1024 ** (" KMGT".index(unit or " ") - 2)


def _has_capability(number: int) -> bool:
    found = re.search(r"^CapEff:\s+([0-9a-f]+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return bool(found and int(found[1], 16) >> number & 1)


def _defaults(section: str, sections: dict, defaults: dict) -> dict:
    """Return the defaults of a section. A service that needs devices of the host gets no ProtectClock.

    Before systemd 253 ProtectClock allows the clock's device and thereby blocks all others, including those of a GPU
    (systemd/systemd#18142; Ubuntu 22.04 has 249). The system call filter and the empty capability set still protect
    the clock.
    """
    devices = str((sections.get("Service") or {}).get("PrivateDevices", "yes")).lower()
    if section != "Service" or SWITCHES.get(devices, devices) == "yes":
        return defaults[section]
    return {name: value for name, value in defaults[section].items() if name != "ProtectClock"}


def in_sandbox(text: str, argv: list[str], output: Path, limit: int) -> str:
    """Return the unit ``text`` with the command ``argv`` in place of the service, to run once in the same sandbox.

    Its output goes to ``output``. It gets no environment files, since these hold the service's secrets.
    """
    own = re.compile(r"(Type|ExecStart|ExecStartPost|ExecReload|ExecStop|EnvironmentFile|Restart\w*|Timeout\w+)=")
    lines = [line for line in text.partition("\n[Install]")[0].splitlines() if not own.match(line)]
    # systemd reads a JSON string like its own quoting, but would expand % and $.
    command = " ".join(json.dumps(word).replace("%", "%%").replace("$", "$$") for word in argv)
    lines += ["Type=oneshot", f"ExecStart={command}", f"TimeoutStartSec={limit}"]
    lines += [f"StandardOutput=append:{output}", "StandardError=inherit"]
    return "\n".join(lines) + "\n"


def _text(value) -> str:
    text = {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    return text.replace("%", "%%")


def run(*argv: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess:
    """Run ``argv`` with untranslated messages. Raises `SystemdError` with the last line if it fails."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", check=False, timeout=timeout,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise SystemdError(f"{' '.join(argv)}: no end after {timeout:.0f} s") from None
    if check and done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise SystemdError(f"{' '.join(argv)}: {last}")
    return done


def show(unit: str) -> dict:
    """Return the properties of ``unit``: strings by name, as in ``systemctl show``."""
    names = "LoadState,ActiveState,SubState,MainPID,NRestarts,UnitFileState,Result,ExecMainStatus"
    names += ",ExecMainStartTimestampMonotonic,FragmentPath,DropInPaths,NeedDaemonReload"
    out = run("systemctl", "show", unit, "--property", names, check=False).stdout
    return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)


def drop_ins(unit: str) -> list[Path]:
    """Return the files that systemd reads after the one of ``unit`` itself, in its order.

    They are read from the disk, because systemd lists none for a unit that does not exist yet. Source:
    systemd.unit(5); a file hides another one of the same name in a later directory, and a link to /dev/null is none.
    """
    kind = unit.rpartition(".")[2]
    stem = unit.removesuffix(f".{kind}")
    prefixes = [stem[: at.end()] for at in re.finditer("-", stem)]
    names = [unit, *(f"{prefix}.{kind}" for prefix in reversed(prefixes)), kind]
    places, found = unit_places(), {}
    for folder in [Path(place) / f"{name}.d" for name in names for place in places]:
        for file in sorted(folder.glob("*.conf")):
            found.setdefault(file.name, file)
    return [file for _, file in sorted(found.items()) if file.is_file()]


def unit_places() -> list[str]:
    """Return the directories of units, highest priority first."""
    return run("systemctl", "show", "--property", "UnitPath", "--value", check=False).stdout.split()


def directives(text: str) -> dict[tuple[str, str], list[str]]:
    """Return the assignments of a unit or a drop-in: values in order, by section and directive."""
    found: dict[tuple[str, str], list[str]] = {}
    section = ""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        line = line.strip()
        if line.startswith("["):
            section = line.strip("[]")
        elif "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            found.setdefault((section, name.strip()), []).append(value.strip())
    return found


def changed_directives(text: str, more: str) -> list[str]:
    """Return the directives by which the drop-in ``more`` changes the process of the unit ``text``.

    These are directives that ``text`` has too, with another effective value, and those that decide which program runs,
    as which user and on which files. Limits and the order of units do not count.
    """
    own, changed = directives(text), []
    for (section, name), values in directives(more).items():
        before = _in_effect(own.get((section, name), []))
        after = _in_effect([*own.get((section, name), []), *values])
        same = after == before or (set(after) == set(before) and after[-1:] == before[-1:])
        if section == "Service" and not same and ((section, name) in own or DECISIVE.fullmatch(name)):
            changed.append(name)
    return changed


def _in_effect(values: list[str]) -> list[str]:
    """Return the values after the last empty one, which resets the list."""
    values = [SWITCHES.get(value.lower(), value) for value in values]
    return values[len(values) - values[::-1].index("") :] if "" in values else values


def running_release(pid: int) -> str | None:
    """Return the release that process ``pid`` was started with, or None if it carries none (needs root)."""
    try:
        environ = Path(f"/proc/{pid}/environ").read_bytes() if pid else b""
    except OSError:
        return None
    for entry in environ.split(b"\0"):
        name, _, value = entry.partition(b"=")
        if name.decode(errors="replace") == RELEASE_VARIABLE:
            return value.decode(errors="replace")
    return None


def journal_end() -> str | float:
    """Return the current end of the journal, for `journal`: its cursor, which does not depend on the clock.

    An empty journal has no cursor; then it is the Unix time.
    """
    said = run("journalctl", "--lines", "0", "--show-cursor", "--quiet", "--no-pager", check=False).stdout
    return said.partition("-- cursor: ")[2].strip() or time.time()


def journal(unit: str, after: str | float, lines: int = 400) -> list[str]:
    """Return the last ``lines`` messages of ``unit`` after a cursor or a Unix time, oldest first."""
    # Wait for the last messages of a process that just ended.
    run("journalctl", "--sync", check=False)
    # With a starting point, journalctl's own --lines returns the first lines.
    start = ["--after-cursor", after] if isinstance(after, str) else ["--since", f"@{after:.3f}"]
    out = run("journalctl", "--unit", unit, *start, "--output", "cat", "--quiet", "--no-pager", check=False).stdout
    return out.splitlines()[-lines:]


def restarts(unit: str, minutes: int) -> int:
    """Return how often systemd restarted ``unit`` in the last ``minutes`` because its process had exited."""
    event = [f"MESSAGE_ID={RESTART_SCHEDULED}", f"UNIT={unit}", "--since", f"-{minutes}min"]
    return len(run("journalctl", *event, "--quiet", "--output", "cat", "--no-pager", check=False).stdout.splitlines())


def verify(unit: str, text: str, directory: Path) -> str | None:
    """Check ``text`` with ``systemd-analyze verify``; return its complaint or None.

    Only lines that name this unit count: other units of the machine are not checked here.
    """
    path = directory / unit
    path.write_text(text)
    done = run("systemd-analyze", "verify", "--man=no", str(path), check=False)
    said = [line for line in done.stderr.splitlines() if unit in line]
    path.unlink()
    return said[0].replace(f"{directory}/", "") if said else None


def port_holder(port: int, own_unit: str) -> str | None:
    """Return which process outside ``own_unit`` listens on TCP ``port``, or None if the port is free for the unit."""
    inodes = {each["inode"] for each in _bound("self") if each["protocol"] == "tcp" and each["port"] == port}
    for process in _processes() if inodes else []:
        try:
            if _sockets_of(process) & inodes and not _is_of(process, own_unit):
                return f"{(process / 'comm').read_text(errors='replace').strip()} (pid {process.name})"
        except OSError:
            continue
    return None


def listening(unit: str) -> list[dict]:
    """Return where the processes of ``unit`` accept packets: protocol, address and port, unique and sorted."""
    found = set()
    for process in _processes():
        try:
            held = _sockets_of(process) if _is_of(process, unit) else set()
            # A unit may have its own network namespace.
            own = [each for each in _bound(process.name) if each["inode"] in held] if held else []
        except OSError:
            continue
        found |= {(each["protocol"], each["address"], each["port"]) for each in own}
    return [dict(zip(("protocol", "address", "port"), each, strict=True)) for each in sorted(found, key=str)]


def address_filter(unit: str) -> dict:
    """Return the address filter of ``unit``: ``allowed`` networks, None for all, and whether it is ``in_force``.

    If the kernel or a container cannot filter, systemd runs the unit without a filter and counts no bytes either.
    """
    names = "IPAddressAllow,IPAddressDeny,IPIngressBytes"
    out = run("systemctl", "show", unit, "--property", names, check=False).stdout
    told = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    closed = {"0.0.0.0/0", "::/0"} <= set(told.get("IPAddressDeny", "").split())
    allowed = told.get("IPAddressAllow", "").split() if closed else None
    return {"allowed": allowed, "in_force": told.get("IPIngressBytes", "").isdigit()}


def _processes() -> list[Path]:
    return [path for path in Path("/proc").iterdir() if path.name.isdigit()]


def _is_of(process: Path, unit: str) -> bool:
    return any(f"/{unit}/" in f"{line}/" for line in (process / "cgroup").read_text().split())


def _sockets_of(process: Path) -> set[str]:
    links = set()
    for descriptor in (process / "fd").iterdir():
        try:
            links.add(str(descriptor.readlink()))
        except OSError:  # closed in the meantime
            continue
    return links


def _bound(pid: str) -> list[dict]:
    """Return sockets in the network of process ``pid`` that wait for a peer: TCP that listens, UDP without a peer."""
    found = []
    for protocol, state in (("tcp", "0A"), ("udp", "07")):
        for table in (protocol, f"{protocol}6"):
            try:
                rows = Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
            except OSError:
                continue
            for field in (row.split() for row in rows):
                if field[3] == state:
                    address, port = field[1].split(":")
                    found.append(
                        {
                            "protocol": protocol,
                            "address": _address(address),
                            "port": int(port, 16),
                            "inode": f"socket:[{field[9]}]",
                        }
                    )
    return found


def _address(text: str) -> str:
    """Return an address of /proc/net, which consists of words of four bytes in the machine's byte order."""
    words = [int(text[at : at + 8], 16).to_bytes(4, sys.byteorder) for at in range(0, len(text), 8)]
    address = ipaddress.ip_address(b"".join(words))
    return str(getattr(address, "ipv4_mapped", None) or address)
