"""What no release of a service refers to any more: found, told with its size, and removed.

A *release* is what `service_release` keeps: the one that runs, those to go back to, and the last that failed. What one
of them refers to stays, and so does what a process or another unit uses, what is younger than an age, and all of a
service that another run is changing now. Nothing is written, so a disk without a free byte can be cleaned.
Plain Python.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from . import service_release
from .service_release import BUILT, Refused, Service

A_DAY = 24 * 3600
PROC = Path("/proc")
# Where engines and their libraries keep what they compile, below a home directory. Source: vLLM 0.15.1 to 0.33.0
# (VLLM_CACHE_ROOT), TORCHINDUCTOR_CACHE_DIR of the role vllm, Triton, FlashInfer, and CUDA's cache of kernels.
COMPILED = (
    ".cache/vllm/torch_compile_cache", ".cache/torchinductor", ".cache/flashinfer", ".triton/cache", ".nv/ComputeCache",
)  # fmt: skip
# Beside programs and environments: what an installation that was killed had begun.
STAGE = re.compile(r"\..+-[a-z0-9_]{8}|\..+\.before")
ENVIRONMENT = re.compile(r"[0-9a-f]{12}")
ABSOLUTE = re.compile(rb"/[\w.@+/-]+")


@dataclass(frozen=True)
class Leftover:
    """Files and directories that go together; the first gives them their name."""

    paths: tuple[Path, ...]
    why: str
    size: int  # bytes on the disk

    def __str__(self) -> str:
        return f"{self.paths[0]}: {self.why}, {mib(self.size)} MiB"


def mib(size: int) -> int:
    return -(-size >> 20)


def services() -> list[Service]:
    """Return the services of this machine that have a release."""
    stores = [path for path in sorted(service_release.STORE.glob("*")) if any(path.glob("releases/*.json"))]
    return [Service(path.name) for path in stores]


class Cleaner:
    """Looks at the services of this machine as they are now; ``models`` says whether revisions of models may go too."""

    def __init__(self, age: float, models: bool):
        self.before, self.models = time.time() - age, models
        releases = sorted(service_release.STORE.glob("*/releases/*.json"))
        self.texts = [path.read_text(errors="replace") for path in releases]
        self.targets = {Path(link["target"]) for service in services() for link in _links(service)}
        self.used = used_places()
        self.units = [path.read_text(errors="replace") for path in _units()]

    def of(self, service: Service) -> tuple[list[Leftover], list[str]]:
        """Return what may go of a service, and a sentence for each that may not because it is used."""
        found = [
            *self._unreferenced(service),
            *self._unfinished(service),
            *self._compiled(service),
            *(self._revisions(service) if self.models else self._downloads(service)),
        ]
        free = [each for each in found if not self._user(each)]
        return free, [f"{each.paths[0]} stays: {self._user(each)}" for each in found if each not in free]

    def _user(self, leftover: Leftover) -> str:
        """Say what uses it, empty where nothing does."""
        for path in leftover.paths:
            if str(path) in self.used:
                return f"a process uses it (pid {self.used[str(path)]})"
            if any(f"{path}" in text for text in self.units):
                return "a unit of systemd names it"
        return ""

    def _unreferenced(self, service: Service) -> Iterator[Leftover]:
        """Programs and environments that were built for releases which are not kept, or refused."""
        for path in service.leftovers():
            yield from self._old((path,), "built for no release that is kept")

    def _unfinished(self, service: Service) -> Iterator[Leftover]:
        """What an installation or a download that was killed has left."""
        homes = {Path(link["target"]).parent for link in _links(service)}
        homes |= {path for path in _directories(service) if path.name in ("environments", "releases")}
        for path in sorted(child for home in homes if home.is_dir() for child in home.iterdir()):
            whole = any((path / marker).is_file() for marker in BUILT)
            begun = STAGE.fullmatch(path.name) or (
                ENVIRONMENT.fullmatch(path.name) and path.parent.name == "environments"
            )
            if begun and not whole and path not in self.targets and path.is_dir() and not path.is_symlink():
                yield from self._old((path,), "an installation that did not end")
        for folder in _directories(service):
            for path in sorted(folder.glob("models--*/blobs/*.incomplete")):
                yield from self._old((path,), "a download that did not end")

    def _downloads(self, service: Service) -> Iterator[Leftover]:
        """What the hub's client keeps of downloads besides their files."""
        for folder in _directories(service):
            if folder.name == "huggingface":
                for path in sorted((folder / "xet").glob("*")):
                    yield from self._old((path,), "a cache of downloads")

    def _compiled(self, service: Service) -> Iterator[Leftover]:
        """What was compiled and not read since the oldest kept release was written: its starts would have read it.

        The time of reading is kept to a day. Where the disk notes none, nothing can be told.
        """
        written = [path.stat().st_mtime for path in service.store.glob("releases/*.json")]
        since = min(written) - A_DAY
        for place in [folder / name for folder in _directories(service) for name in COMPILED]:
            if place.is_dir() and notes_reading(place):
                for path in sorted(place.iterdir()):
                    if _read(path) < since:
                        yield from self._old((path,), "compiled for no release that is kept")

    def _revisions(self, service: Service) -> Iterator[Leftover]:
        """Revisions of models, with those of their files that no other revision has."""
        yield from self._downloads(service)
        for repository in [path for folder in _directories(service) for path in sorted(folder.glob("models--*"))]:
            revisions = sorted(repository.glob("snapshots/*"))
            gone = [path for path in revisions if not any(str(path) in text for text in self.texts)]
            gone = [path for path in gone if _measured([path])[1] < self.before]
            held = {file.resolve() for path in revisions if path not in gone for file in path.rglob("*")}
            blobs = [path for path in sorted(repository.glob("blobs/*")) if path.suffix != ".incomplete"]
            orphans = [path for path in blobs if path.resolve() not in held]
            name = repository.name.removeprefix("models--")
            notes = [repository.parent / ".whole" / f"{name}@{path.name}" for path in gone]
            notes = [path for path in notes if path.exists()]
            told = ", ".join(path.name[:12] for path in gone) or "files of removed ones"
            why = f"no release refers to its revisions {told}"
            if gone and gone == revisions:
                yield from self._old((repository, *notes), why)
            elif gone or orphans:
                yield from self._old((*gone, *orphans, *notes), why)

    def _old(self, paths: tuple[Path, ...], why: str) -> Iterator[Leftover]:
        size, changed = _measured(list(paths))
        if changed < self.before:
            yield Leftover(paths, why, size)


def clean(age: float, models: bool, check_mode: bool) -> dict:
    """Remove what is left over; return ``removed``, ``remarks`` and the ``free`` MiB of each disk before and after."""
    removed: dict[Path, Leftover] = {}
    remarks, failures = [], []
    before = free_space()
    for service in services():
        try:
            with service.lock(0):
                # Looked at under its lock: what another run has just begun to use counts.
                found, used = Cleaner(age, models).of(service)
                remarks += used
                for leftover in found:
                    if leftover.paths[0] not in removed:
                        removed[leftover.paths[0]] = leftover
                        failures += [] if check_mode else remove(leftover)
        except Refused as refusal:
            remarks.append(str(refusal))
    after = free_space()
    return {
        "removed": list(removed.values()),
        "remarks": sorted(set(remarks)),
        "failures": failures,
        "free": {disk: [before[disk], after.get(disk, before[disk])] for disk in before},
    }


def remove(leftover: Leftover) -> list[str]:
    """Remove it; return what could not be."""
    failures = []
    for path in leftover.paths:
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            failures.append(f"{error.filename or path}: {error.strerror}")
    for folder in {path.parent for path in leftover.paths if path.parent.name in ("snapshots", "blobs")}:
        for empty in (folder, folder.parent):
            if empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()
    return failures


def free_space() -> dict[str, int]:
    """Return the free MiB of each disk that the services have something on, by its mount point."""
    places = {service_release.STORE, *(path for service in services() for path in _directories(service))}
    places |= {Path(link["target"]) for service in services() for link in _links(service)}
    points = {_mount_point(path) for path in places}
    return {str(point): shutil.disk_usage(point).free >> 20 for point in sorted(points)}


def used_places() -> dict[str, str]:
    """Return every path that a process has open, runs, or was started with, and those above it, each with a pid."""
    found: dict[str, str] = {}
    for process in PROC.iterdir():
        if not process.name.isdigit() or process.name == str(os.getpid()):
            continue
        for path in _paths_of(process):
            while path not in ("/", "") and path not in found:
                found[path] = process.name
                path = path.rpartition("/")[0]
    return found


def _paths_of(process: Path) -> set[str]:
    paths = {_link(process / name) for name in ("cwd", "exe")}
    with contextlib.suppress(OSError):  # gone meanwhile
        paths |= {_link(each) for each in (process / "fd").iterdir()}
    for name in ("maps", "cmdline", "environ"):
        try:
            words = ABSOLUTE.findall((process / name).read_bytes())
        except OSError:
            continue
        paths |= {os.path.normpath(word.decode("utf-8", "surrogateescape")) for word in words}
    return {path for path in paths if path.startswith("/")}


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


def _units() -> list[Path]:
    """Return the unit files of the host's own, those of kept releases with them."""
    return [path for path in sorted(service_release.UNITS.rglob("*")) if path.is_file()]


def _links(service: Service) -> list[dict]:
    return [link for path in service.store.glob("releases/*.json") for link in service.release(path.stem)["links"]]


def _directories(service: Service) -> list[Path]:
    """Return the directories that were made for a service: nothing of others lies there."""
    return [Path(entry["path"]) for entry in service.state()["created"]["directories"] if entry["declared"]]


def notes_reading(path: Path) -> bool:
    """Say whether the disk notes when a file was read."""
    return not os.statvfs(path).f_flag & os.ST_NOATIME


def _mount_point(path: Path) -> Path:
    path = next(place for place in (path, *path.parents) if place.exists()).resolve()
    return next(place for place in (path, *path.parents) if place.is_mount())


def _measured(paths: list[Path]) -> tuple[int, float]:
    """Return the bytes on the disk below ``paths``, and when something of them was last written."""
    sizes, changed = {}, 0.0
    for path in _tree(paths):
        try:
            seen = path.lstat()
        except OSError:
            continue
        sizes[seen.st_dev, seen.st_ino] = seen.st_blocks * 512
        changed = max(changed, seen.st_mtime)
    return sum(sizes.values()), changed


def _read(path: Path) -> float:
    """Return when a file below ``path`` was last read or written; looking at directories counts for nothing."""
    times = [0.0]
    for each in _tree([path]):
        if not each.is_dir():
            seen = each.lstat()
            times.append(max(seen.st_atime, seen.st_mtime))
    return max(times)


def _tree(paths: list[Path]) -> Iterator[Path]:
    for path in paths:
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from path.rglob("*")
