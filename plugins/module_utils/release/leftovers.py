"""Files that no release of a service refers to any more: find them, measure them, remove them.

The *releases* are those that `rollback` keeps: the current one, those to go back to, and the last failed one.
Files that one of them refers to stay. So do files that a process or another unit uses, files younger than an age, and
all files of a service that another run is changing now. Nothing is written, so this works on a full disk.
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

from . import rollback, store
from .description import Refused
from .rollback import BUILT
from .store import Service

A_DAY = 24 * 3600
PROC = Path("/proc")
# Where engines and their libraries keep compiled code, below a home directory. Source: vLLM 0.15.1 to 0.33.0
# (VLLM_CACHE_ROOT), TORCHINDUCTOR_CACHE_DIR of the role vllm, Triton, FlashInfer, and CUDA's cache of kernels.
COMPILED = (
    ".cache/vllm/torch_compile_cache", ".cache/torchinductor", ".cache/flashinfer", ".triton/cache", ".nv/ComputeCache",
)  # fmt: skip
# Next to programs and environments: what an installation had begun when it was killed.
STAGE = re.compile(r"\..+-[a-z0-9_]{8}|\..+\.before")
ENVIRONMENT = re.compile(r"[0-9a-f]{12}")
ABSOLUTE = re.compile(rb"/[\w.@+/-]+")


@dataclass(frozen=True)
class Leftover:
    """Files and directories that belong together; the first is the name of the leftover."""

    paths: tuple[Path, ...]
    why: str
    size: int  # bytes on the disk

    def __str__(self) -> str:
        return f"{self.paths[0]}: {self.why}, {mib(self.size)} MiB"


def mib(size: int) -> int:
    return -(-size >> 20)


def services() -> list[Service]:
    """Return the services of this machine that have a release."""
    stores = [path for path in sorted(store.STORE.glob("*")) if any(path.glob("releases/*.json"))]
    return [Service(path.name) for path in stores]


class Cleaner:
    """Reads the state of the machine's services now; ``models`` says whether revisions of models may be removed too."""

    def __init__(self, age: float, models: bool):
        self.before, self.models = time.time() - age, models
        releases = sorted(store.STORE.glob("*/releases/*.json"))
        self.texts = [path.read_text(errors="replace") for path in releases]
        self.targets = {Path(link["target"]) for service in services() for link in _links(service)}
        self.used = used_places()
        self.units = [path.read_text(errors="replace") for path in _units()]

    def of(self, service: Service) -> tuple[list[Leftover], list[str]]:
        """Return what may be removed of a service, and a sentence for each item that is still in use."""
        found = [
            *self._unreferenced(service),
            *self._unfinished(service),
            *self._compiled(service),
            *(self._revisions(service) if self.models else self._downloads(service)),
        ]
        free = [each for each in found if not self._user(each)]
        return free, [f"{each.paths[0]} stays: {self._user(each)}" for each in found if each not in free]

    def _user(self, leftover: Leftover) -> str:
        """Return what uses the leftover, empty if nothing does."""
        for path in leftover.paths:
            if str(path) in self.used:
                return f"a process uses it (pid {self.used[str(path)]})"
            if any(f"{path}" in text for text in self.units):
                return "a unit of systemd names it"
        return ""

    def _unreferenced(self, service: Service) -> Iterator[Leftover]:
        """Programs and environments that were built for releases that are not kept or were refused."""
        for path in rollback.unused_builds(service):
            yield from self._old((path,), "built for no release that is kept")

    def _unfinished(self, service: Service) -> Iterator[Leftover]:
        """Files of an installation or a download that was killed."""
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
        """Files that the hub's client keeps of downloads in addition to the downloaded files."""
        for folder in _directories(service):
            if folder.name == "huggingface":
                for path in sorted((folder / "xet").glob("*")):
                    yield from self._old((path,), "a cache of downloads")

    def _compiled(self, service: Service) -> Iterator[Leftover]:
        """Code that was compiled but not read since the oldest kept release was written; its starts would have read it.

        The access time is exact to a day. If the disk does not record it, nothing is returned.
        """
        written = [path.stat().st_mtime for path in service.store.glob("releases/*.json")]
        since = min(written) - A_DAY
        for place in [folder / name for folder in _directories(service) for name in COMPILED]:
            if place.is_dir() and notes_reading(place):
                for path in sorted(place.iterdir()):
                    if _read(path) < since:
                        yield from self._old((path,), "compiled for no release that is kept")

    def _revisions(self, service: Service) -> Iterator[Leftover]:
        """Revisions of models, with those of their files that no other revision uses."""
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
    """Remove the leftovers; return ``removed``, ``remarks`` and the ``free`` MiB of each disk before and after."""
    removed: dict[Path, Leftover] = {}
    remarks, failures = [], []
    before = free_space()
    for service in services():
        try:
            with service.lock(0):
                # Read under its lock, so that what another run has just begun to use counts.
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
    """Remove a leftover; return what could not be removed."""
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
    """Return the free MiB of each disk that the services use, by its mount point."""
    places = {store.STORE, *(path for service in services() for path in _directories(service))}
    places |= {Path(link["target"]) for service in services() for link in _links(service)}
    points = {_mount_point(path) for path in places}
    return {str(point): shutil.disk_usage(point).free >> 20 for point in sorted(points)}


def used_places() -> dict[str, str]:
    """Return every path that a process has open, runs, or was started with, and its parents, each with a pid."""
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
    with contextlib.suppress(OSError):  # the process has exited
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
    """Return the unit files of the host, including those of kept releases."""
    return [path for path in sorted(store.UNITS.rglob("*")) if path.is_file()]


def _links(service: Service) -> list[dict]:
    return [link for path in service.store.glob("releases/*.json") for link in service.release(path.stem)["links"]]


def _directories(service: Service) -> list[Path]:
    """Return the directories that were created for a service: they contain nothing of others."""
    return [Path(entry["path"]) for entry in service.state()["created"]["directories"] if entry["declared"]]


def notes_reading(path: Path) -> bool:
    """Return whether the disk records when a file was read."""
    return not os.statvfs(path).f_flag & os.ST_NOATIME


def _mount_point(path: Path) -> Path:
    path = next(place for place in (path, *path.parents) if place.exists()).resolve()
    return next(place for place in (path, *path.parents) if place.is_mount())


def _measured(paths: list[Path]) -> tuple[int, float]:
    """Return the bytes on the disk below ``paths``, and when something in them was last written."""
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
    """Return when a file below ``path`` was last read or written; access to directories does not count."""
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
