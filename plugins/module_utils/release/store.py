"""The release store of a service: its releases, their probes, and what earlier runs recorded.

A release is prepared and checked next to the running one, started once, and *verified* when its probes answer. Earlier
verified releases are kept; see `rollback`. The other modules of this package that take a `Service` change the host:
`contents` (files, links, unit), `account` (user and directories), `checks`, `serving`, `rollback` and `removal`.
`deploy` puts them in order.

Plain Python. They raise `Refused` with one sentence before anything was changed, and `OSError` or
`systemd_unit.SystemdError` if the machine itself fails.
"""

from __future__ import annotations

import fcntl
import hmac
import json
import os
import secrets
import time
from contextlib import contextmanager
from pathlib import Path

from .. import atomic_file
from . import secret_files
from .description import Refused, digest

STORE = Path("/var/lib/llm-server/services")
UNITS = Path("/etc/systemd/system")
LOCKS = Path("/run")
# Seconds: a module whose controller was killed still runs to its end, which takes as long as the service's stop.
LOCK_TIMEOUT = 60


class Service:
    """The releases of one service on this machine."""

    def __init__(self, name: str):
        self.name = name
        self.unit = f"{name}.service"
        self.unit_path = UNITS / self.unit
        self.timer = f"{name}.timer"
        self.timer_path = UNITS / self.timer
        self.store = STORE / name
        self.environment = self.store / "environment"
        self.key = self.store / "key"
        # Programs and environments that other services are about to use.
        self.beside: list[str] = []

    @contextmanager
    def lock(self, patience: float | None = None):
        """Lock this service against other runs on the same machine; wait up to ``patience`` seconds for one.

        Raises `Refused` if the other run still holds the lock then.
        """
        end = time.monotonic() + (LOCK_TIMEOUT if patience is None else patience)
        with (LOCKS / f"llm-server-{self.name}.lock").open("w") as handle:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise Refused(
                            f"{self.name}: another run is changing this service now; try again when it ends"
                        ) from None
                    time.sleep(0.2)
            yield

    def state(self) -> dict:
        """Return what earlier runs recorded.

        - ``current``, ``verified`` (newest last) and ``failed``: releases
        - ``created``: what was created for the service; ``needs``: what it uses, even if others made it
        - ``since``: when the wait for a start began, in seconds of the monotonic clock since boot
        - ``restarts``: systemd's restart count at that time
        - ``journal_cursor``: where the messages about this process begin in the journal
        - ``altered``: the process may have been started while others had changed its unit
        - ``blocked``: the condition that did not hold before its start
        - ``out``: a run took the host out of rotation and has not put it back yet
        """
        blank = {
            "current": None,
            "verified": [],
            "failed": None,
            "created": {"user": None, "directories": []},
            "needs": {"user": None, "directories": []},
            "since": 0,
            "restarts": 0,
            "journal_cursor": 0,
            "blocked": None,
            "out": False,
            "altered": False,
        }
        try:
            return {**blank, **dict(json.loads((self.store / "state.json").read_text()))}
        except (FileNotFoundError, ValueError, TypeError):  # a damaged record counts as none: the next one is complete
            return blank

    def note(self, **changes) -> None:
        state = {**self.state(), **changes}
        write(self.store / "state.json", json.dumps(state, indent=1), 0o600)

    def release(self, name: str | None) -> dict:
        """Return a stored release, or {} if there is none of that name."""
        path = self.store / "releases" / f"{name}.json"
        return secret_files.without_secrets(self, json.loads(path.read_text())) if path.exists() else {}

    def main_unit(self, release: dict | None = None) -> str:
        """Return the unit that is enabled and active while a release (by default the current one) serves.

        It is the timer of a service that a timer starts.
        """
        release = self.release(self.state()["current"]) if release is None else release
        return self.timer if release.get("timer") else self.unit

    def keyed(self, text: str) -> str:
        """Return a digest of a secret that reveals nothing without this host's key."""
        if not hasattr(self, "_own_key"):
            # Without a key file, as in check mode on a new host, there are no earlier digests to compare with.
            self._own_key = self.key.read_text() if self.key.is_file() else secrets.token_hex(32)
        return hmac.new(self._own_key.encode(), text.encode(), "sha256").hexdigest()

    def keep_key(self) -> None:
        """Write the key for the digests of secrets unless it exists."""
        self.keyed("")
        if not self.key.is_file():
            write(self.key, self._own_key, 0o600)

    def keep(self, release: dict) -> None:
        """Store ``release`` under its digest."""
        if release["secrets"]:
            self.keep_key()
        path = self.store / "releases" / f"{digest(release)}.json"
        begun = path.stat().st_mtime if path.exists() else None
        write(path, json.dumps(release, indent=1), 0o600)
        if begun:  # other live files or limits do not make it a newer release; see `rollback.to_go_back_to`
            os.utime(path, (begun, begun))

    def adopt(self, release: dict) -> None:
        """Record what runs as the current release; nothing has to be written or restarted."""
        self.keep(release)
        self.note(current=digest(release))

    def store_proof(self, name: str, proof: dict) -> None:
        """Store the probes that verify a release, their time limit, and the conditions before its start.

        So a rollback to it can be verified too. A probe names the file of its secret, never the secret.
        """
        if self.proof_of(name) != proof:
            write(self.store / "probes" / f"{name}.json", json.dumps(proof), 0o600)

    def proof_of(self, name: str | None) -> dict:
        """Return ``{probes, before_start, start_timeout}`` of a release."""
        path = self.store / "probes" / f"{name}.json"
        known = json.loads(path.read_text()) if path.exists() else {}
        return {"probes": [], "before_start": [], "start_timeout": None, **known}


def write(path: Path, text: str, mode: int, owner: str = "root", group: str = "root") -> None:
    """Write ``text`` to ``path`` in one step: a reader sees either the old file or the complete new one."""
    atomic_file.write(path, text, mode, owner, group)
