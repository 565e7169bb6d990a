"""Writes the evidence of a host into one archive on the controller, which only its owner can read."""

from __future__ import annotations

import io
import os
import re
import tarfile
import time
from pathlib import Path

from ..redaction import Redaction


def write(directory: Path, host: str, files: dict[str, str], secrets: list[str], now: float | None = None) -> Path:
    """Write ``files`` (name to text) without ``secrets`` to a new archive below ``directory``; return its path."""
    redaction, moment = Redaction(secrets), time.time() if now is None else now
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    stem = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', host)}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(moment))}"
    path = directory / f"{stem}.tar.gz"
    beside = directory / f".{path.name}.new"
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as handle, tarfile.open(fileobj=handle, mode="w:gz") as archive:
        for name, text in sorted(files.items()):
            content = redaction(text).encode("utf-8", "replace")
            entry = tarfile.TarInfo(f"{stem}/{name}")
            entry.size, entry.mtime, entry.mode = len(content), int(moment), 0o600
            archive.addfile(entry, io.BytesIO(content))
    beside.chmod(0o600)
    beside.replace(path)
    return path
