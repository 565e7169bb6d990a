"""Text files of the host that others write too: they may contain any byte, and bytes that are not ours never change.

A byte that is not UTF-8 becomes a surrogate and is written as the same byte; line ends are kept. Plain Python.
"""

from __future__ import annotations

from pathlib import Path

from . import atomic_file


class Tree:
    """The files of the machine, or in tests those of a directory tree like one."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def read(self, path: str) -> str:
        """Return the text of a file, empty if there is none."""
        place = self.at(path)
        return read(place) if place.exists() else ""

    def write(self, path: str, text: str) -> None:
        """Replace a file in one step, keeping its owner and mode."""
        atomic_file.write(self.at(path), text)

    def keep(self, path: str, text: str) -> None:
        """Write a file with this text; remove the file if the text is empty."""
        if text:
            self.write(path, text)
        else:
            self.at(path).unlink(missing_ok=True)


def read(path: Path) -> str:
    """Return the text of a file. Raises OSError if it cannot be read."""
    return path.read_bytes().decode("utf-8", "surrogateescape")


def encoded(text: str) -> bytes:
    """Return the bytes from which `read` made ``text``."""
    return text.encode("utf-8", "surrogateescape")


def lines(text: str) -> list[str]:
    """Return the lines of a text with their ends. Only a line feed ends a line, unlike in str.splitlines."""
    parts = text.split("\n")
    return [f"{part}\n" for part in parts[:-1]] + [part for part in parts[-1:] if part]


def printable(text: str) -> str:
    """Return ``text`` for people and for JSON: bytes that are not UTF-8 become question marks."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
