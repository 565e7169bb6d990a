"""Checksum tables of released programs: ``{version: {architecture: "sha256:…"}}``, by version.

Plain Python, tested alone. Versions are compared as numbers: 1.10.0 is newer than 1.9.1, and 1.10.0-rc.1 is older than
1.10.0. A Debian package's revision counts too (1.1-2 is newer than 1.1-1).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

FORM = re.compile(r"(\d+(?:\.\d+)*)(?:-(\d+))?(?:[-.]?(alpha|beta|dev|pre|rc|a|b|c)[-.]?(\d*))?", re.ASCII)


@dataclass(frozen=True, order=True)
class Version:
    """A version, so that a newer one is greater."""

    numbers: tuple[int, ...]
    revision: int
    released: bool  # False for a pre-release
    stage: str  # of a pre-release, such as rc
    stage_number: int


def parsed(version: str) -> Version:
    """Return a version that can be compared. Raises ValueError with one sentence for what is none."""
    found = FORM.fullmatch(str(version))
    if not found:
        raise ValueError(f"{version} is not a version, such as 1.10.0; correct it in the checksum table.")
    numbers = tuple(map(int, found[1].split(".")))
    return Version(numbers, int(found[2] or 0), not found[3], found[3] or "", int(found[4] or 0))


def newest_first(versions: Iterable[str]) -> list[str]:
    """Return the versions without pre-releases, newest first. Raises ValueError for what is not a version."""
    return sorted((one for one in versions if parsed(one).released), key=parsed, reverse=True)


def newest(versions: Iterable[str]) -> str:
    """Return the newest version that is not a pre-release. Raises ValueError with one sentence if there is none."""
    versions = list(versions)
    found = newest_first(versions)
    if not found:
        known = ", ".join(map(str, versions)) or "none"
        raise ValueError(f"The checksum table has no release (known: {known}); add one, or set the role's version.")
    return found[0]
