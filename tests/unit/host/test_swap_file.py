"""The swap file: the plan, the guards, and complete runs on a tree that imitates a machine."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from plugins.module_utils.errors import UserError
from plugins.module_utils.host import sysctl
from plugins.module_utils.host.swap_file import (
    DISK_RESERVE,
    SIGNATURE,
    File,
    Host,
    Seen,
    Step,
    carry_out,
    change,
    disk_problem,
    fstab_with,
    memory_problem,
    plan,
)
from plugins.module_utils.host_text import printable

MIB = 1 << 20
OLD_LINE = "/swapfile none swap sw 0 0\n"
OTHERS = "UUID=1 / ext4 defaults 0 1\n# /swapfile none swap sw 0 0\n/dev/sda2 none swap sw 0 0"


def seen(files=(), active=(), available=1000, free=10000) -> Seen:
    """Return a host's state with sizes in MiB: ``files`` {path: File}, ``active`` {path: (size, used)}."""
    active = {path: (size * MIB, used * MIB) for path, (size, used) in dict(active).items()}
    disk = {name: "/" for name in ("/swapfile", "/swapfile.bridge", "/swapfile.part", "/old")}
    return Seen(1000 * MIB, available * MIB, active, dict(files), disk, {"/": free * MIB})


def as_text(steps: list[Step]) -> list[str]:
    return [str(step) for step in steps]


def used(size: int) -> dict[str, File]:
    return {"/swapfile": File(size * MIB, active=True)}


@pytest.mark.parametrize(
    ("files", "earlier", "expected"),
    [
        ({}, [], ["make /swapfile 100 MiB", "on /swapfile 100 MiB"]),
        (used(100), [], []),
        ({"/swapfile": File(100 * MIB)}, [], ["on /swapfile 100 MiB"]),
        ({"/swapfile": File(50 * MIB)}, [], ["make /swapfile 100 MiB", "on /swapfile 100 MiB"]),
        ({"/swapfile": File(100 * MIB, active=True, protected=False)}, [], ["protect /swapfile"]),
        (
            used(50),
            [],
            [
                "make /swapfile.bridge 50 MiB",
                "on /swapfile.bridge 50 MiB",
                "off /swapfile 50 MiB",
                "remove /swapfile",
                "make /swapfile 100 MiB",
                "on /swapfile 100 MiB",
                "off /swapfile.bridge 50 MiB",
                "remove /swapfile.bridge",
            ],
        ),
        # Interrupted with only the bridge in use: the file is made, and only then the bridge is removed.
        (
            {"/swapfile.bridge": File(50 * MIB, active=True), "/swapfile.part": File(3, swap=False)},
            [],
            [
                "remove /swapfile.part",
                "make /swapfile 100 MiB",
                "on /swapfile 100 MiB",
                "off /swapfile.bridge 50 MiB",
                "remove /swapfile.bridge",
            ],
        ),
        # A new path: the old file is the bridge.
        (
            {"/old": File(70 * MIB, active=True)},
            ["/old"],
            ["make /swapfile 100 MiB", "on /swapfile 100 MiB", "off /old 70 MiB", "remove /old"],
        ),
    ],
)
def test_plan(files, earlier, expected):
    assert as_text(plan("/swapfile", 100 * MIB, earlier, seen(files))) == expected


@pytest.mark.parametrize(("before", "after"), [(50, 100), (100, 50), (100, 99)])
def test_there_is_never_less_swap_than_the_smaller_size(before, after):
    files = used(before)
    swap = lowest = before
    for step in plan("/swapfile", after * MIB, [], seen(files, {"/swapfile": (before, 10)})):
        swap += {"on": step.size, "off": -step.size}.get(step.verb, 0) // MIB
        lowest = min(lowest, swap)
        assert not (step.verb == "make" and step.path == "/swapfile" and swap < min(before, after))
    assert (lowest, swap) == (min(before, after), after)


def test_shrinking_below_what_is_in_use_is_refused_with_the_figures():
    state = seen(used(800), {"/swapfile": (800, 700)}, available=100)
    problem = memory_problem(plan("/swapfile", 100 * MIB, [], state), state)
    assert problem and "swap_size_mib" in problem and "550 MiB less than is safe" in problem
    state = seen(used(800), {"/swapfile": (800, 20)}, available=100)
    assert memory_problem(plan("/swapfile", 100 * MIB, [], state), state) is None


def test_growing_is_allowed_on_a_machine_that_is_almost_out_of_memory():
    state = seen(used(100), {"/swapfile": (100, 99)}, available=5)
    assert memory_problem(plan("/swapfile", 800 * MIB, [], state), state) is None


def test_the_disk_must_hold_old_and_new_file_at_once():
    steps = plan("/swapfile", 100 * MIB, [], seen(used(200)))
    reserve = DISK_RESERVE // MIB
    assert disk_problem(steps, seen(used(200), free=100 + reserve)) is None
    problem = disk_problem(steps, seen(used(200), free=99 + reserve))
    assert problem and problem.startswith("swap_size_mib: / has") and "lacks 1 MiB" in problem


@pytest.mark.parametrize(
    ("before", "path", "after"),
    [
        (OTHERS, "/swapfile", OTHERS + "\n" + OLD_LINE),
        (OLD_LINE + OTHERS, "/swapfile", OLD_LINE + OTHERS),
        (OLD_LINE * 3 + OTHERS, "/swapfile", OLD_LINE + OTHERS),
        # An existing line is kept as it is: options, tabs, another word for none, trailing comments.
        *[
            (line + OTHERS, "/swapfile", line + OTHERS)
            for line in (
                "/swapfile swap swap defaults 0 0\n",
                "/swapfile none swap sw,nofail,pri=100,discard 0 0\n",
                "/swapfile\tnone\tswap\tsw,pri=5\t0\t0\n",
                " /swapfile none swap sw,pri=5 0 0 # ours\r\n",
                "//swapfile none swap sw,pri=5\n",
                "\\057swapfile none swap\n",
            )
        ],
        (
            "/swapfile none swap pri=1 0 0\n" + OLD_LINE + OTHERS,
            "/swapfile",
            "/swapfile none swap pri=1 0 0\n" + OTHERS,
        ),
        # noauto is removed, since the file must be used after a reboot.
        ("/swapfile none swap noauto 0 0\n", "/swapfile", OLD_LINE),
        ("/swapfile\tnone swap sw,noauto,pri=2 0 0\n", "/swapfile", "/swapfile\tnone swap sw,pri=2 0 0\n"),
        # Lines of other swap areas are kept, whatever bytes, blanks and line ends they have.
        *[
            (line, "/swapfile", line + OLD_LINE)
            for line in (
                "UUID=0a1b none swap sw,pri=9 0 0\n",
                "LABEL=swap none swap sw 0 0\r\n",
                "# a comment\x85/swapfile none swap sw 0 0\n",
                "# caf\udce9\x0c/swapfile none swap sw 0 0\n",
                "/srv/caf\udce9 /srv/a\xa0b ext4 defaults 0 2\r\n",
                "/swapfile /mnt none bind 0 0\n",
            )
        ],
        (OLD_LINE + OTHERS, "/data/swap file", OTHERS + "\n/data/swap\\040file none swap sw 0 0\n"),
        (OTHERS + "\n" + OLD_LINE, None, OTHERS + "\n"),
        ("", "/swapfile", OLD_LINE),
    ],
)
def test_fstab_keeps_one_line_and_the_others_untouched(before, path, after):
    assert fstab_with(before, {"/swapfile", "/data/swap file"}, path) == after
    assert fstab_with(after, {"/swapfile", "/data/swap file"}, path) == after


class Machine(Host):
    """A tree with /proc and /etc, and a kernel that knows mkswap, swapon and swapoff."""

    def __init__(self, root: Path, kind: str = "ext4") -> None:
        super().__init__(root, self.command)
        self.commands: list[str] = []
        self.fail_at = ""
        for folder in ("proc/self", "proc/sys/vm", "etc"):
            (root / folder).mkdir(parents=True)
        (root / "proc/meminfo").write_text("MemTotal:  1000000 kB\nMemAvailable:  500000 kB\n")
        (root / "proc/swaps").write_text("Filename Type Size Used Priority\n/dev/sda2 partition 1024 0 -2\n")
        (root / "proc/self/mountinfo").write_text(f"1 0 8:1 / / rw - {kind} /dev/sda1 rw\n")
        (root / "proc/sys/vm/swappiness").write_text("60\n")
        (root / "etc/fstab").write_text(OTHERS)

    def command(self, argv: list[str]) -> None:
        name, path = argv[0], Path(argv[-1])
        inside = "/" + str(path.relative_to(self.root))
        self.commands.append(" ".join([*argv[:-1], inside]))
        if self.commands[-1] == self.fail_at:
            raise UserError(f"`{self.fail_at}` failed")
        swaps = self.root / "proc/swaps"
        if name == "mkswap":
            page = os.sysconf("SC_PAGE_SIZE")
            with path.open("r+b") as handle:
                handle.write(b"\0" * (page - len(SIGNATURE)) + SIGNATURE)
        elif name == "swapon":
            swaps.write_bytes(swaps.read_bytes() + f"{inside} file {path.stat().st_size >> 10} 0 -3\n".encode())
        else:
            lines = swaps.read_bytes().splitlines(keepends=True)
            swaps.write_bytes(b"".join(line for line in lines if not line.startswith(inside.encode() + b" ")))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def converge(machine: Machine, size: int = 4, path: str = "/swapfile", state: str = "present", swappiness: int = 10):
    wanted = change(machine, state, path, size * MIB, swappiness)
    carry_out(machine, wanted)
    return wanted


def tree(machine: Machine) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(machine.root.rglob("*")) if path.is_file()}


def test_fresh_repeat_grow_shrink_move_and_remove(machine):
    before = tree(machine)
    converge(machine)
    assert (machine.root / "swapfile").stat().st_mode & 0o777 == 0o600
    assert machine.active()["/swapfile"][0] == 4 * MIB
    assert machine.read("/etc/fstab") == OTHERS + "\n" + OLD_LINE
    assert (
        machine.read("/etc/sysctl.d/99-zz-swap.conf") == "vm.swappiness = 10\n"
        and sysctl.value(machine, "vm.swappiness") == "10"
    )
    assert not change(machine, "present", "/swapfile", 4 * MIB, 10).needed
    for size in (8, 2):
        assert converge(machine, size).needed
        assert machine.active()["/swapfile"][0] == size * MIB
        assert not change(machine, "present", "/swapfile", size * MIB, 10).needed
    (machine.root / "data").mkdir()
    converge(machine, 2, "/data/swap")
    assert sorted(machine.active()) == ["/data/swap", "/dev/sda2"]
    assert not (machine.root / "swapfile").exists()
    assert machine.read("/etc/fstab") == OTHERS + "\n/data/swap none swap sw 0 0\n"
    assert not change(machine, "present", "/data/swap", 2 * MIB, 10).needed
    converge(machine, state="absent", path="/data/swap")
    after = tree(machine)
    fstab = str(machine.root / "etc/fstab")
    assert after.pop(fstab) == before.pop(fstab) + b"\n"
    assert after == before
    assert not change(machine, "absent", "/data/swap", 0, 0).needed


@pytest.mark.parametrize(
    "fail_at", ["mkswap /swapfile.part", "swapon /swapfile.bridge", "swapoff /swapfile", "swapon /swapfile"]
)
def test_an_interrupted_change_is_finished_by_the_next_run(machine, fail_at):
    converge(machine)
    machine.fail_at = fail_at
    with pytest.raises(UserError, match=fail_at):
        converge(machine, 8)
    assert sum(size for path, (size, _) in machine.active().items() if "swapfile" in path) >= 4 * MIB
    machine.fail_at = ""
    converge(machine, 8)
    assert sorted(machine.active()) == ["/dev/sda2", "/swapfile"]
    assert machine.active()["/swapfile"][0] == 8 * MIB
    assert not (machine.root / "swapfile.bridge").exists()
    converge(machine, state="absent")
    assert sysctl.value(machine, "vm.swappiness") == "60"


def test_a_file_in_use_is_never_touched_in_place(machine):
    converge(machine)
    inode = (machine.root / "swapfile").stat().st_ino
    machine.fail_at = "swapoff /swapfile"
    with pytest.raises(UserError):
        converge(machine, 8)
    assert (machine.root / "swapfile").stat().st_ino == inode
    assert (machine.root / "swapfile").stat().st_size == 4 * MIB


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"size": 0}, "swap_size_mib: must be at least 1"),
        ({"swappiness": 201}, "swap_swappiness: 201"),
        ({"path": "swapfile"}, "swap_path: swapfile is not a plain absolute path"),
        ({"path": "/missing/swapfile"}, "swap_path: the directory /missing does not exist"),
        ({"path": "/etc/fstab"}, "swap_path: /etc/fstab holds data that is not swap"),
        ({"path": "/proc"}, "swap_path: /proc is not a regular file"),
        ({"size": 1 << 30}, "swap_size_mib: / has"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_done(machine, arguments, sentence):
    before = tree(machine)
    with pytest.raises(UserError) as raised:
        converge(machine, **arguments)
    assert str(raised.value).startswith(sentence)
    assert tree(machine) == before and machine.commands == []


def test_all_errors_are_reported_at_once(machine):
    with pytest.raises(UserError, match=r"swap_path: .*; swap_size_mib: .*; swap_swappiness: "):
        converge(machine, size=0, path="x", swappiness=-1)


@pytest.mark.parametrize("kind", ["overlay", "tmpfs", "btrfs", "nfs4"])
def test_file_systems_that_cannot_hold_swap_are_refused(tmp_path, kind):
    with pytest.raises(UserError, match=f"lies on {kind}, which cannot hold a swap file"):
        converge(Machine(tmp_path, kind))


def test_absent_leaves_data_and_foreign_swap(machine):
    (machine.root / "swapfile").write_text("a diary")
    converge(machine, state="absent")
    assert (machine.root / "swapfile").read_text() == "a diary"
    assert list(machine.active()) == ["/dev/sda2"]


def test_a_file_made_by_hand_with_three_lines_is_adopted(machine):
    converge(machine)
    shutil.rmtree(machine.root / "var")
    (machine.root / "etc/fstab").write_text(OLD_LINE * 3)
    machine.commands.clear()
    converge(machine)
    assert machine.commands == [] and machine.read("/etc/fstab") == OLD_LINE


def foreign(machine: Machine, line: str = OLD_LINE) -> dict[str, bytes]:
    """Activate a swap file that the role did not make, and return the tree with it."""
    converge(machine)
    shutil.rmtree(machine.root / "var")
    (machine.root / "etc/sysctl.d/99-zz-swap.conf").unlink()
    (machine.root / "etc/fstab").write_text(OTHERS + "\n" + line)
    sysctl.put(machine, "vm.swappiness", 60)
    return tree(machine)


def test_bytes_of_others_stay_as_they_are(machine):
    fstab = machine.root / "etc/fstab"
    others = b"# caf\xe9 \xc2\x85 \xe2\x80\xa8\r\n/dev/sdb1 /srv/caf\xe9 ext4 defaults 0 2\r\n"
    others += b"/srv/\xe9 none swap pri=1 0 0\n"
    fstab.write_bytes(others)
    swaps = machine.root / "proc/swaps"
    swaps.write_bytes(swaps.read_bytes() + b"/srv/\xe9 file 2048 0 -3\n")
    mounts = machine.root / "proc/self/mountinfo"
    mounts.write_bytes(mounts.read_bytes() + b"2 1 8:2 / /srv/\xe9\xe2\x80\xa8 rw - xfs /dev/sdb rw\n")
    wanted = converge(machine)
    assert fstab.read_bytes() == others + OLD_LINE.encode()
    assert not converge(machine).needed
    assert {printable(text) for texts in wanted.differences.values() for text in texts}
    assert [printable(path) for path in machine.active()] == ["/dev/sda2", "/srv/\ufffd", "/swapfile"]
    converge(machine, state="absent")
    assert fstab.read_bytes() == others


@pytest.mark.parametrize("size", [4, 8])
def test_a_line_with_options_is_adopted_as_it_is(machine, size):
    line = "/swapfile none swap sw,nofail,pri=100,discard 0 0\n"
    foreign(machine, line)
    machine.commands.clear()
    converge(machine, size)
    assert machine.read("/etc/fstab") == OTHERS + "\n" + line
    assert ("swapon -o sw,nofail,pri=100,discard /swapfile" in machine.commands) == (size != 4)
    assert not converge(machine, size).needed


def test_a_file_that_a_unit_switches_on_gets_no_line(machine):
    foreign(machine, "")
    units = machine.root / "etc/systemd/system"
    (units / "swap.target.wants").mkdir(parents=True)
    (units / "swapfile.swap").write_bytes(b"# caf\xe9\n[Swap]\nWhat = /swapfile\n")
    assert OLD_LINE in converge(machine).differences["/etc/fstab"][1]  # not active
    converge(machine, state="absent")
    (units / "swap.target.wants/swapfile.swap").symlink_to("../swapfile.swap")
    before = tree(machine)
    assert "/etc/fstab" not in converge(machine).differences
    assert not converge(machine).needed
    converge(machine, state="absent")
    assert tree(machine) == before


def test_swap_in_compressed_memory_does_not_count():
    state = seen(used(800), {"/swapfile": (800, 700), "/dev/zram0": (900, 0)}, available=100)
    assert "550 MiB less than is safe" in str(memory_problem(plan("/swapfile", 100 * MIB, [], state), state))


def test_absent_touches_nothing_where_the_role_never_ran(machine):
    before = foreign(machine)
    (machine.root / "etc/sysctl.d/99-swap.conf").write_text("vm.swappiness = 1\n")
    before = tree(machine)
    assert not converge(machine, state="absent").needed
    assert tree(machine) == before


@pytest.mark.parametrize("line", [OLD_LINE, ""])
def test_an_adopted_file_stays_as_it_was_when_the_role_goes(machine, line):
    before = foreign(machine, line)
    converge(machine, swappiness=30)
    assert not converge(machine, swappiness=30).needed
    converge(machine, state="absent")
    assert tree(machine) == before
    assert not change(machine, "absent", "/swapfile", 0, 0).needed


def test_an_adopted_file_stays_when_the_path_changes(machine):
    before = foreign(machine)
    converge(machine)
    (machine.root / "data").mkdir()
    converge(machine, path="/data/swap")
    assert sorted(machine.active()) == ["/data/swap", "/dev/sda2", "/swapfile"]
    converge(machine, path="/data/swap", state="absent")
    assert tree(machine) == before


@pytest.mark.parametrize(("fail_at", "stays"), [("mkswap /swapfile.part", True), ("swapon /swapfile", False)])
def test_an_adopted_file_is_the_roles_once_it_was_made_anew(machine, fail_at, stays):
    foreign(machine)
    machine.fail_at = fail_at
    with pytest.raises(UserError):
        converge(machine, 8)
    machine.fail_at = ""
    converge(machine, state="absent")
    assert ("/swapfile" in machine.active()) == (machine.root / "swapfile").exists() == stays
    converge(machine, 8)
    converge(machine, state="absent")
    assert list(machine.active()) == ["/dev/sda2"] and not (machine.root / "swapfile").exists()


def test_the_file_of_an_earlier_version_of_the_role_goes(machine):
    converge(machine)
    earlier = machine.root / "etc/sysctl.d/99-swap.conf"
    earlier.write_text("vm.swappiness = 10\n")
    assert converge(machine).needed and not earlier.exists()
    assert not converge(machine).needed
