"""Text files of the host that others write too: any byte may stand in them, and what is not ours stays to the byte.

A byte that is no UTF-8 becomes a surrogate and goes back as the same byte; line ends stay as they are. Plain Python.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


class Tree:
    """The files of the machine, or in tests those of a folder that looks like one."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def read(self, path: str) -> str:
        """Return the text of a file, empty where there is none."""
        place = self.at(path)
        return read(place) if place.exists() else ""

    def write(self, path: str, text: str) -> None:
        """Replace a file in one step, keeping its mode."""
        place = self.at(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        mode = place.stat().st_mode & 0o7777 if place.exists() else 0o644
        with tempfile.NamedTemporaryFile(dir=place.parent, prefix=".new-", delete=False) as handle:
            handle.write(encoded(text))
            handle.flush()
            os.fsync(handle.fileno())
        Path(handle.name).chmod(mode)
        Path(handle.name).replace(place)

    def keep(self, path: str, text: str) -> None:
        """Have a file with this text; an empty one is none."""
        if text:
            self.write(path, text)
        else:
            self.at(path).unlink(missing_ok=True)


def read(path: Path) -> str:
    """Return the text of a file; OSError where it cannot be read."""
    return path.read_bytes().decode("utf-8", "surrogateescape")


def encoded(text: str) -> bytes:
    """Return the bytes that `read` made ``text`` of."""
    return text.encode("utf-8", "surrogateescape")


def lines(text: str) -> list[str]:
    """Return the lines of a text with their ends. A line ends at a line feed alone, unlike those of str.splitlines."""
    parts = text.split("\n")
    return [f"{part}\n" for part in parts[:-1]] + [part for part in parts[-1:] if part]


def printable(text: str) -> str:
    """Return ``text`` for people and for JSON: what is no UTF-8 is shown as a question mark."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
