"""Check whether a directory is writable by writing to it: this tests space, permissions and the disk at once."""

import asyncio
import tempfile
import time
from pathlib import Path

BLOCK = b"\0" * 4096
TRUSTED_SEC = 2  # health checks need no key, and must not keep a disk busy


class Disk:
    """The directories that the server writes to; `state` tests them at most once in TRUSTED_SEC."""

    def __init__(self, *directories: Path) -> None:
        self._states = dict.fromkeys(directories, "ok")
        self._read_at = -float("inf")

    async def state(self, directory: Path) -> str:
        """Return "ok", or why the directory cannot be written."""
        if time.monotonic() - self._read_at > TRUSTED_SEC:
            self._read_at = time.monotonic()
            self._states = {each: await asyncio.to_thread(_state, each) for each in self._states}
        return self._states[directory]


def _state(directory: Path) -> str:
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
            file.write(BLOCK)
    except OSError as error:
        return f"cannot be written: {error.strerror}"
    return "ok"
