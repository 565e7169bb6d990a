"""The Go toolchain of this machine, packed like the archive that Go publishes: its origin cannot be reached from here.

Tests and documentation are left out: a build does not need them, and the archive has a third of the size.
"""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path
from typing import Any

from lab import builds, host

ARCHITECTURE = "amd64"
PARTS = ("bin", "pkg/include", "pkg/tool", "src", "VERSION", "go.env")


def ensure() -> dict[str, Any]:
    """Pack the toolchain into the mirror unless it is there; return its version and checksums {architecture: sum}."""
    go = builds.go_command()
    values = host.run([go, "env", "GOVERSION", "GOROOT"]).split()
    version, root = values[0].removeprefix("go"), Path(values[1])
    archive = builds.MIRROR / "go.dev/dl" / f"go{version}.linux-{ARCHITECTURE}.tar.gz"
    with host.lock("go-toolchain"):
        if not archive.exists():
            host.ensure_room(archive.parent, 1, "packing Go")
            with host.step(f"Packing Go {version}", "10 s"):
                pack(root, archive)
    return {"version": version, "checksums": {ARCHITECTURE: f"sha256:{builds.sha256(archive)}"}}


def pack(root: Path, archive: Path) -> None:
    """Write the parts of a Go root that a build needs below the folder `go/`; the bytes are always the same."""
    builds.prepared(archive.parent)
    unfinished = archive.with_name(f"{archive.name}.part")
    with (
        unfinished.open("wb") as raw,
        gzip.GzipFile(fileobj=raw, mode="wb", compresslevel=1, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as tar,
    ):
        for part in PARTS:
            every = [root / part] if (root / part).is_file() else sorted((root / part).rglob("*"))
            for path in every:
                if needed(path, root):
                    tar.add(path, arcname=f"go/{path.relative_to(root)}", recursive=False, filter=anonymous)
    unfinished.rename(archive)


def needed(path: Path, root: Path) -> bool:
    """Return whether a build may read this file."""
    inside = path.relative_to(root)
    return path.is_file() and "testdata" not in inside.parts and not path.name.endswith("_test.go")


def anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = "root"
    return entry
