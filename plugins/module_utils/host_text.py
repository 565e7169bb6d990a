"""Text files of the host that others write too: any byte may stand in them, and what is not ours stays to the byte.

A byte that is no UTF-8 becomes a surrogate and goes back as the same byte; line ends stay as they are. Plain Python.
"""

from __future__ import annotations

from pathlib import Path


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
