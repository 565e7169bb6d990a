"""Change a swap file's size or path, or remove it, without a moment in which memory could run out.

A swap file in use cannot be renamed or resized, so a change of size uses a bridge: a second file takes the pages while
the first one is created again. Plain Python: the steps are planned from what was read, then done one by one, and the
next run completes an interrupted one. Sizes are in bytes unless a name says otherwise.
Sources: swapon(8), fstab(5), proc(5).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from .. import host_text
from ..errors import UserError
from . import sysctl

BRIDGE, PART = ".bridge", ".part"
SIGNATURE = b"SWAPSPACE2"
FILE_SYSTEMS = ("ext2", "ext3", "ext4", "xfs")  # blocks do not move, and holes can be avoided
DISK_RESERVE = 256 << 20
MEMORY_RESERVE = 0.05  # share of the machine's memory that stays available when swap is deactivated
# After 99-sysctl.conf, the link to /etc/sysctl.conf: the last file overrides at every boot.
SYSCTL, EARLIER_SYSCTL = "/etc/sysctl.d/99-zz-swap.conf", "/etc/sysctl.d/99-swap.conf"
FSTAB = "/etc/fstab"
SWAPPINESS = "vm.swappiness"
NOTE = "/var/lib/llm-server/swap.json"


@dataclass(frozen=True)
class Step:
    """One step: ``make`` (with a size), ``on``, ``off``, ``remove`` or ``protect`` (mode 0600)."""

    verb: str
    path: str
    size: int = 0

    def __str__(self) -> str:
        return f"{self.verb} {self.path}" + (f" {self.size >> 20} MiB" if self.size else "")


@dataclass(frozen=True)
class File:
    """One of our files: its size, and whether it has a swap signature, is in use, and is closed to other users."""

    size: int
    swap: bool = True
    active: bool = False
    protected: bool = True


@dataclass(frozen=True)
class Seen:
    """What was read from the host: memory, all swap in use, and files that could be ours, with their disks."""

    memory: int
    available: int
    active: dict[str, tuple[int, int]]  # path: (size, used)
    files: dict[str, File] = field(default_factory=dict)
    disk: dict[str, str] = field(default_factory=dict)  # path: mount point
    free: dict[str, int] = field(default_factory=dict)  # mount point: free space

    @property
    def room(self) -> int:
        """Memory that programs can still use: available memory and free swap."""
        # Swap in compressed memory would count available memory a second time.
        swaps = [sizes for path, sizes in self.active.items() if not path.startswith("/dev/zram")]
        return self.available + sum(size - used for size, used in swaps)


def plan(path: str, size: int, earlier: list[str], seen: Seen) -> list[Step]:
    """Return the steps to one active file of ``size`` at ``path``; ``earlier`` are the former paths of our file."""
    bridge, part = path + BRIDGE, path + PART
    steps = [Step("remove", part)] if part in seen.files else []
    mine = seen.files.get(path)
    others = [other for other in (bridge, *earlier) if other != path]
    if mine and mine.active and mine.size == size:
        steps += [] if mine.protected else [Step("protect", path)]
    elif mine and mine.active:
        if bridge not in seen.files or not seen.files[bridge].active:
            steps += [Step("make", bridge, min(mine.size, size)), Step("on", bridge, min(mine.size, size))]
        steps += [Step("off", path, mine.size), Step("remove", path), Step("make", path, size), Step("on", path, size)]
        steps += [Step("off", bridge, min(mine.size, size)), Step("remove", bridge)]
        others = [other for other in others if other != bridge]
    elif mine and mine.swap and mine.size == size:
        steps += [] if mine.protected else [Step("protect", path)]
        steps.append(Step("on", path, size))
    else:
        steps += [Step("make", path, size), Step("on", path, size)]
    return steps + [step for other in others for step in removal(other, seen)]


def removal(path: str, seen: Seen) -> list[Step]:
    """Return the steps that remove one of our files; a file that is not swap is someone's data and stays."""
    file = seen.files.get(path)
    if not file or not (file.swap or path.endswith((BRIDGE, PART))):
        return []
    return ([Step("off", path, file.size)] if file.active else []) + [Step("remove", path)]


def disk_problem(steps: list[Step], seen: Seen) -> str | None:
    """Return the sentence for the step that would fill a disk, None if all have room."""
    free = dict(seen.free)
    for step in steps:
        disk = seen.disk.get(step.path)
        if step.verb == "remove" and disk and step.path in seen.files:
            free[disk] += seen.files[step.path].size
        if step.verb != "make":
            continue
        free[disk] -= step.size
        if free[disk] < DISK_RESERVE:
            short = DISK_RESERVE - free[disk]
            return (
                f"swap_size_mib: {disk} has {seen.free[disk] >> 20} MiB free and lacks {_mib(short)} MiB for the "
                f"swap file with what must lie beside it during the change and {DISK_RESERVE >> 20} MiB that stay "
                "free; free that much or choose a smaller size"
            )
    return None


def memory_problem(steps: list[Step], seen: Seen) -> str | None:
    """Return the sentence for the step that would leave programs without memory, None if none would."""
    reserve = min(int(seen.memory * MEMORY_RESERVE), seen.room)
    room = seen.room
    for step in steps:
        room += {"on": step.size, "off": -step.size}.get(step.verb, 0)
        if step.verb == "off" and room < reserve:
            return (
                f"swap_size_mib: switching {step.path} off now would leave programs {max(room, 0) >> 20} MiB of "
                f"memory and swap, {_mib(reserve - room)} MiB less than is safe; stop a program that uses memory, or "
                "keep more swap"
            )
    return None


def swap_of_line(line: str) -> str | None:
    """Return the swap that a line of fstab names, None for any other line."""
    fields = _fields(line)
    return _named(fields[0]) if len(fields) >= 3 and fields[0][0] != "#" and fields[2] == "swap" else None


def fstab_with(text: str, ours: set[str], path: str | None) -> str:
    """Return fstab with one line for ``path``, none for the rest of ``ours``, and all other lines unchanged.

    An existing line for ``path`` keeps its options except ``noauto``, so that the file is used after a reboot too.
    """
    kept, written = [], not path
    for old in host_text.lines(text):
        swap = swap_of_line(old)
        if swap == path and not written:
            kept.append(_with_auto(old))
            written = True
        elif swap is None or swap not in {*ours, path}:
            kept.append(old)
    if not written:
        if kept and not kept[-1].endswith("\n"):
            kept[-1] += "\n"
        kept.append(f"{_escaped(path)} none swap sw 0 0\n")
    return "".join(kept)


def options_of(text: str, path: str) -> str:
    """Return the options that fstab gives the swap at ``path``, such as ``sw,pri=100``; empty without a line."""
    line = next((line for line in host_text.lines(text) if swap_of_line(line) == path), "")
    return (_fields(line)[3:4] or [""])[0]


def _with_auto(line: str) -> str:
    fields = _fields(line)
    options = fields[3].split(",") if len(fields) > 3 else []
    if "noauto" not in options:
        return line
    stay = ",".join(option for option in options if option != "noauto") or "sw"
    return re.sub(r"^([ \t]*(?:[^ \t]+[ \t]+){3})[^ \t\n]+", lambda match: match[1] + stay, line)


def _fields(line: str) -> list[str]:
    """Return the fields of a line of fstab; only blanks and tabs separate them."""
    return [field for field in re.split(r"[ \t\n]+", line) if field]


def _named(field: str) -> str:
    """Return what a first field names; there are several ways to write the same file."""
    plain = _plain(field)
    return os.path.normpath(f"/{plain.lstrip('/')}") if plain.startswith("/") else plain


def _mib(size: int) -> int:
    return -(-size >> 20)


def _escaped(path: str) -> str:
    return path.replace("\\", "\\134").replace(" ", "\\040").replace("\t", "\\011")


def _plain(text: str) -> str:
    """Return a name without octal escapes, which fstab and /proc use for blanks and other bytes."""
    raw = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8) & 255]), host_text.encoded(text))
    return raw.decode("utf-8", "surrogateescape")


class Host(host_text.Tree):
    """The machine, or in tests a directory tree like one; commands are run by ``run(argv)``."""

    def __init__(self, root: Path = Path("/"), run=None) -> None:
        super().__init__(root)
        self.run = run or _run

    def see(self, paths: list[str]) -> Seen:
        """Read memory, swap, and the files at ``paths`` with their bridge and partial files."""
        meminfo = dict(re.findall(r"^(\w+):\s+(\d+) kB$", self.read("/proc/meminfo"), re.MULTILINE))
        active = self.active()
        files, disk, free = {}, {}, {}
        for path in [name + end for name in paths for end in ("", BRIDGE, PART)]:
            parent = self.at(path).parent
            if not parent.is_dir():
                continue
            disk[path] = self.mount(path)[0]
            free[disk[path]] = shutil.disk_usage(parent).free
            if self.at(path).is_file() and not self.at(path).is_symlink():
                files[path] = self.file(path, path in active)
        return Seen(int(meminfo["MemTotal"]) << 10, int(meminfo["MemAvailable"]) << 10, active, files, disk, free)

    def file(self, path: str, active: bool) -> File:
        status = self.at(path).stat()
        with self.at(path).open("rb") as handle:
            page = handle.read(os.sysconf("SC_PAGE_SIZE"))
        protected = status.st_mode & 0o7777 == 0o600 and (status.st_uid == 0 or self.root != Path("/"))
        return File(status.st_size, page.endswith(SIGNATURE), active, protected)

    def active(self) -> dict[str, tuple[int, int]]:
        """Return all swap in use as ``{path: (size, used)}``."""
        found = {}
        for line in host_text.lines(self.read("/proc/swaps"))[1:]:
            name, _, size, used, _ = line.rsplit(maxsplit=4)
            found[_plain(name)] = (int(size) << 10, int(used) << 10)
        return found

    def mount(self, path: str) -> tuple[str, str]:
        """Return mount point and type of the file system of ``path``."""
        parent = self.at(path).parent.resolve().relative_to(self.root.resolve())
        inside = str(Path("/") / parent)
        best = ("", "")
        for line in host_text.lines(self.read("/proc/self/mountinfo")):
            fields, _, rest = line.partition(" - ")
            point = _plain(fields.split()[4])
            if len(point) >= len(best[0]) and (inside + "/").startswith(point.rstrip("/") + "/"):
                best = (point, rest.split()[0])
        return best

    def unit(self, path: str) -> str | None:
        """Return the name of one of the host's own units that activates ``path`` at boot, None if there is none."""
        units = self.at("/etc/systemd/system")
        for file in sorted(units.glob("*.swap")):
            what = re.search(r"^[ \t]*What[ \t]*=[ \t]*(.*?)[ \t\r]*$", host_text.read(file), re.MULTILINE)
            wanted = [*units.glob(f"*.wants/{file.name}"), *units.glob(f"*.requires/{file.name}")]
            if what and os.path.normpath(what[1]) == path and wanted:
                return file.name
        return None

    def path_problem(self, path: str) -> str | None:
        """Return the sentence that says why a swap file at ``path`` is not possible, None if it is."""
        place = self.at(path)
        if not path.startswith("/") or path.endswith("/") or os.path.normpath(path) != path:
            return f"swap_path: {path} is not a plain absolute path of a file; write one such as /swapfile"
        if not place.parent.is_dir():
            return f"swap_path: the directory {Path(path).parent} does not exist; make it or choose another path"
        kind = self.mount(path)[1]
        if kind not in FILE_SYSTEMS:
            known = ", ".join(FILE_SYSTEMS)
            return f"swap_path: {path} lies on {kind}, which cannot hold a swap file; choose a path on one of {known}"
        if place.is_symlink() or (place.exists() and not place.is_file()):
            return f"swap_path: {path} is not a regular file; move it away or choose another path"
        if place.exists() and not self.file(path, False).swap:
            return f"swap_path: {path} holds data that is not swap; move it away or choose another path"
        return None

    def do(self, step: Step) -> None:
        """Do one step. Raises UserError with the program's message."""
        place = self.at(step.path)
        if step.verb == "make":
            self.make(step)
        elif step.verb == "protect":
            os.chown(place, 0, 0)
            place.chmod(0o600)
        elif step.verb == "remove":
            place.unlink(missing_ok=True)
        elif step.verb == "on":
            options = options_of(self.read(FSTAB), step.path)
            given = ["-o", options] if options not in ("", "sw", "defaults") else []
            self.run(["swapon", *given, str(place)])
        else:
            problem = memory_problem([step], self.see([]))
            if problem:
                raise UserError(problem)
            self.run(["swapoff", str(place)])

    def make(self, step: Step) -> None:
        """Create a complete swap file under another name, then rename it, so that the final name is never partial."""
        part = self.at(step.path.removesuffix(BRIDGE) + PART)
        part.unlink(missing_ok=True)
        try:
            descriptor = os.open(part, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, step.size)
            finally:
                os.close(descriptor)
            self.run(["mkswap", str(part)])
            part.rename(self.at(step.path))
        except OSError as error:
            raise UserError(f"swap_path: {step.path} cannot be made: {error.strerror}") from None
        finally:
            part.unlink(missing_ok=True)

    @property
    def note(self) -> dict:
        """What is needed to go back: the paths where our file is or was (``paths``), and the earlier swappiness.

        ``adopted`` has the paths whose file existed before, each with whether fstab had its line.
        """
        return {"paths": [], "adopted": {}, **json.loads(self.read(NOTE) or "{}")}


@dataclass(frozen=True)
class Change:
    """The change to make: steps on files, texts of configuration files, and the value of vm.swappiness."""

    places: list[str]  # every current or former path of our file
    adopted: dict[str, bool]  # those that someone else created, and whether fstab had a line for them
    steps: list[Step]
    texts: dict[str, str]  # path: the full text, empty for no file; the record comes last
    differences: dict[str, tuple[str, str]]  # path: (before, after), if they differ
    swappiness: tuple[int, int]  # (before, after)

    @property
    def needed(self) -> bool:
        return bool(self.steps or self.differences or self.swappiness[0] != self.swappiness[1])


def change(host: Host, state: str, path: str, size: int, swappiness: int) -> Change:
    """Compare the host with what is wanted. Raises UserError with all reasons why it cannot be changed."""
    note, before, fstab = host.note, int(sysctl.value(host, SWAPPINESS)), host.read(FSTAB)
    # Only files in our record may be removed, and adopted ones never.
    earlier = [name for name in note["paths"] if name not in note["adopted"]]
    places = list(dict.fromkeys([path, *earlier])) if state == "present" else earlier
    lines = {name for name in note["paths"] if not note["adopted"].get(name)}
    # Written by an earlier version of this role, if the record shows that the role ran.
    texts = {EARLIER_SYSCTL: ""} if host.read(NOTE) else {}
    if state == "present":
        problems = [host.path_problem(path)]
        if size <= 0:
            problems.append("swap_size_mib: must be at least 1; use swap_state: absent for no swap")
        if not 0 <= swappiness <= 200:
            problems.append(f"swap_swappiness: {swappiness} is not in the kernel's range of 0 to 200")
        _refuse(problems)
        seen = host.see(places)
        steps = plan(path, size, earlier, seen)
        adopted = {name: line for name, line in note["adopted"].items() if name == path}
        if path in seen.files and path not in note["paths"]:
            adopted = {path: any(swap_of_line(line) == path for line in host_text.lines(fstab))}
        made = any(step.verb == "make" and step.path == path for step in steps)
        note = {"paths": [path], "swappiness": note.get("swappiness", before), "adopted": {} if made else adopted}
        texts[SYSCTL], after = sysctl.text({SWAPPINESS: swappiness}), swappiness
        lines.add(path)
    else:
        seen, adopted = host.see(places), note["adopted"]
        steps = [step for name in seen.files for step in removal(name, seen)]
        texts |= {SYSCTL: ""} if host.read(NOTE) else {}
        after = note.get("swappiness", before)
    ours = {name + end for name in lines for end in ("", BRIDGE)}
    texts[FSTAB] = fstab_with(fstab, ours, None if state == "absent" or _by_unit(host, fstab, path) else path)
    texts[NOTE] = json.dumps(note) + "\n" if state == "present" else ""
    _refuse([disk_problem(steps, seen), memory_problem(steps, seen)])
    differences = {name: (host.read(name), text) for name, text in texts.items() if host.read(name) != text}
    return Change(places, adopted, steps, texts, differences, (before, after))


def _by_unit(host: Host, fstab: str, path: str) -> bool:
    """Return whether a unit activates ``path`` at boot, so that fstab needs no line for it and has none."""
    return bool(host.unit(path)) and all(swap_of_line(line) != path for line in host_text.lines(fstab))


def _refuse(problems: list[str | None]) -> None:
    found = [problem for problem in problems if problem]
    if found:
        raise UserError("; ".join(found))


def carry_out(host: Host, wanted: Change) -> None:
    """Make the change. The record is written first, so that after an interruption the next run knows what is ours."""
    note = {"swappiness": wanted.swappiness[0], **host.note, "adopted": dict(wanted.adopted)}
    note["paths"] = list(dict.fromkeys([*wanted.places, *wanted.adopted]))
    if wanted.needed:
        host.write(NOTE, json.dumps(note) + "\n")
    for step in wanted.steps:
        host.do(step)
        if step.verb == "make" and note["adopted"].pop(step.path, None) is not None:
            host.write(NOTE, json.dumps(note) + "\n")
    if wanted.swappiness[0] != wanted.swappiness[1]:
        sysctl.put(host, SWAPPINESS, wanted.swappiness[1])
    for path, text in wanted.texts.items():
        if host.read(path) != text and path == FSTAB:
            host.write(path, text)  # an empty fstab is also a file
        elif host.read(path) != text:
            host.keep(path, text)


def _run(argv: list[str]) -> None:
    done = subprocess.run(
        argv,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
    )
    if done.returncode != 0:
        raise UserError(f"`{' '.join(argv)}` failed: {done.stderr.strip() or done.returncode}")
