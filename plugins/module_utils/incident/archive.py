"""Writes the evidence of a host into one archive on the controller, which only its owner can read."""

from __future__ import annotations

import io
import re
import tarfile
import time
from pathlib import Path

from .. import atomic_file
from ..redaction import Redaction


def write(directory: Path, host: str, files: dict[str, str], secrets: list[str], now: float | None = None) -> Path:
    """Write ``files`` (name to text) without ``secrets`` to a new archive below ``directory``; return its path."""
    redaction, moment = Redaction(secrets), time.time() if now is None else now
    stem = f"{re.sub(r'[^A-Za-z0-9_.-]', '_', host)}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime(moment))}"
    path = directory / f"{stem}.tar.gz"
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in sorted(files.items()):
            content = redaction(text).encode("utf-8", "replace")
            entry = tarfile.TarInfo(f"{stem}/{name}")
            entry.size, entry.mtime, entry.mode = len(content), int(moment), 0o600
            archive.addfile(entry, io.BytesIO(content))
    atomic_file.write(path, packed.getvalue(), 0o600, directory_mode=0o700)
    return path
