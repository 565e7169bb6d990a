"""Detect that a file has changed, without a stat for every request."""

import time
from collections.abc import Callable
from pathlib import Path

CHECK_INTERVAL_SEC = 1.0


class Watched:
    """A file's modification time, inode and size. Create it before you read the file."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._checked_at, self._mark = clock(), self._stat()

    def changed(self) -> bool:
        """Return whether the file has changed since the last check; checks at most once in CHECK_INTERVAL_SEC."""
        now = self._clock()
        if abs(now - self._checked_at) < CHECK_INTERVAL_SEC:
            return False
        self._checked_at, before, self._mark = now, self._mark, self._stat()
        return self._mark != before

    def _stat(self) -> tuple:
        try:
            seen = self._path.stat()
        except OSError:
            return ()
        return seen.st_mtime_ns, seen.st_ino, seen.st_size
