"""Detect that a file has changed, without a stat for every request."""

import time
from collections.abc import Callable
from pathlib import Path

LOOK_AGAIN_SEC = 1.0


class Watched:
    """A file's modification time, inode and size. Create it before you read the file."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._looked, self._mark = clock(), self._look()

    def changed(self) -> bool:
        """Return whether the file has changed since the last check; checks at most once in LOOK_AGAIN_SEC."""
        now = self._clock()
        if abs(now - self._looked) < LOOK_AGAIN_SEC:
            return False
        self._looked, before, self._mark = now, self._mark, self._look()
        return self._mark != before

    def _look(self) -> tuple:
        try:
            seen = self._path.stat()
        except OSError:
            return ()
        return seen.st_mtime_ns, seen.st_ino, seen.st_size
