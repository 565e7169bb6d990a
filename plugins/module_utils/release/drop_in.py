"""A drop-in file of a systemd program, and whether its service has read it since.

Plain Python. If a run was killed between writing and restarting, the next one completes it, because the service was
still started before the file was written.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from .. import host_text
from . import systemd_unit


@dataclass(frozen=True)
class Change:
    """The change to make: the text of the file before and after, and whether the service must read it."""

    path: str
    before: str
    after: str
    unit: str

    @property
    def needed(self) -> bool:
        return self.before != self.after or bool(self.unit)


def change(host: host_text.Tree, path: str, text: str, unit: str, show=systemd_unit.show) -> Change:
    """Compare the file at ``path`` with the wanted text; an empty text means that there is no file."""
    before = host.read(path)
    unread = before != text or (before and host.at(path).stat().st_ctime > begun(show(unit)))
    return Change(path, before, text, unit if unit and unread else "")


def begun(live: dict) -> float:
    """Return when the main process of a unit started, in Unix time, from its properties in systemd."""
    return int(live.get("ExecMainStartTimestampMonotonic") or 0) / 1e6 + time.time() - time.monotonic()


def carry_out(host: host_text.Tree, wanted: Change, command: list[str], run=systemd_unit.run) -> None:
    """Write the file, restart the service so that it reads the file, then run ``command``."""
    if wanted.before != wanted.after:
        host.keep(wanted.path, wanted.after)
    if wanted.unit:
        run("systemctl", "restart", wanted.unit)
    if wanted.needed and command:
        run(*command)
