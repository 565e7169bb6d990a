"""Call the host's backup program, and replace data directories with the data it fetches.

Everything is fetched before a service stops: each data set is placed in a folder inside its target directory, so on the
same disk. Then the services stop for a few renames. The previous data stays in that folder until the services answer,
and is restored if they do not. The next run undoes one that was killed in between. If all of the new data was already
in place, it stays, since a service may have written to it. Plain Python.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from . import atomic_file
from .errors import UserError
from .release import serving, store, systemd_unit

PROGRAM = Path("/usr/local/sbin/llm-backup")
SETTINGS = Path("/etc/llm-backup/settings.json")
LOCK = Path("/var/lib/llm-backup/lock")  # held by the program during a backup
AREA = ".llm-restore"
BESIDE_DATABASE = ("-wal", "-shm", "-journal")  # of SQLite
RESERVE = 64 << 20  # bytes that stay free on each disk
SETTLED = 5  # s that a unit without a release must stay up
NONE = "no repository is configured on this host (backup_repository), so no backup was taken"


# -- the program ------------------------------------------------------------------------------------------------------


def configured() -> bool:
    """Return whether this host has a repository."""
    return PROGRAM.exists() and SETTINGS.exists()


def ask(*words: str) -> dict:
    """Return the answer of the host's backup program. Raises UserError with its message if it fails."""
    done = subprocess.run(
        [sys.executable, "-I", str(PROGRAM), *words], capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
        raise UserError(said[0].removeprefix("<3>"))
    try:
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except (ValueError, TypeError, IndexError):
        raise UserError(f"llm-backup {words[0]} gave no answer") from None


def mib(size: float) -> str:
    """Return a size as text."""
    return f"{size / (1 << 20):.1f} MiB"


def row(what: str, measured: str, ok: bool | None = True) -> dict:
    """Return a row of the checklist."""
    return {"what": what, "measured": measured, "ok": ok, "cure": ""}


def taken_rows(host: str, told: dict) -> list[dict]:
    """Return the result of a backup as rows."""
    return [
        row("host", host),
        row("snapshot", told["snapshot"]),
        row("files", f"{told['files']}, {mib(told['bytes'])}"),
        row("added", mib(told["added"])),
        row("seconds", f"{told['seconds']:.0f}"),
    ]


# -- a directory that is replaced -------------------------------------------------------------------------------------


class Place:
    """A directory whose contents are replaced by renames in two steps, which can be undone.

    The file ``phase`` records the progress: `moving` (old data moves aside), `placing` (new data moves in), `placed`
    (the new data of every place is there).
    """

    def __init__(self, path: Path):
        self.path, self.area = path, path / AREA
        names = ("new", "before", "phase", "failed")
        self.new, self.before, self.phase, self.failed = (self.area / name for name in names)

    def make_ready(self) -> None:
        """Undo the work of a killed run and create an empty work folder."""
        if self.reached() == "placed":
            self.clear()
        else:
            self.put_back()
        self.area.mkdir(mode=0o700)

    def reached(self) -> str:
        """Return how far a swap got; nothing if there is none to finish."""
        return self.phase.read_text() if self.phase.exists() else ""

    def mark(self, phase: str) -> None:
        """Record the phase in one step: an empty record would look as if the earlier data could be removed."""
        atomic_file.write(self.phase, phase)

    def swap(self) -> None:
        self.before.mkdir(mode=0o700)
        self.mark("moving")
        self._move(self.path, self.before)
        self.mark("placing")
        self._move(self.new, self.path)

    def put_back(self) -> None:
        """Undo the swap as far as it got; without a swap nothing changes."""
        phase = self.reached()
        if phase in ("placing", "placed"):
            self.failed.mkdir(exist_ok=True)
            self._move(self.path, self.failed)
            self.mark("moving")
        if phase:
            # A service that was started in between has created its own files, including its database's journal.
            made = [child.name for child in self.before.iterdir() if os.path.lexists(self.path / child.name)]
            for name in [name + end for name in made for end in ("", *BESIDE_DATABASE)]:
                self._set_aside(name)
            self._move(self.before, self.path)
        self.clear()

    def _set_aside(self, name: str) -> None:
        if not os.path.lexists(self.path / name):
            return
        self.failed.mkdir(exist_ok=True)
        free = next(free for n in itertools.count() if not os.path.lexists(free := self.failed / f"{name}.{n}"))
        (self.path / name).rename(free)

    def clear(self) -> None:
        """Remove the previous data and the work folder."""
        # The phase first: a later run acts on it.
        self.phase.unlink(missing_ok=True)
        if self.area.exists():
            shutil.rmtree(self.area)

    def _move(self, source: Path, target: Path) -> None:
        for child in list(source.iterdir()):
            if child != self.area:
                child.rename(target / child.name)


# -- a service that is stopped during a restore -----------------------------------------------------------------------


class Running:
    """A service of this project, or any other unit, that is stopped and must serve again."""

    def __init__(self, name: str):
        self.name = name
        self.service = store.Service(name)
        self.current = self.service.state()["current"]

    def there(self) -> bool:
        return bool(self.current) or systemd_unit.show(f"{self.name}.service").get("LoadState") == "loaded"

    def lock(self):
        return self.service.lock() if self.current else contextlib.nullcontext()

    def stop(self) -> None:
        systemd_unit.run("systemctl", "stop", f"{self.name}.service", timeout=300)

    def serve(self) -> str | None:
        """Start the service; return why it does not serve, or None."""
        if not self.current:
            systemd_unit.run("systemctl", "start", f"{self.name}.service", check=False, timeout=300)
            time.sleep(SETTLED)
            state = systemd_unit.show(f"{self.name}.service").get("ActiveState")
            return None if state == "active" else f"its unit is {state}"
        proof = self.service.proof_of(self.current)
        limit = proof["start_timeout"] or 60
        serving.start(self.service, proof["before_start"], regardless=True)
        seen = serving.poll(self.service, proof["probes"], limit, limit)
        return None if seen["ready"] else seen["why"]


@contextlib.contextmanager
def no_back_up():
    """Lock out backups: one taken during the swap would be incomplete, and the latest."""
    with LOCK.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError("a backup of this host is running; restore again when it has finished") from None
        yield


# -- a restore --------------------------------------------------------------------------------------------------------


def wanted(snapshot: dict, settings: dict) -> tuple[list[dict], list[dict]]:
    """Return the data sets of a snapshot that this host has a directory for, and rows about the others."""
    own, found, rows = {one["name"]: one for one in settings["data"]}, [], []
    for one in snapshot["sets"]:
        here = own.get(one["name"])
        if here is None:
            rows.append(row(one["name"], "not restored: this host has no such data", None))
        elif not Path(here["path"]).is_dir():
            if not here.get("optional"):
                raise UserError(f"{here['path']} does not exist on this host yet; run site.yml, then restore again")
            rows.append(row(one["name"], f"not restored: {here['path']} is not on this host", None))
        else:
            found.append({**one, "path": here["path"], "service": here["service"]})
    if not found:
        raise UserError(f"snapshot {snapshot['id'][:8]} of {snapshot['host']} contains no data for this host")
    return found, rows


def check_room(sets: list[dict], usage=shutil.disk_usage, device=lambda path: Path(path).stat().st_dev) -> None:
    """Raise UserError if a disk has no room for the new data next to the old."""
    needed: dict[int, int] = {}
    for one in sets:
        disk = device(one["path"])
        needed[disk] = needed.get(disk, RESERVE) + one["bytes"]
        free = usage(one["path"]).free
        if needed[disk] > free:
            raise UserError(
                f"the disk of {one['path']} needs {needed[disk] >> 20} MiB free, since the current data is kept until "
                f"the service answers, but has only {free >> 20} MiB; free space with playbooks/housekeeping.yml or "
                "use a larger disk"
            )


def check_services(names: list[str]) -> list[Running]:
    """Return the services to stop. Raises UserError if one is not on this host."""
    found = [Running(name) for name in dict.fromkeys(names) if name]
    absent = [one.name for one in found if not one.there()]
    if absent:
        raise UserError(
            f"these services are not on this host yet: {', '.join(absent)}; run site.yml, then restore again"
        )
    return found


def restore(snapshot: dict, settings: dict, only_look: bool = False) -> list[dict]:
    """Restore the data of a snapshot; return rows. On UserError everything is as it was before."""
    sets, rows = wanted(snapshot, settings)
    services = check_services([one["service"] for one in sets])
    files = sum(one["files"] for one in sets)
    about = f"{snapshot['id'][:8]} of {snapshot['host']}, taken {snapshot['at']}: {files} files, "
    rows = [row("snapshot", about + mib(sum(one["bytes"] for one in sets))), *rows]
    places = [Place(Path(one["path"])) for one in sets]
    if only_look:
        check_room(sets)
        return rows
    with ExitStack() as stack:
        stack.enter_context(no_back_up())
        for service in services:
            stack.enter_context(service.lock())
        try:
            # Leftovers of a killed run take up space.
            if any(place.reached() for place in places):
                resume(services, places)
            for place in places:
                place.make_ready()
            check_room(sets)
            for one, place in zip(sets, places, strict=True):
                told = ask("fetch", snapshot["id"], one["name"], str(place.area))
                rows.append(row(one["name"], f"{told['files']} files in {one['path']}"))
        except Exception:
            for place in places:
                place.put_back()
            raise
        return rows + replace(services, places)


def resume(services: list[Running], places: list[Place]) -> None:
    """Finish what a killed run has begun, while the services are stopped; they run afterwards."""
    if not any(place.reached() == "placed" for place in places):
        back(services, places)
        return
    for place in places:
        place.clear()
    for service in services:
        service.serve()


def replace(services: list[Running], places: list[Place]) -> list[dict]:
    """Swap the data while the services are stopped; put the old data back if one does not serve afterwards."""
    begin = time.monotonic()
    try:
        for service in services:
            service.stop()
        for place in places:
            place.swap()
        for place in places:
            place.mark("placed")
        failures = {service.name: service.serve() for service in services}
        failure = next(
            (f"{name} does not serve with the restored data: {why}" for name, why in failures.items() if why), None
        )
    except Exception as error:  # whatever the error is, the old data is restored
        failure = str(error) or type(error).__name__
    seconds = time.monotonic() - begin
    if failure:
        raise UserError(f"{failure}; {undone(services, places)}")
    for place in places:
        place.clear()
    return [row(service.name, f"serves again after at most {seconds:.1f} s") for service in services]


def undone(services: list[Running], places: list[Place]) -> str:
    """Put the previous data back; return the outcome as text, or where the data is if that is not possible now."""
    try:
        return back(services, places)
    except (OSError, systemd_unit.SystemdError) as error:
        where = ", ".join(str(place.before) for place in places if place.reached())
        return f"the previous data is not back ({error}): it is in {where}; run the restore again to put it back"


def back(services: list[Running], places: list[Place]) -> str:
    """Put the old data back and start the services; return the outcome as text."""
    for service in services:
        service.stop()
    for place in places:
        if place.reached() == "placed":  # otherwise a run killed here would leave a mix of old and new data
            place.mark("placing")
    for place in places:
        place.put_back()
    failures = {service.name: why for service in services if (why := service.serve())}
    told = "the previous data is back"
    if failures:
        failed = "; ".join(f"{name} does not serve with it either: {why}" for name, why in failures.items())
        return f"{told}, but {failed}"
    names = ", ".join(service.name for service in services)
    return f"{told} and in use by {names}" if services else told
