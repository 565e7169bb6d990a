"""Runs a command against an engine: its environment, its output without the key, its outcome. Plain Python."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time

HIDDEN = "********"
OUT_OF_TIME, NOT_STARTED = 124, 127
OUTPUT_LIMIT = 16 << 20  # bytes that are kept of stdout, and of stderr


def run(argv: list, engine: str, url: str, model: str, key: str, timeout: float) -> dict:
    """Return ``{rc, seconds, stdout, stderr}`` of a command; the key is removed from its output."""
    own = {"ENGINE_NAME": engine, "ENGINE_URL": f"{url}/v1", "ENGINE_MODEL": model, "ENGINE_API_KEY": key}
    begun = time.monotonic()
    try:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, **own},
            start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        return {"rc": NOT_STARTED, "seconds": 0.0, "stdout": "", "stderr": f"{argv[0]}: {error.strerror}\n"}
    try:
        outputs, rc = process.communicate(timeout=timeout), process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        outputs, rc = process.communicate(), OUT_OF_TIME
    except BaseException:  # such as Ctrl-C: no process is left behind
        os.killpg(process.pid, signal.SIGKILL)
        raise
    out, err = (hidden(each[-OUTPUT_LIMIT:].decode("utf-8", "replace"), key) for each in outputs)
    return {"rc": rc, "seconds": round(time.monotonic() - begun, 1), "stdout": out, "stderr": err}


def hidden(text: str, key: str) -> str:
    """Return ``text`` without the key."""
    return text.replace(key, HIDDEN) if key else text


def sentence(result: dict, timeout: float) -> str:
    """Return the outcome of a command as a sentence."""
    if result["rc"] == 0:
        return f"done after {result['seconds']:.0f} s"
    if result["rc"] == OUT_OF_TIME and result["seconds"] >= timeout:
        return f"ended after {timeout:.0f} s, which run_timeout allows"
    last = (result["stderr"].strip() or result["stdout"].strip()).split("\n")[-1].strip()
    return f"exit code {result['rc']} after {result['seconds']:.0f} s" + (f": {last[:200]}" if last else "")


def log_of(result: dict, argv: list, engine: str, model: str) -> str:
    """Return the text of a run's log file."""
    head = {"engine": engine, "model": model, "command": argv, "rc": result["rc"], "seconds": result["seconds"]}
    lines = [f"{name}: {json.dumps(value)}" for name, value in head.items()]
    parts = ["\n".join(lines), f"\n--- stdout\n{result['stdout']}", f"\n--- stderr\n{result['stderr']}"]
    return "\n".join(part.rstrip("\n") for part in parts) + "\n"
