"""Callback of the scenarios: a check of a converged machine must report no change; a failure shows the journal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import yaml
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: story
type: notification
short_description: What Molecule's sequence does not assert by itself
description:
  - Ends a check of a converged machine with exit code 1 when a task would change something.
  - Prints the last lines of the machine's journal when a task failed.
requirements:
  - runs inside Molecule, whose state file it reads
"""

JOURNAL_LINES = 80


def converged() -> bool:
    """Return whether Molecule has converged this scenario's machine."""
    state = Path(os.environ["MOLECULE_STATE_FILE"])
    return state.exists() and bool((yaml.safe_load(state.read_text()) or {}).get("converged"))


def journal() -> str:
    """Return the last lines of the machine's journal, or the error why they cannot be read."""
    config = Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "ssh_config"
    command = ["ssh", "-F", str(config), "machine", "sudo", "journalctl", "--no-pager", "--lines=400"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    lines = [line for line in done.stdout.splitlines() if " sshd" not in line and " sudo[" not in line]
    return "\n".join(lines[-JOURNAL_LINES:]) or done.stderr


class CallbackModule(CallbackBase):
    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "story"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._check_mode = False

    def v2_playbook_on_play_start(self, play) -> None:
        self._check_mode = bool(play.check_mode)

    def v2_playbook_on_stats(self, stats) -> None:
        machines = [host for host in stats.processed if host != "localhost"]
        if any(stats.failures.get(host) for host in machines):
            self._display.display(f"The journal's last lines:\n{journal()}")
        if self._check_mode and converged() and any(stats.changed.get(host) for host in machines):
            self._display.error("The check of a converged machine is not silent.")
            sys.exit(1)
