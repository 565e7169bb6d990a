"""Pinned packages: versions compared exactly, holds kept, new packages recorded and removed again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from plugins.module_utils.errors import UserError
from plugins.module_utils.install import system_packages
from plugins.module_utils.install.system_packages import (
    Installed,
    Packages,
    Plan,
    Wanted,
    is_version,
    matching,
    parse_dpkg,
    parse_madison,
    parse_simulation,
    plan,
)

DCGM = Wanted("datacenter-gpu-manager", "3.3.9", hold=True)
NEWER = ["datacenter-gpu-manager-4-*"]
MADISON = """\
datacenter-gpu-manager | 1:4.2.3-2 | https://repository  Packages
datacenter-gpu-manager |    1:3.3.9 | https://repository  Packages
datacenter-gpu-manager |    1:3.3.8 | https://repository  Packages
"""


@pytest.mark.parametrize(
    ("wanted", "full", "same"),
    [
        ("3.3.9", "1:3.3.9", True),
        ("3.3.9", "1:3.3.9-1", True),
        ("3.3.9", "3.3.9", True),
        ("1:3.3.9", "1:3.3.9", True),
        ("3.3.9-1", "1:3.3.9-1", True),
        ("", "1:4.2.3-2", True),
        ("3.3.9", "1:3.3.90", False),
        ("3.3.9", "1:13.3.9", False),
        ("3.3", "1:3.3.9", False),
        ("2:3.3.9", "1:3.3.9", False),
    ],
)
def test_versions_are_compared_exactly(wanted, full, same):
    assert is_version(wanted, full) is same


def test_dpkg_counts_only_what_is_wholly_installed():
    text = "a\t1\tinstall ok installed\nb\t2\thold ok installed\nc\t3\tdeinstall ok config-files\n"
    assert parse_dpkg(text) == {"a": Installed("1", False), "b": Installed("2", True)}


def test_madison_and_simulation():
    assert parse_madison(MADISON) == ["1:4.2.3-2", "1:3.3.9", "1:3.3.8"]
    text = "Reading\nRemv old [1]\nInst new (2 repo [amd64])\nConf new (2 repo [amd64])\nPurg gone [3]\n"
    assert parse_simulation(text) == (["new"], ["old", "gone"])


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ({}, Plan([DCGM], [], [DCGM.name], [])),
        ({DCGM.name: Installed("1:3.3.9", True)}, Plan([], [], [], [])),
        ({DCGM.name: Installed("1:3.3.9", False)}, Plan([], [], [DCGM.name], [])),
        (
            {DCGM.name: Installed("1:4.2.3-2", True), f"{DCGM.name}-4-core": Installed("1:4.2.3-2", False)},
            Plan([DCGM], [f"{DCGM.name}-4-core"], [], []),
        ),
    ],
)
def test_plan(installed, expected):
    assert plan([DCGM], NEWER, installed) == expected


def test_plan_releases_a_hold_that_is_not_wanted():
    assert plan([Wanted("git")], [], {"git": Installed("1:2", True)}).unhold == ["git"]


class Machine:
    """dpkg and apt of a machine, as far as the module uses them."""

    def __init__(self, monkeypatch, tmp_path, installed: dict[str, str], simulation: str = ""):
        self.installed, self.held, self.simulation, self.ran = dict(installed), set(), simulation, []
        monkeypatch.setattr(system_packages, "NOTES", tmp_path)
        monkeypatch.setattr(Packages, "_run", lambda _, *argv: self.answer(argv))

    def answer(self, argv) -> str:
        self.ran.append(argv)
        if argv[0] == "dpkg-query":
            state = {name: "hold" if name in self.held else "install" for name in self.installed}
            return "".join(f"{name}\t{self.installed[name]}\t{state[name]} ok installed\n" for name in self.installed)
        if argv[0] == "apt-cache":
            return MADISON
        if argv[0] == "apt-mark" and argv[1] == "hold":
            self.held |= set(argv[2:])
        if "--simulate" in argv:
            return self.simulation
        if "install" in argv:
            # apt-get releases the hold of a package that it changes.
            self.held.clear()
            for word in argv[argv.index("install") + 1 :]:
                name, _, version = word.partition("=")
                if name.endswith("-"):
                    self.installed.pop(name[:-1], None)
                else:
                    self.installed[name] = version or "1"
        return ""


def test_downgrade_in_one_transaction_and_held_again(monkeypatch, tmp_path):
    core = f"{DCGM.name}-4-core"
    machine = Machine(monkeypatch, tmp_path, {DCGM.name: "1:4.2.3-2", core: "1:4.2.3-2"}, f"Remv {core} [1]\n")
    machine.held = {DCGM.name}
    Packages("dcgm", 1).apply([DCGM], NEWER)
    assert machine.installed == {DCGM.name: "1:3.3.9"} and machine.held == {DCGM.name}
    assert sum("install" in argv and "--simulate" not in argv for argv in machine.ran) == 1


def test_an_installation_that_fails_leaves_the_hold(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, tmp_path, {DCGM.name: "1:3.3.8", "free": "1"})
    machine.held = {DCGM.name}
    answer = machine.answer

    def fails(argv):
        if "install" in argv and "--simulate" not in argv:
            machine.held.clear()
            raise UserError("apt-get: no space left")
        return answer(argv)

    machine.answer = fails
    with pytest.raises(UserError, match="no space left"):
        Packages("dcgm", 1).apply([DCGM, Wanted("free", hold=True)], NEWER)
    assert machine.held == {DCGM.name}, "what was not held before is not held either"


def test_packages_of_4x_are_replaced_by_3x(monkeypatch, tmp_path):
    newer = ["datacenter-gpu-manager-4-core", "libdcgm", "nv-hostengine"]
    simulation = "".join(f"Remv {name} [1]\n" for name in newer) + f"Inst {DCGM.name} (1:3.3.9)\n"
    machine = Machine(monkeypatch, tmp_path, dict.fromkeys([*newer, "libdcgm-of-others"], "1:4.7.0"), simulation)
    role = yaml.safe_load((Path(__file__).resolve().parents[3] / "roles/dcgm/vars/main.yml").read_text())
    Packages("dcgm", 1).apply([DCGM], role["__dcgm_instead_of"])
    assert machine.installed == {DCGM.name: "1:3.3.9", "libdcgm-of-others": "1:4.7.0"}


def test_a_foreign_package_is_never_removed(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, tmp_path, {"other": "1"}, f"Remv other [1]\nInst {DCGM.name} (1:3.3.9)\n")
    with pytest.raises(UserError, match="would remove other; remove it by hand"):
        Packages("dcgm", 1).apply([DCGM], NEWER)
    assert machine.installed == {"other": "1"}


def test_what_another_role_holds_is_not_changed_on_the_way(monkeypatch, tmp_path):
    driver = "libnvidia-compute-580"
    simulation = f"Inst {driver} [580.95] (580.105)\nInst {DCGM.name} (1:3.3.9)\n"
    machine = Machine(monkeypatch, tmp_path, {driver: "580.95"}, simulation)
    machine.held = {driver}
    with pytest.raises(UserError, match=f"would change {driver}, which is held; release it first"):
        Packages("dcgm", 1).apply([DCGM], NEWER)
    assert machine.installed == {driver: "580.95"} and machine.held == {driver}


def test_unknown_version_is_refused_with_the_known_ones(monkeypatch, tmp_path):
    Machine(monkeypatch, tmp_path, {})
    with pytest.raises(
        UserError, match=r"3\.3\.90 is in no apt repository of this host \(known: 1:4\.2\.3-2, 1:3\.3\.9"
    ):
        Packages("dcgm", 1).apply([Wanted(DCGM.name, "3.3.90")], [])


def test_removal_takes_what_came_and_leaves_what_was_there(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, tmp_path, {"gcc": "12"}, "Inst git (1)\nInst libcurl (1)\n")
    tools = [Wanted("gcc"), Wanted("git")]
    packages = Packages("tools", 1)
    packages.apply(tools, [])
    machine.installed["libcurl"] = "1"
    assert json.loads((tmp_path / "tools.json").read_text())["came"] == ["git", "libcurl"]
    assert packages.removable(tools) == (["git", "libcurl"], [])
    machine.simulation = "Purg git [1]\nPurg libcurl [1]\n"
    assert packages.remove(["git", "libcurl"], []) == []
    assert not tmp_path.exists(), "the folder of the notes goes with its last one"


def test_what_another_role_found_there_stays_until_that_one_goes(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, tmp_path, {}, "Inst git (1)\nInst gcc (1)\n")
    tools = [Wanted("git"), Wanted("gcc")]
    first, second = Packages("first", 1), Packages("second", 1)
    first.apply(tools, [])
    second.apply([Wanted("git")], [])
    assert json.loads((tmp_path / "second.json").read_text()) == {"came": [], "wanted": ["git"]}
    assert first.removable(tools)[0] == ["gcc"]
    machine.simulation = "Purg gcc [1]\n"
    assert first.remove(["gcc"], []) == []
    assert second.removable([Wanted("git")])[0] == ["git"], "the last role that wants it takes it away"


def test_a_role_that_finds_everything_writes_its_note_once(monkeypatch, tmp_path):
    Machine(monkeypatch, tmp_path, {"git": "1"})
    packages = Packages("tools", 1)
    assert not packages.noted([Wanted("git")])
    packages.apply([Wanted("git")], [])
    inode = (tmp_path / "tools.json").stat().st_ino
    assert packages.noted([Wanted("git")]) and not packages.noted([Wanted("gcc")])
    packages.apply([Wanted("git")], [])
    assert (tmp_path / "tools.json").stat().st_ino == inode


def test_a_note_of_an_earlier_version_still_lists_what_was_installed(monkeypatch, tmp_path):
    Machine(monkeypatch, tmp_path, {"git": "1"})
    (tmp_path / "tools.json").write_text('{"came": ["git"]}')
    assert not Packages("tools", 1).noted([Wanted("git")])
    assert Packages("tools", 1).removable([Wanted("git")])[0] == ["git"]
    assert Packages("other", 1).others() == {tmp_path / "tools.json": {"git"}}


def test_certificates_never_go_and_do_not_keep_the_rest(monkeypatch, tmp_path):
    tools = [Wanted("git"), Wanted("ca-certificates")]
    machine = Machine(monkeypatch, tmp_path, {"git": "1", "openssl": "1", "ca-certificates": "1"})
    (tmp_path / "tools.json").write_text('{"came": ["ca-certificates", "git", "openssl"]}')
    packages = Packages("tools", 1)
    assert packages.removable(tools)[0] == ["git", "openssl"]

    def answer(argv):
        if "--simulate" in argv:
            return "Purg git [1]\n" * ("git" in argv) + "Purg openssl [1]\nRemv ca-certificates [1]\n" * (
                "openssl" in argv
            )
        machine.ran.append(argv)
        return ""

    machine.answer = answer
    assert packages.remove(["git", "openssl"], []) == ["openssl"]
    assert ("apt-get", "--quiet", "--yes", "purge", "git") in machine.ran
    assert ("apt-mark", "auto", "openssl") in machine.ran


def test_what_others_have_come_to_need_stays(monkeypatch, tmp_path):
    machine = Machine(monkeypatch, tmp_path, {"git": "1", "later": "1"}, "Purg git [1]\nRemv later [1]\n")
    (tmp_path / "tools.json").write_text('{"came": ["git"]}')
    assert Packages("tools", 1).remove(["git"], []) == ["git"]
    assert ("apt-mark", "auto", "git") in machine.ran and not any("--quiet" in argv for argv in machine.ran)


def test_only_what_is_installed_is_held_as_it_is():
    installed = {
        "libnvidia-compute-580": Installed("580.95", False),
        "linux-gcp": Installed("6.8", True),
        "curl": Installed("8", False),
    }
    found = matching(["libnvidia-*", "linux-gcp*", "nvidia-driver-*"], installed)
    assert found == [Wanted("libnvidia-compute-580", hold=True), Wanted("linux-gcp", hold=True)]
    assert plan(found, [], installed) == Plan(install=[], remove=[], hold=["libnvidia-compute-580"], unhold=[])
