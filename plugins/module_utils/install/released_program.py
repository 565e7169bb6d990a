"""Install a released program from an archive: verified, unpacked next to the target, moved into place in one step.

Plain Python; the download itself is passed in, so everything here can be tested without a network.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
from pathlib import Path

from ..errors import UserError

MARKER = ".release.json"


# Python versions that know filters warn if none is given.
_SAFE = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def installed_checksum(directory: Path) -> str | None:
    """Return the checksum of the archive that ``directory`` was made from, or None if it is not complete.

    It is complete if it has its marker, and the program in the size that the marker records. Older markers record none.
    """
    try:
        marker = json.loads((directory / MARKER).read_text())
        if "member" in marker and (directory / marker["member"]).stat().st_size != marker["size"]:
            return None
        return marker["checksum"]
    except (OSError, ValueError, KeyError):
        return None


def place(home: Path, version: str, checksum: str) -> Path:
    """Return the directory below ``home`` for ``version`` from the archive with ``checksum``.

    Its name is the version. If another archive of that version already has this name, a service may run from it. Then
    the name contains the checksum too, and this does not change later.
    """
    plain, beside = home / version, home / f"{version}-{checksum.removeprefix('sha256:')[:12]}"
    there = installed_checksum(plain)
    if there != checksum and (there or installed_checksum(beside) == checksum):
        return beside
    return plain


def sha256(path: Path) -> str:
    """Return ``sha256:<hex>`` of a file."""
    with path.open("rb") as handle:
        total = hashlib.sha256()
        while block := handle.read(1 << 20):
            total.update(block)
    return f"sha256:{total.hexdigest()}"


def verify(archive: Path, checksum: str) -> None:
    """Raise UserError if ``archive`` has another checksum than ``checksum``, which is ``sha256:<hex>``."""
    found = sha256(archive)
    if found != checksum:
        raise UserError(f"the archive has {found}, expected {checksum}; do not use it before you know why")


def unpack(archive: Path, directory: Path) -> None:
    """Unpack a .tar.gz or .zip into ``directory``; a single top folder is removed.

    Raises UserError for an archive that is damaged or has paths outside the directory.
    """
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as packed:
                for entry in packed.infolist():
                    _inside(directory, entry.filename)
                packed.extractall(directory)
        else:
            with tarfile.open(archive) as packed:
                for member in packed.getmembers():
                    _inside(directory, member.name)
                    if member.issym() or member.islnk():
                        _inside(directory, str(Path(member.name).parent / member.linkname))
                packed.extractall(directory, **_SAFE)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise UserError(f"the archive is damaged: {error}") from None
    entries = list(directory.iterdir())
    if len(entries) == 1 and entries[0].is_dir():
        for entry in list(entries[0].iterdir()):
            entry.rename(directory / entry.name)
        entries[0].rmdir()


def _inside(directory: Path, name: str) -> None:
    if not (directory / name).resolve().is_relative_to(directory.resolve()):
        raise UserError(f"the archive holds a path outside itself: {name}")


def install(archive: Path, checksum: str, member: str, directory: Path) -> None:
    """Make ``directory`` from ``archive``, complete or not at all.

    ``member`` is the program inside, relative to the archive without its top folder. If the archive has only one file,
    that file gets this name. If root installs it, everything belongs to root, readable and executable by all.
    """
    verify(archive, checksum)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as stage_name:
        stage = Path(stage_name) / "tree"
        stage.mkdir()
        unpack(archive, stage)
        program = stage / member
        files = [path for path in stage.iterdir() if path.is_file()]
        if not program.exists() and len(files) == 1 == len(list(stage.iterdir())):
            files[0].rename(program)
        if not program.is_file():
            raise UserError(f"the archive has no {member}")
        for path in [stage, *stage.rglob("*")]:
            if path.is_symlink():
                continue
            if os.geteuid() == 0:  # on a controller the user who runs the playbook keeps the program
                shutil.chown(path, "root", "root")
            executable = path.is_dir() or path == program or path.stat().st_mode & stat.S_IXUSR
            path.chmod(0o755 if executable else 0o644)
        marker = {"checksum": checksum, "member": member, "size": program.stat().st_size}
        (stage / MARKER).write_text(json.dumps(marker))
        # The old directory is removed only after the new one is in place: a service may be starting from it.
        old = Path(stage_name) / "old"
        if directory.exists():
            directory.rename(old)
        try:
            stage.rename(directory)
        except OSError:
            if old.exists():
                old.rename(directory)
            raise
