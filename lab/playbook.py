"""Run a playbook and parse its result: for the drill and for the tests of the roles."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TIMEOUT = 900
TASK_BEGINS = "v2_playbook_on_task_start"
COLLECTION = "llm.server."  # precedes the role in a task's name


@dataclass(frozen=True)
class Outcome:
    """The result of a run."""

    code: int
    changed: list[str]  # names of the tasks and steps that changed something, such as "vllm : Run vLLM"
    message: str  # the failed task's message; empty if none failed
    warnings: list[str]
    text: str  # the complete output


def command(inventory: Path, playbook: str, variables: dict[str, Any], *words: str) -> list[str]:
    """Return the command that runs a playbook with variables laid over the inventory's."""
    program = Path(sys.executable).with_name("ansible-playbook")
    return [str(program), "--inventory", str(inventory), playbook, "--extra-vars", json.dumps(variables), *words]


def run(argv: list[str], cwd: Path, environment: dict[str, str] | None = None, timeout: float = TIMEOUT) -> Outcome:
    """Run ansible-playbook to its end."""
    variables = {**os.environ, **(environment or {}), "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.jsonl"}
    variables.pop("ANSIBLE_CALLBACKS_ENABLED", None)
    done = subprocess.run(
        argv, cwd=cwd, env=variables, capture_output=True, text=True, errors="replace", check=False, timeout=timeout
    )
    return read(done.returncode, done.stdout + done.stderr)


def interrupted(argv: list[str], cwd: Path, at: int, after: float, environment: dict[str, str]) -> str:
    """Run ansible-playbook and kill it ``after`` seconds into its task number ``at``; return that task's name.

    A run with fewer tasks ends by itself; then the name is empty. All processes of the run on this machine are killed,
    those on hosts are not: the same as when the controller loses its power.
    """
    variables = {**os.environ, **environment, "ANSIBLE_STDOUT_CALLBACK": "ansible.posix.jsonl"}
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            argv, cwd=cwd, env=variables, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        begun, killed = 0, ""

        def kill(name: str) -> None:
            nonlocal killed
            if process.poll() is None:
                killed = name
                os.killpg(process.pid, signal.SIGKILL)

        for line in process.stdout:
            if not line.startswith("{"):
                continue
            event = json.loads(line)
            if event["_event"] == TASK_BEGINS:
                begun += 1
                if begun == at:
                    threading.Timer(after, kill, [event["task"]["name"]]).start()
        process.wait()
    return killed


def steps_changed(task: str, result: dict) -> list[str]:
    """Return what a batch changed, as ``ROLE : STEP``; [] for other tasks."""
    role, colon, _ = task.rpartition(" : ")
    return [f"{role}{colon}{step}" for step in result.get("changed_steps", [])]


def read(code: int, text: str) -> Outcome:
    """Parse the events that ansible-playbook printed, one JSON object per line."""
    changed, warnings, message = [], [], ""
    for line in text.splitlines():
        if not line.startswith("{"):
            continue
        event = json.loads(line)
        for result in event.get("hosts", {}).values():
            warnings += [str(item) for item in result.get("warnings", [])]
            if event["_event"] in ("v2_runner_on_failed", "v2_runner_on_unreachable"):
                message = str(result.get("msg", ""))
                changed += steps_changed(event["task"]["name"].removeprefix(COLLECTION), result)
            elif event["_event"] == "v2_runner_on_ok" and result.get("changed"):
                name = event["task"]["name"].removeprefix(COLLECTION)
                changed += steps_changed(name, result) or [name]
    if code and not message:
        lines = [line for line in text.splitlines() if not line.startswith("{") and line.strip()]
        message = lines[-1] if lines else ""
    return Outcome(code, changed, message, warnings, text)


def together(*runs: Callable[[], Outcome]) -> list[Outcome]:
    """Run several functions at once and return their outcomes in the same order."""
    found: list[Outcome | None] = [None] * len(runs)

    def one(place: int) -> None:
        found[place] = runs[place]()

    threads = [threading.Thread(target=one, args=[place]) for place in range(len(runs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [outcome for outcome in found if outcome is not None]
