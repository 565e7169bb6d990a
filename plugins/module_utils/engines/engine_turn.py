"""Wait for an engine's turn: until those before it answer and the GPU has what its plan needs.

The units of engines run this file before each start (`ExecStartPre`), after a boot too: two engines that start at the
same time size each other's cache wrong (vllm#55827). Nothing in it can keep an engine down: what does not come in its
time is not waited for any longer, and the journal says so.

    engine_turn.py TURN.json

TURN.json has ``earlier``, a list of ``{unit, url, seconds}``: ``url`` answers 200 once the engine serves, and
``seconds`` is how long it may take. ``gpu`` may be ``{mib, gpus}``, what must be free on each of the first GPUs.
Standard library only, Python 3.8 or newer: it runs on the host as it is.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

POLL_SECONDS = 1.0
MOST_SECONDS = 3000.0  # less than the unit's TimeoutStartSec, with the wait for the GPU
ANSWER_SECONDS = 5.0
# When the host is up, whoever restarts an engine waits for the end of this.
UP_SECONDS = 120.0
GPU_SECONDS = 60.0  # what a process held is free soon after it left, or stuck


def coming(unit: str) -> bool:
    """Say whether a unit runs, starts, or is in the queue to be started."""
    command = ["systemctl", "show", unit, "--property", "ActiveState,Job"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout
    state = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    return state.get("ActiveState") in ("active", "activating", "reloading") or state.get("Job", "0") not in ("", "0")


def boots() -> bool:
    """Say whether the host is still starting; source: systemctl(1), is-system-running."""
    command = ["systemctl", "is-system-running"]
    output = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False).stdout
    return output.strip() in ("initializing", "starting")


def serves(url: str) -> bool:
    """Say whether ``url`` answers 200."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(url, timeout=ANSWER_SECONDS) as answer:
            return answer.status == 200
    except (OSError, ValueError):
        return False


def free_mib(gpus: int) -> int:
    """Return what is free on the fullest of the first ``gpus`` GPUs, in MiB.

    Source: ``nvidia-smi --help-query-gpu``. OSError or ValueError where it does not answer.
    """
    command = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    return min(int(line) for line in done.stdout.split()[:gpus])


def await_engine(unit: str, url: str, seconds: float) -> str:
    """Wait until an engine serves, is not coming, or its time is up; return a sentence on it, "" where it serves."""
    end = time.monotonic() + seconds
    while not serves(url):
        if not coming(unit):
            return f"{unit} does not run, so it is not waited for"
        if time.monotonic() >= end:
            return f"{unit} does not serve after {seconds:.0f} s, so it is not waited for any longer"
        time.sleep(POLL_SECONDS)
    return ""


def await_gpu(mib: int, gpus: int, seconds: float = GPU_SECONDS) -> str:
    """Wait until ``mib`` are free on each of the first ``gpus`` GPUs; return what is to be said of it."""
    end = time.monotonic() + seconds
    while True:
        try:
            free = free_mib(gpus)
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            return f"nvidia-smi does not say what is free: {error}"
        if free >= mib:
            return ""
        if time.monotonic() >= end:
            return f"{free} MiB are free on the GPU after {seconds:.0f} s, and the plan needs {mib} MiB"
        time.sleep(POLL_SECONDS)


def main(path: str) -> None:
    """Wait for all that TURN.json names; without the file there is nothing to wait for."""
    try:
        turn = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return
    booting = boots()
    end = time.monotonic() + (MOST_SECONDS if booting else UP_SECONDS)
    messages = []
    for one in turn["earlier"]:
        seconds = min(float(one["seconds"]), max(0.0, end - time.monotonic()))
        messages.append(await_engine(one["unit"], one["url"], seconds))
    if turn.get("gpu"):
        messages.append(await_gpu(turn["gpu"]["mib"], turn["gpu"]["gpus"]))
    for line in filter(None, messages):
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
