"""Write a file or a link in one step: a reader sees the old one or the complete new one, also after a power loss.

Plain Python.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path


def write(
    path: Path,
    content: str | bytes,
    mode: int | None = None,
    owner: str | int | None = None,
    group: str | int | None = None,
    directory_mode: int = 0o755,
) -> None:
    """Replace ``path`` by a file with ``content``; create its directory with ``directory_mode`` if it is missing.

    Without ``mode``, an existing file keeps its mode, its owner and its extended attributes, and a new one gets 0644;
    without ``owner`` and ``group`` a file with ``mode`` belongs to the current user. A text may be one that
    `host_text.read` returned. Raises OSError, and LookupError for an unknown owner or group; the old file stays then.
    """
    path.parent.mkdir(mode=directory_mode, parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    beside = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as handle:
            _own(beside, path, mode, owner, group)
            handle.write(content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape"))
            handle.flush()
            os.fsync(handle.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def link(path: Path, target: str | Path) -> None:
    """Make ``path`` a link to ``target`` in place of what was there; create its directory if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.unlink(missing_ok=True)
    beside.symlink_to(target)
    beside.replace(path)


def leads_to(path: Path) -> str | None:
    """Return the target of the link ``path``, or None if it is no link."""
    return str(path.readlink()) if path.is_symlink() else None


def _own(beside: Path, path: Path, mode: int | None, owner: str | int | None, group: str | int | None) -> None:
    """Give the new file its owner and its mode before it has any content."""
    if mode is None and path.exists():
        seen = path.stat()
        os.chown(beside, seen.st_uid, seen.st_gid)
        shutil.copystat(path, beside)
        os.utime(beside)
    if owner is not None or group is not None:
        shutil.chown(beside, owner, group)
    if mode is not None or not path.exists():
        beside.chmod(0o644 if mode is None else mode)
