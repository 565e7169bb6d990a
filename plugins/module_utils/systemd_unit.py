"""Read and write what systemd knows of one service.

Plain Python on top of ``systemctl``, ``journalctl`` and ``/proc``; no Ansible inside.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

# The rights every service of this project starts without. A service that needs one back names it in its own
# sections, so the difference stands where the need is known.
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

RELEASE_VARIABLE = "SERVICE_RELEASE"

# SD_MESSAGE_UNIT_RESTART_SCHEDULED of sd-messages.h: systemd starts a unit again because its process left.
RESTART_SCHEDULED = "5eb03494b6584870a536b337290809b3"


class SystemdError(RuntimeError):
    """A command of systemd refused; the text is its own last line."""


def render(sections: dict) -> str:
    """Return the text of a unit: the hardened defaults with ``sections`` laid over them.

    ``sections`` is ``{section: {directive: value}}``; a list gives one line per item, ``None`` takes a default away.
    Values are meant as they stand: systemd would expand ``%``, so it is doubled here, for all of them.
    """
    lines = ["# Written by Ansible; changes made here are undone by the next run."]
    for section in ("Unit", "Service", "Install"):
        lines += ["", f"[{section}]"]
        for directive, value in {**DEFAULTS[section], **(sections.get(section) or {})}.items():
            if value is None:
                continue
            values = value if isinstance(value, list) else [value]
            lines += [f"{directive}={_text(item)}" for item in values]
    return "\n".join(lines) + "\n"


def in_sandbox(text: str, argv: list[str], output: Path, limit: int) -> str:
    """Return the unit ``text`` with the command ``argv`` in place of its service: run once, in the same sandbox.

    What it prints goes to ``output``. It gets no file with variables, since these hold the service's secrets.
    """
    own = re.compile(r"(Type|ExecStart|ExecStartPost|ExecReload|ExecStop|EnvironmentFile|Restart\w*|Timeout\w+)=")
    lines = [line for line in text.partition("\n[Install]")[0].splitlines() if not own.match(line)]
    # systemd reads a JSON string as it reads its own quotes; it would expand % and $.
    command = " ".join(json.dumps(word).replace("%", "%%").replace("$", "$$") for word in argv)
    lines += ["Type=oneshot", f"ExecStart={command}", f"TimeoutStartSec={limit}"]
    lines += [f"StandardOutput=append:{output}", "StandardError=inherit"]
    return "\n".join(lines) + "\n"


def _text(value) -> str:
    text = {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    return text.replace("%", "%%")


def run(*argv: str, check: bool = True, timeout: float = 120) -> subprocess.CompletedProcess:
    """Run ``argv`` with untranslated messages; raise `SystemdError` with its last line when it fails."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=timeout, env={**os.environ, "LC_ALL": "C"}
        )
    except subprocess.TimeoutExpired:
        raise SystemdError(f"{' '.join(argv)}: no end after {timeout:.0f} s") from None
    if check and done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise SystemdError(f"{' '.join(argv)}: {last}")
    return done


def show(unit: str) -> dict:
    """Return the state of ``unit``: strings by property, as ``systemctl show`` names them."""
    names = "LoadState,ActiveState,SubState,MainPID,NRestarts,UnitFileState,Result,ExecMainStatus"
    names += ",ExecMainStartTimestampMonotonic"
    out = run("systemctl", "show", unit, "--property", names, check=False).stdout
    return dict(line.split("=", 1) for line in out.splitlines() if "=" in line)


def running_release(pid: int) -> str | None:
    """Return the release that process ``pid`` was started with, or None where it carries none (needs root)."""
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
    """Return the place where the journal ends now, for `journal`: its cursor, which no jump of the clock moves.

    An empty journal has none; then it is the Unix time.
    """
    said = run("journalctl", "--lines", "0", "--show-cursor", "--quiet", "--no-pager", check=False).stdout
    return said.partition("-- cursor: ")[2].strip() or time.time()


def journal(unit: str, after: str | float, lines: int = 400) -> list[str]:
    """Return the last ``lines`` messages of ``unit`` after a cursor or a Unix time, oldest first."""
    # The last words of a process that just died may still be on their way.
    run("journalctl", "--sync", check=False)
    # With a place to begin at, journalctl's own --lines gives the first ones.
    start = ["--after-cursor", after] if isinstance(after, str) else ["--since", f"@{after:.3f}"]
    out = run("journalctl", "--unit", unit, *start, "--output", "cat", "--quiet", "--no-pager", check=False).stdout
    return out.splitlines()[-lines:]


def restarts(unit: str, minutes: int) -> int:
    """Return how often systemd started ``unit`` again in the last ``minutes`` because its process had left."""
    event = [f"MESSAGE_ID={RESTART_SCHEDULED}", f"UNIT={unit}", "--since", f"-{minutes}min"]
    return len(run("journalctl", *event, "--quiet", "--output", "cat", "--no-pager", check=False).stdout.splitlines())


def verify(unit: str, text: str, directory: Path) -> str | None:
    """Ask ``systemd-analyze verify`` about ``text``; return its complaint or None.

    Only lines that name this unit count: other units of the machine are not ours to judge.
    """
    path = directory / unit
    path.write_text(text)
    done = run("systemd-analyze", "verify", "--man=no", str(path), check=False)
    said = [line for line in done.stderr.splitlines() if unit in line]
    path.unlink()
    return said[0].replace(f"{directory}/", "") if said else None


def port_holder(port: int, own_unit: str) -> str | None:
    """Say which process outside ``own_unit`` listens on TCP ``port``, or None when it is free for the unit."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            rows = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            field = row.split()
            if field[3] == "0A" and int(field[1].rsplit(":", 1)[1], 16) == port:
                inodes.add(f"socket:[{field[9]}]")
    if not inodes:
        return None
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        try:
            held = any(str(descriptor.readlink()) in inodes for descriptor in (process / "fd").iterdir())
            if held and f"/{own_unit}" not in (process / "cgroup").read_text():
                return f"{(process / 'comm').read_text().strip()} (pid {process.name})"
        except OSError:
            continue
    return None
