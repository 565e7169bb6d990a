"""Run apt and dpkg: wait for their lock, complete what a power loss interrupted, and give the reason of a failure.

Plain Python; in tests another function runs the commands.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from ..errors import UserError

LOCKED = re.compile(
    r"could not get lock|unable to lock|is another process using it|(?:was|is) locked by", re.IGNORECASE
)
INTERRUPTED = "dpkg was interrupted"
RETRY_AFTER = 3.0  # seconds between two attempts while another program holds the lock
DPKG_FAILURE = re.compile(r"^dpkg: error processing (?:archive|package) (\S+) .*:\s*\n\s*(.+)", re.MULTILINE)
ERROR_PREFIX = re.compile(r"^(?:[EW]: |(?:Error|Warning): |dpkg: error: )")

Command = Callable[[list[str]], "subprocess.CompletedProcess[str]"]


def command(argv: list[str]) -> subprocess.CompletedProcess[str]:
    """Run ``argv`` once, with untranslated messages and without questions."""
    # apt reads the proxy of the task's environment.
    environment = {
        **os.environ,
        "LC_ALL": "C",
        "DEBIAN_FRONTEND": "noninteractive",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    return subprocess.run(argv, capture_output=True, text=True, errors="replace", check=False, env=environment)


def run(argv: list[str], lock_timeout: float, once: Command = command) -> str:
    """Return the output of ``argv``; wait up to ``lock_timeout`` seconds while another program holds the lock.

    Raises UserError if the command fails.
    """
    end, resumed = time.monotonic() + lock_timeout, False
    while True:
        done = once(argv)
        if not done.returncode:
            return done.stdout
        if INTERRUPTED in done.stderr and not resumed:
            # The machine stopped during a transaction; apt refuses everything until that one is completed.
            resumed = True
            run(["dpkg", "--force-confdef", "--force-confold", "--configure", "--pending"], lock_timeout, once)
        elif not LOCKED.search(done.stderr):
            raise UserError(f"{argv[0]} failed: {reason(done)}")
        elif time.monotonic() >= end:
            raise UserError(
                f"another program has kept apt's lock for {lock_timeout} s: {reason(done)}; wait for it to end, or "
                "raise the lock's time limit"
            )
        else:
            time.sleep(min(RETRY_AFTER, lock_timeout / 10))


def reason(done: subprocess.CompletedProcess[str]) -> str:
    """Return why a command failed: dpkg's message about a package, or else the first two of its own messages."""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    messages = [ERROR_PREFIX.sub("", line) for line in lines if ERROR_PREFIX.match(line)] or lines[-1:]
    # apt prints dpkg's messages to its standard output, dpkg itself to the standard error.
    found = dpkg_failure(done.stdout) or dpkg_failure(done.stderr)
    return found or "; ".join(messages[:2]) or f"exit code {done.returncode}"


def dpkg_failure(text: str) -> str:
    """Return dpkg's message about the first package that it could not install; empty if there is none.

    apt itself only reports that dpkg failed. Source: dpkg's src/main/errors.c, print_error_perpackage.
    """
    found = DPKG_FAILURE.search(text)
    return f"{Path(found[1]).name}: {found[2].strip()}" if found else ""
