"""The directory of a program's builds on a host: one build at a time, and room for it."""

from __future__ import annotations

import fcntl
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .. import unprivileged
from ..errors import UserError


@dataclass(frozen=True)
class BuildDirectory:
    """The directory ``home``, below which each build has a directory of its own."""

    home: Path

    @contextmanager
    def lock(self):
        """Allow one build at a time below ``home``; a second one waits and then finds it finished."""
        unprivileged.open_up(self.home)
        with (self.home / ".lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def need_room(self, needed_mib: int, cure: str = "") -> None:
        """Raise UserError, with the cure, if the disk has less than ``needed_mib`` free."""
        free = shutil.disk_usage(self.home).free >> 20
        if free < needed_mib:
            raise UserError(
                f"the disk of {self.home} has {free} MiB free, {needed_mib} MiB are needed to build"
                + (f"; {cure}" if cure else "")
            )
