"""Install distribution packages in the wanted versions, and remove them together with the role.

dpkg is asked first, so the network is not used if everything is installed. The packages that a role installed and
those that it wants are recorded, so that its removal removes exactly what no other role needs. Plain Python on top of
dpkg and apt.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from .. import atomic_file
from ..errors import UserError
from . import apt

NOTES = Path("/var/lib/llm-server/packages")
NEVER_REMOVED = {"ca-certificates"}  # by now, everything that uses TLS on this host needs it


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
    """The differences: packages to install, packages that conflict, holds to set and to release."""

    install: list[Wanted]
    remove: list[str]
    hold: list[str]
    unhold: list[str]

    def __bool__(self) -> bool:
        return bool(self.install or self.remove or self.hold or self.unhold)


def is_version(wanted: str, full: str) -> bool:
    """Return whether the package version ``full`` (``epoch:upstream-revision``) is the full or partial ``wanted``.

    Source: deb-version(7). ``3.3.9`` is ``1:3.3.9`` and ``1:3.3.9-1``, never ``3.3.90``.
    """
    without_epoch = full.partition(":")[2] or full
    return wanted in ("", full, without_epoch, without_epoch.rpartition("-")[0] or without_epoch)


def parse_dpkg(text: str) -> dict[str, Installed]:
    """Parse lines of ``name<TAB>version<TAB>status``; return the completely installed packages."""
    found = {}
    for line in text.splitlines():
        name, version, status = line.split("\t")
        selection, _, state = status.split(" ")
        if state == "installed":
            found[name] = Installed(version, selection == "hold")
    return found


def parse_madison(text: str) -> list[str]:
    """Parse the output of ``apt-cache madison`` for one package; return its versions, newest first."""
    return list(dict.fromkeys(line.split("|")[1].strip() for line in text.splitlines() if line.count("|") == 2))


def parse_simulation(text: str) -> tuple[list[str], list[str]]:
    """Parse ``apt-get --simulate``; return the packages it would install and those it would remove."""
    words = [line.split() for line in text.splitlines() if line.startswith(("Inst ", "Remv ", "Purg "))]
    return [word[1] for word in words if word[0] == "Inst"], [word[1] for word in words if word[0] != "Inst"]


def plan(wanted: list[Wanted], instead_of: list[str], installed: dict[str, Installed]) -> Plan:
    """Return the changes to make; ``instead_of`` are patterns of names of packages that must be removed."""
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
    """Return the installed packages whose names match one of ``patterns``, to hold them at their versions."""
    names = sorted(name for name in installed if any(fnmatch(name, pattern) for pattern in patterns))
    return [Wanted(name, hold=True) for name in names]


class Packages:
    """The packages that one role installs on this machine."""

    def __init__(self, name: str, lock_timeout: int):
        self.note_path = NOTES / f"{name}.json"
        self.lock_timeout = lock_timeout

    def installed(self) -> dict[str, Installed]:
        out = self._run("dpkg-query", "--show", "--showformat", "${Package}\t${Version}\t${Status}\n")
        return parse_dpkg(out)

    def came(self) -> list[str]:
        """Return the packages that were not installed before this role."""
        return _read(self.note_path)["came"]

    def noted(self, wanted: list[Wanted]) -> bool:
        """Return whether the record says that the role wants exactly these."""
        return self.note_path.exists() and _read(self.note_path)["wanted"] == sorted(each.name for each in wanted)

    def others(self) -> dict[Path, set[str]]:
        """Return the packages that each other role wants or installed, by its record."""
        notes = {path: _read(path) for path in NOTES.glob("*.json") if path != self.note_path}
        return {path: {*note["wanted"], *note["came"]} for path, note in notes.items()}

    def apply(self, wanted: list[Wanted], instead_of: list[str]) -> None:
        """Install what is wanted: all packages in one apt transaction, then set the holds, which it releases."""
        before, own = self.installed(), {each.name for each in wanted}
        steps = plan(wanted, instead_of, before)
        if steps.install or steps.remove:
            self._run("apt-get", "--quiet", "update")
            words = [self._argument(each) for each in steps.install] + [f"{name}-" for name in steps.remove]
            # Downgrades are allowed, and changes to packages that this role itself holds.
            options = ["--yes", "--no-install-recommends", "--allow-downgrades", "--allow-change-held-packages"]
            options += ["-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"]
            brings, takes = parse_simulation(self._run("apt-get", "--simulate", *options, "install", *words))
            foreign = [name for name in takes if not any(fnmatch(name, pattern) for pattern in instead_of)]
            if foreign:
                raise UserError(f"installing {' '.join(words)} would remove {', '.join(foreign)}; remove it by hand")
            # Holds of others, such as those of the driver, are kept.
            held = [name for name in brings if name in before and before[name].held and name not in own]
            if held:
                raise UserError(
                    f"installing {' '.join(words)} would change {', '.join(held)}, which is held; release it first"
                )
            self._note({*self.came(), *(name for name in brings if name not in before)}, wanted)
            try:
                self._run("apt-get", "--quiet", *options, "install", *words)
            except UserError:
                self._restore_holds(before, own)  # apt releases the holds before it knows whether it can install
                raise
        self._note(set(self.came()), wanted)
        steps = plan(wanted, instead_of, self.installed())
        if steps.unhold:
            self._run("apt-mark", "unhold", *steps.unhold)
        if steps.hold:
            self._run("apt-mark", "hold", *steps.hold)

    def _restore_holds(self, before: dict[str, Installed], names: set[str]) -> None:
        """Hold those of ``names`` again that were held before."""
        lost = [name for name, each in self.installed().items() if name in names and not each.held]
        lost = [name for name in lost if name in before and before[name].held]
        if lost:
            self._run("apt-mark", "hold", *lost)

    def removable(self, wanted: list[Wanted]) -> tuple[list[str], list[str]]:
        """Return the packages to remove together with the role, and the holds to release."""
        installed = self.installed()
        needed = NEVER_REMOVED.union(*self.others().values())
        names = [name for name in self.came() if name in installed and name not in needed]
        held = [each.name for each in wanted if each.hold and each.name in installed and installed[each.name].held]
        return names, held if self.note_path.exists() else []

    def remove(self, names: list[str], held: list[str]) -> list[str]:
        """Remove ``names`` and release ``held``; return the packages that stay because others need them now."""
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
        """Return whether apt would remove more than ``names`` together with ``go``."""
        if not go:
            return False
        _, takes = parse_simulation(self._run("apt-get", "--simulate", "--yes", "purge", *go))
        return bool(set(takes) - set(names))

    def _hand_over(self) -> None:
        """Record this role's packages as those of a role that still wants them, so that the last one removes them."""
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
            raise UserError(f"no apt repository of this host has {each.name}; register the one that does first")
        if full is None:
            raise UserError(
                f"{each.name} {each.version} is in no apt repository of this host (known: {', '.join(known)})"
            )
        return f"{each.name}={full}"

    def _note(self, came: set[str], wanted: list[Wanted]) -> None:
        _write(self.note_path, {"came": sorted(came), "wanted": sorted(each.name for each in wanted)})

    def _run(self, *argv: str) -> str:
        return apt.run(list(argv), self.lock_timeout)


def _read(note: Path) -> dict[str, list[str]]:
    """Return a role's record; one from an earlier version does not say what is wanted."""
    try:
        return {"came": [], "wanted": [], **json.loads(note.read_text())}
    except FileNotFoundError:
        return {"came": [], "wanted": []}


def _write(note: Path, text: dict[str, list[str]]) -> None:
    if not note.exists() or json.loads(note.read_text()) != text:
        atomic_file.write(note, json.dumps(text), directory_mode=0o700)
