"""A file that is read again when it changes, without a look at it for every request."""

import time
from collections.abc import Callable
from pathlib import Path

LOOK_AGAIN_SEC = 1.0


class Watched:
    """What a file looks like from outside: its time, its inode and its size. Make it before the file is read."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path, self._clock = path, clock
        self._looked, self._mark = clock(), self._look()

    def changed(self) -> bool:
        """Whether the file is another one than at the last look; looks once in LOOK_AGAIN_SEC at most."""
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
