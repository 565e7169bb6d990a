"""Checksum tables of released programs: ``{version: {architecture: "sha256:…"}}``, by version.

Plain Python, tested alone. Versions are compared as numbers (1.10.3 is newer than 1.9.1), by the rules of PEP 440.
"""

from __future__ import annotations

from collections.abc import Iterable

from packaging.version import InvalidVersion, Version


def parsed(version: str) -> Version:
    """Return a version that can be compared. Raises ValueError with one sentence for what is none."""
    try:
        return Version(str(version))
    except InvalidVersion:
        raise ValueError(f"{version} is not a version, such as 1.10.3; correct it in the checksum table.") from None


def newest_first(versions: Iterable[str]) -> list[str]:
    """Return the versions without pre-releases, newest first. Raises ValueError for what is not a version."""
    return sorted((one for one in versions if not parsed(one).is_prerelease), key=parsed, reverse=True)


def newest(versions: Iterable[str]) -> str:
    """Return the newest version that is not a pre-release. Raises ValueError with one sentence if there is none."""
    versions = list(versions)
    found = newest_first(versions)
    if not found:
        known = ", ".join(map(str, versions)) or "none"
        raise ValueError(f"The checksum table has no release (known: {known}); add one, or set the role's version.")
    return found[0]
