"""Packages of the distribution in the versions that are wanted, and gone again when the role goes.

dpkg is asked first, so a host that has everything asks nothing of the network. What came with a role and what it wants
are noted, so that its removal takes exactly that away which no other role needs. Plain Python on top of dpkg and apt.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

NOTES = Path("/var/lib/llm-server/packages")
LOCKED = re.compile(r"Could not get lock|Unable to lock|is another process using it|was locked by another process")
NEVER_REMOVED = {"ca-certificates"}  # whatever speaks TLS on this host has come to need it
INTERRUPTED = "dpkg was interrupted"
DPKG_FAILURE = re.compile(r"^dpkg: error processing (?:archive|package) (\S+) .*:\s*\n\s*(.+)", re.MULTILINE)
RETRY_AFTER = 5.0


class PackageError(RuntimeError):
    """The packages cannot be had; the text is one sentence that names the cause and the cure."""


@dataclass(frozen=True)
class Wanted:
    """One package; an empty version means any, `hold` keeps apt from changing it."""

    name: str
    version: str = ""
    hold: bool = False


@dataclass(frozen=True)
class Installed:
    version: str
    held: bool


@dataclass(frozen=True)
class Plan:
    """What differs: packages to install, packages in their way, holds to set and to release."""

    install: list[Wanted]
    remove: list[str]
    hold: list[str]
    unhold: list[str]

    def __bool__(self) -> bool:
        return bool(self.install or self.remove or self.hold or self.unhold)


def is_version(wanted: str, full: str) -> bool:
    """Tell whether the package version ``full`` (``epoch:upstream-revision``) is ``wanted``, written whole or in part.

    Source: deb-version(7). ``3.3.9`` is ``1:3.3.9`` and ``1:3.3.9-1``, never ``3.3.90``.
    """
    without_epoch = full.partition(":")[2] or full
    return wanted in ("", full, without_epoch, without_epoch.rpartition("-")[0] or without_epoch)


def parse_dpkg(text: str) -> dict[str, Installed]:
    """Read lines of ``name<TAB>version<TAB>status``; return what is wholly installed."""
    found = {}
    for line in text.splitlines():
        name, version, status = line.split("\t")
        selection, _, state = status.split(" ")
        if state == "installed":
            found[name] = Installed(version, selection == "hold")
    return found


def parse_madison(text: str) -> list[str]:
    """Read the output of ``apt-cache madison`` for one package; return its versions, newest first."""
    return list(dict.fromkeys(line.split("|")[1].strip() for line in text.splitlines() if line.count("|") == 2))


def parse_simulation(text: str) -> tuple[list[str], list[str]]:
    """Read ``apt-get --simulate``; return the packages it would install and those it would remove."""
    words = [line.split() for line in text.splitlines() if line.startswith(("Inst ", "Remv ", "Purg "))]
    return [word[1] for word in words if word[0] == "Inst"], [word[1] for word in words if word[0] != "Inst"]


def dpkg_failure(text: str) -> str:
    """Return what dpkg says of the first package that it could not install; empty where it says nothing.

    apt passes it on by its standard output, and adds no more than that dpkg failed. Source: dpkg's src/main/errors.c,
    print_error_perpackage.
    """
    found = DPKG_FAILURE.search(text)
    return f"{Path(found[1]).name}: {found[2].strip()}" if found else ""


def plan(wanted: list[Wanted], instead_of: list[str], installed: dict[str, Installed]) -> Plan:
    """Return what is to be done; ``instead_of`` are patterns of package names that must not stay beside them."""
    held = {name for name, each in installed.items() if each.held}
    return Plan(
        install=[
            each
            for each in wanted
            if each.name not in installed or not is_version(each.version, installed[each.name].version)
        ],
        remove=sorted(name for name in installed if any(fnmatch(name, pattern) for pattern in instead_of)),
        hold=[each.name for each in wanted if each.hold and each.name not in held],
        unhold=[each.name for each in wanted if not each.hold and each.name in held],
    )


def matching(patterns: list[str], installed: dict[str, Installed]) -> list[Wanted]:
    """Return the installed packages whose names match one of ``patterns``, to be held as they are."""
    names = sorted(name for name in installed if any(fnmatch(name, pattern) for pattern in patterns))
    return [Wanted(name, hold=True) for name in names]


class Packages:
    """The packages that one role brings to this machine."""

    def __init__(self, name: str, lock_timeout: int):
        self.note_path = NOTES / f"{name}.json"
        self.lock_timeout = lock_timeout

    def installed(self) -> dict[str, Installed]:
        out = self._run("dpkg-query", "--show", "--showformat", "${Package}\t${Version}\t${Status}\n")
        return parse_dpkg(out)

    def came(self) -> list[str]:
        """Return the packages that were not there before this role."""
        return _read(self.note_path)["came"]

    def noted(self, wanted: list[Wanted]) -> bool:
        """Whether the note says that the role wants exactly these."""
        return self.note_path.exists() and _read(self.note_path)["wanted"] == sorted(each.name for each in wanted)

    def others(self) -> dict[Path, set[str]]:
        """Return what each other role's note says that it wants or brought."""
        notes = {path: _read(path) for path in NOTES.glob("*.json") if path != self.note_path}
        return {path: {*note["wanted"], *note["came"]} for path, note in notes.items()}

    def apply(self, wanted: list[Wanted], instead_of: list[str]) -> None:
        """Bring what is wanted: all packages in one transaction of apt, then the holds, which that one releases."""
        before, own = self.installed(), {each.name for each in wanted}
        steps = plan(wanted, instead_of, before)
        if steps.install or steps.remove:
            self._run("apt-get", "--quiet", "update")
            words = [self._argument(each) for each in steps.install] + [f"{name}-" for name in steps.remove]
            # Allowed: going back to an older version, and changing what this role itself holds.
            options = ["--yes", "--no-install-recommends", "--allow-downgrades", "--allow-change-held-packages"]
            options += ["-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"]
            brings, takes = parse_simulation(self._run("apt-get", "--simulate", *options, "install", *words))
            foreign = [name for name in takes if not any(fnmatch(name, pattern) for pattern in instead_of)]
            if foreign:
                raise PackageError(f"installing {' '.join(words)} would remove {', '.join(foreign)}; remove it by hand")
            # The holds of others, such as those of the driver, stand.
            held = [name for name in brings if name in before and before[name].held and name not in own]
            if held:
                raise PackageError(
                    f"installing {' '.join(words)} would change {', '.join(held)}, which is held; release it first"
                )
            self._note({*self.came(), *(name for name in brings if name not in before)}, wanted)
            try:
                self._run("apt-get", "--quiet", *options, "install", *words)
            except PackageError:
                self._hold_again(before, own)  # apt releases the holds before it knows that it can install
                raise
        self._note(set(self.came()), wanted)
        steps = plan(wanted, instead_of, self.installed())
        if steps.unhold:
            self._run("apt-mark", "unhold", *steps.unhold)
        if steps.hold:
            self._run("apt-mark", "hold", *steps.hold)

    def _hold_again(self, before: dict[str, Installed], names: set[str]) -> None:
        """Hold those of ``names`` that were held before and are no more."""
        lost = [name for name, each in self.installed().items() if name in names and not each.held]
        lost = [name for name in lost if name in before and before[name].held]
        if lost:
            self._run("apt-mark", "hold", *lost)

    def removable(self, wanted: list[Wanted]) -> tuple[list[str], list[str]]:
        """Return the packages that leave with the role and the holds that end with it."""
        installed = self.installed()
        needed = NEVER_REMOVED.union(*self.others().values())
        names = [name for name in self.came() if name in installed and name not in needed]
        held = [each.name for each in wanted if each.hold and each.name in installed and installed[each.name].held]
        return names, held if self.note_path.exists() else []

    def remove(self, names: list[str], held: list[str]) -> list[str]:
        """Take ``names`` away and release ``held``; return those that stay because others have come to need them."""
        if held:
            self._run("apt-mark", "unhold", *held)
        go = names
        if self._needed(go, names):
            go = [name for name in names if not self._needed([name], names)]
            go = [] if self._needed(go, names) else go
        stay = [name for name in names if name not in go]
        if stay:
            self._run("apt-mark", "auto", *stay)
        if go:
            self._run("apt-get", "--quiet", "--yes", "purge", *go)
        self._hand_over()
        self.note_path.unlink(missing_ok=True)
        for folder in (NOTES, NOTES.parent):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        return stay

    def _needed(self, go: list[str], names: list[str]) -> bool:
        """Whether apt would take more than ``names`` along with ``go``."""
        if not go:
            return False
        _, takes = parse_simulation(self._run("apt-get", "--simulate", "--yes", "purge", *go))
        return bool(set(takes) - set(names))

    def _hand_over(self) -> None:
        """Note what came with this role as come with the role that still wants it, so that the last one takes it."""
        came = set(self.came())
        for path in self.others():
            note = _read(path)
            theirs = came & set(note["wanted"])
            if theirs:
                _write(path, {**note, "came": sorted({*note["came"], *theirs})})
            came -= theirs

    def _argument(self, each: Wanted) -> str:
        if not each.version:
            return each.name
        known = parse_madison(self._run("apt-cache", "madison", each.name))
        full = next((version for version in known if is_version(each.version, version)), None)
        if full is None and not known:
            raise PackageError(f"no apt repository of this host has {each.name}; register the one that does first")
        if full is None:
            raise PackageError(
                f"{each.name} {each.version} is in no apt repository of this host (known: {', '.join(known)})"
            )
        return f"{each.name}={full}"

    def _note(self, came: set[str], wanted: list[Wanted]) -> None:
        self.note_path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(self.note_path, {"came": sorted(came), "wanted": sorted(each.name for each in wanted)})

    def _run(self, *argv: str) -> str:
        """Run a command of the package system, and wait while another run of it holds the lock."""
        environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        end, resumed = time.monotonic() + self.lock_timeout, False
        while True:
            done = subprocess.run(argv, capture_output=True, text=True, errors="replace", env=environment, check=False)
            if not done.returncode:
                return done.stdout
            if INTERRUPTED in done.stderr and not resumed:
                # The machine went down inside a transaction; apt refuses everything until that one is ended.
                resumed = True
                self._run("dpkg", "--force-confdef", "--force-confold", "--configure", "--pending")
                continue
            if not LOCKED.search(done.stderr):
                break
            if time.monotonic() >= end:
                raise PackageError(
                    f"another run of apt holds its lock for more than {self.lock_timeout} s; wait for its end"
                )
            time.sleep(RETRY_AFTER)
        said = [line for line in done.stderr.splitlines() if line.startswith("E:")] or done.stderr.splitlines()
        reason = dpkg_failure(done.stdout) or " ".join(said[-2:]) or f"exit code {done.returncode}"
        raise PackageError(f"{argv[0]}: {reason}")


def _read(note: Path) -> dict[str, list[str]]:
    """Return a role's note; one of an earlier version does not say what is wanted."""
    try:
        return {"came": [], "wanted": [], **json.loads(note.read_text())}
    except FileNotFoundError:
        return {"came": [], "wanted": []}


def _write(note: Path, text: dict[str, list[str]]) -> None:
    if note.exists() and json.loads(note.read_text()) == text:
        return
    beside = note.with_suffix(".new")
    beside.write_text(json.dumps(text))
    beside.replace(note)
