"""Record where the Python of a unit's processes spends its time, by py-spy, without stopping them.

Plain Python; the program is handed in. py-spy reads the memory of processes and their files through /proc/PID/root, so
the sandbox of a hardened unit does not hide them from root.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from . import systemd_unit

SECONDS = 600
LATE_S = 60  # to begin, to end and to draw
PYTHON = re.compile(r"^python[\d.]*$|^pypy[\d.]*$")
# A process with an interpreter built in has its library among its mappings.
LIBRARY = re.compile(r"/libpython[\d.]*\.so")
RESTRICTED = Path("/proc/sys/kernel/yama/ptrace_scope")


class ProfileError(Exception):
    """Why nothing is recorded: one sentence with the cure."""


def main_process(unit: str, proc: Path = Path("/proc")) -> int:
    """Return the main process of a unit that runs and is Python. Raises ProfileError."""
    live = systemd_unit.show(unit)
    pid = int(live.get("MainPID") or 0)
    if live.get("LoadState") != "loaded":
        raise ProfileError(f"{unit} is not on this host; name a unit that is, such as vllm.service.")
    if live.get("ActiveState") != "active" or not pid:
        raise ProfileError(f"{unit} does not run ({live.get('ActiveState')}); start it first.")
    if not is_python(proc / str(pid)):
        raise ProfileError(f"{unit} is not Python ({_program(proc / str(pid))}); py-spy has nothing to read there.")
    return pid


def is_python(process: Path) -> bool:
    """Say whether a process is an interpreter of Python, or has one built in."""
    if PYTHON.match(_program(process)):
        return True
    try:
        return bool(LIBRARY.search((process / "maps").read_text(errors="replace")))
    except OSError:
        return False


def _program(process: Path) -> str:
    try:
        return (process / "exe").readlink().name.removesuffix(" (deleted)")
    except OSError:
        return "gone"


def record(program: str, pid: int, seconds: int, rate: int, output: Path) -> str:
    """Record a process and its children into an SVG; return what the tool said. Raises ProfileError."""
    if RESTRICTED.is_file() and RESTRICTED.read_text().strip() == "3":
        raise ProfileError("kernel.yama.ptrace_scope is 3, which forbids it to root too, until the next boot.")
    words = [program, "record", "--pid", str(pid), "--subprocesses", "--nonblocking", "--duration", str(seconds)]
    words += ["--rate", str(rate), "--format", "flamegraph", "--output", str(output)]
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", timeout=seconds + LATE_S)
    except subprocess.TimeoutExpired:
        raise ProfileError(f"py-spy has not ended {LATE_S} s after the {seconds} s that it was to record.") from None
    said = " ".join((done.stderr or done.stdout).split())
    if done.returncode or not output.is_file():
        raise ProfileError(f"py-spy could not record process {pid}: {said[-300:]}")
    return said[-300:]


def samples(svg: str) -> int:
    """Return how many samples a flame graph has."""
    found = re.search(r"<title>all \(([\d,]+) samples", svg)
    return int(found[1].replace(",", "")) if found else 0
