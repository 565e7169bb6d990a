"""Profile the Python code of a unit's processes with py-spy, without stopping them.

Plain Python. py-spy reads the memory of processes and their files through /proc/PID/root, so
the sandbox of a hardened unit does not hide them from root.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from ..errors import UserError
from ..release import systemd_unit

SECONDS = 600
LATE_S = 60  # to start, to finish and to draw
PYTHON = re.compile(r"^python[\d.]*$|^pypy[\d.]*$")
# A process that embeds Python maps its library.
LIBRARY = re.compile(r"/libpython[\d.]*\.so")
RESTRICTED = Path("/proc/sys/kernel/yama/ptrace_scope")
# py-spy 0.4 counts only threads that run, and writes no graph of none.
IDLE = "No stack counts found"


def main_process(unit: str, proc: Path = Path("/proc")) -> int:
    """Return the main process of a running Python unit. Raises UserError."""
    live = systemd_unit.show(unit)
    pid = int(live.get("MainPID") or 0)
    if live.get("LoadState") != "loaded":
        raise UserError(f"{unit} is not on this host; set profile_unit to one that is, such as vllm.service.")
    if live.get("ActiveState") != "active" or not pid:
        raise UserError(f"{unit} is not running ({live.get('ActiveState')}); start it first.")
    if not is_python(proc / str(pid)):
        raise UserError(f"{unit} is not Python ({_program(proc / str(pid))}); py-spy can only profile Python.")
    return pid


def is_python(process: Path) -> bool:
    """Return whether a process is a Python interpreter or embeds one."""
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
    """Record a process and its children to an SVG; return the tool's output. Raises UserError."""
    if RESTRICTED.is_file() and RESTRICTED.read_text().strip() == "3":
        raise UserError("kernel.yama.ptrace_scope is 3, so not even root may profile; set it to 2 or less and reboot.")
    words = [program, "record", "--pid", str(pid), "--subprocesses", "--nonblocking", "--duration", str(seconds)]
    words += ["--rate", str(rate), "--format", "flamegraph", "--output", str(output)]
    limit = seconds + LATE_S
    try:
        done = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        raise UserError(f"py-spy has not finished {LATE_S} s after the recording of {seconds} s.") from None
    if IDLE in done.stderr:
        raise UserError(
            f"Process {pid} was idle for all {seconds} s, so there is no graph; send it requests meanwhile or raise "
            "profile_seconds."
        )
    log = done.stderr or done.stdout
    if done.returncode or not output.is_file():
        # A backtrace of Rust follows the reason.
        reason = " ".join(log.split("Stack backtrace:")[0].split())[-300:]
        raise UserError(f"py-spy could not record process {pid} (exit status {done.returncode}): {reason}")
    return " ".join(log.split())[-300:]


def samples(svg: str) -> int:
    """Return the number of samples in a flame graph."""
    found = re.search(r"<title>all \(([\d,]+) samples", svg)
    return int(found[1].replace(",", "")) if found else 0
