"""The keyring repository: conflicting files are set aside and restored; nothing changes before apt has agreed."""

from __future__ import annotations

import io
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from plugins.module_utils.errors import UserError
from plugins.module_utils.install.keyring_repository import (
    Apt,
    Repository,
    keyring_of,
    list_name,
    set_aside,
    set_aside_deb822,
    without_marks,
)

ORIGIN = "developer.download.nvidia.com/compute/cuda/repos/"
HERE = f"https://{ORIGIN}debian12/x86_64/"
REPOSITORY = Repository("cuda-keyring", "1.1-1", "/k.gpg", "/etc/apt/sources.list.d/cuda.list", HERE, ORIGIN)
MARK = "# set aside for cuda-keyring: "
OTHER = "deb https://archive.example.org/debian bookworm main\n"


@pytest.mark.parametrize(
    ("line", "ours"),
    [
        (f"deb {HERE} /\n", True),
        (f"deb [signed-by=/other.gpg arch=amd64] {HERE[:-1]} /\n", True),
        (f"deb http://mirror/nv/{ORIGIN}ubuntu2004/x86_64 /\n", True),
        (f"  deb-src {HERE} /\n", True),
        (f"# deb {HERE} /\n", False),
        (OTHER, False),
        ("deb file:///var/cuda-repo-ubuntu2204-12-4-local /\n", False),
    ],
)
def test_entries_of_this_origin_are_set_aside_and_given_back(line, ours):
    text = OTHER + line + OTHER
    aside = set_aside(text, REPOSITORY)
    assert aside == OTHER + (MARK if ours else "") + line + OTHER
    assert set_aside(aside, REPOSITORY) == aside
    assert without_marks(aside, REPOSITORY) == text


STANZA = f"Types: deb\nURIs: {HERE}\nSuites: /\nSigned-By: /other.gpg\n"
FOREIGN = "Types: deb\nURIs: https://archive.example.org/debian\nSuites: bookworm\nComponents: main\n"


@pytest.mark.parametrize(
    ("text", "after"),
    [
        (STANZA, "".join(MARK + line for line in STANZA.splitlines(keepends=True))),
        (
            f"{FOREIGN}\n{STANZA}\n{FOREIGN}",
            f"{FOREIGN}\n" + "".join(MARK + line for line in STANZA.splitlines(keepends=True)) + f"\n{FOREIGN}",
        ),
        (STANZA.replace("URIs: ", "URIs:\n "), None),
        (f"Enabled: no\n{STANZA}", "same"),
        (f"# URIs: {HERE}\n{FOREIGN}", "same"),
    ],
)
def test_stanzas_of_this_origin_are_set_aside_and_given_back(text, after):
    aside = set_aside_deb822(text, REPOSITORY)
    if after == "same":
        assert aside == text
    elif after:
        assert aside == after
    else:
        assert all(line.startswith(MARK) for line in aside.splitlines())
    assert set_aside_deb822(aside, REPOSITORY) == aside
    assert without_marks(aside, REPOSITORY) == text


def test_the_name_of_the_index_is_apts():
    assert list_name(HERE) == "developer.download.nvidia.com_compute_cuda_repos_debian12_x86%5f64_"
    assert list_name("http://user:key@10.0.0.1:81/x") == "10.0.0.1:81_x_"


class Machine:
    """A tree with /etc/apt, and a function that imitates dpkg and apt-get and records its calls."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.commands: list[list[str]] = []
        self.busy = 0
        self.busy_text = "E: Could not get lock /var/lib/dpkg/lock-frontend\n"
        self.reachable = True
        self.version = ""
        (root / "etc/apt/sources.list.d").mkdir(parents=True)
        (root / "var/lib/apt/lists").mkdir(parents=True)
        (root / "k.gpg").write_bytes(b"key")
        self.apt = Apt(REPOSITORY, root, self.run, patience=1)

    def run(self, argv: list[str]) -> subprocess.CompletedProcess[str]:
        self.commands.append(argv)
        if argv[0] == "dpkg-query":
            text = argv[3].replace("${db:Status-Status}", "installed").replace("${Version}", self.version)
            return subprocess.CompletedProcess(argv, 0 if self.version else 1, text if self.version else "", "")
        if self.busy:
            self.busy -= 1
            return subprocess.CompletedProcess(argv, 2, "", self.busy_text)
        if argv[0] == "apt-get":
            if not self.reachable:
                return subprocess.CompletedProcess(argv, 0, "", "W: Failed to fetch: NO_PUBKEY A4B469963BF863CC\n")
            lists = [Path(word.partition("=")[2]) for word in argv if word.startswith("Dir::State::lists=")]
            folder = lists[0] if lists else self.root / "var/lib/apt/lists"
            (folder / f"{list_name(HERE)}Packages").write_text("")
        return subprocess.CompletedProcess(argv, 0, "", "")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_register_repeat_and_remove(machine):
    old = machine.root / "etc/apt/sources.list.d/old.list"
    old.write_text(OTHER + f"deb {HERE} /\n")
    old.chmod(0o640)
    texts = machine.apt.differences("present")
    assert sorted(texts) == ["/etc/apt/sources.list.d/cuda.list", "/etc/apt/sources.list.d/old.list"]
    machine.apt.try_out(Path("/k.gpg"))
    machine.apt.write(texts)
    machine.apt.update()
    assert (machine.root / "etc/apt/sources.list.d/cuda.list").read_text() == f"deb [signed-by=/k.gpg] {HERE} /\n"
    assert old.stat().st_mode & 0o777 == 0o640
    assert machine.apt.differences("present") == {} and machine.apt.indexed()
    machine.apt.write(machine.apt.differences("absent"))
    machine.apt.purge()
    assert old.read_text() == OTHER + f"deb {HERE} /\n"
    assert not machine.apt.indexed() and machine.apt.differences("absent") == {}


def test_apt_trusts_the_authorities_of_a_mirror_as_long_as_it_is_registered(machine):
    mirror = replace(REPOSITORY, uri=f"https://mirror.example:8443/{ORIGIN}debian12/x86_64/", ca_path="/ca.pem")
    settings = machine.root / "etc/apt/apt.conf.d/80cuda-keyring"
    apt = Apt(mirror, machine.root, machine.run, patience=1)
    with pytest.raises(UserError, match=r"/ca\.pem must be a file that everyone can read"):
        apt.try_out(Path("/k.gpg"))
    (machine.root / "ca.pem").touch(mode=0o644)
    apt.try_out(Path("/k.gpg"))
    assert "Acquire::https::mirror.example::CAInfo=/ca.pem" in machine.commands[-1]
    apt.write(apt.differences("present"))
    assert settings.read_text() == 'Acquire::https::mirror.example::CAInfo "/ca.pem";\n'
    assert settings.stat().st_mode & 0o777 == 0o644 and apt.differences("present") == {}
    # Without it, or with state absent, nothing of it remains; over HTTP there is no certificate to trust.
    for other, state in ((replace(mirror, ca_path=""), "present"), (mirror, "absent")):
        apt.write(apt.differences("present"))
        again = Apt(other, machine.root, machine.run, patience=1)
        again.write(again.differences(state))
        assert not settings.exists() and again.differences(state) == {}
    assert not replace(mirror, uri=mirror.uri.replace("https", "http")).trust


def test_bytes_of_others_stay_as_they_are(machine):
    parts = machine.root / "etc/apt/sources.list.d"
    before = {
        parts / "old.list": b"# caf\xe9 \xc2\x85\r\n" + f"deb {HERE} /\r\n".encode() + b"# \xff",
        parts / "new.sources": b"# caf\xe9\r\n\r\n" + STANZA.encode(),
        parts / "cuda.list": b"# caf\xe9\n",
    }
    for path, text in before.items():
        path.write_bytes(text)
    machine.busy, machine.busy_text = 1, "caf\ufffd: Could not get lock\n"
    machine.apt.write(machine.apt.differences("present"))
    machine.apt.update()
    mark = MARK.encode()
    assert (parts / "old.list").read_bytes() == before[parts / "old.list"].replace(b"deb http", mark + b"deb http")
    assert (parts / "new.sources").read_bytes().startswith(b"# caf\xe9\r\n\r\n" + mark)
    assert (parts / "cuda.list").read_bytes() == b"# caf\xe9\n" + REPOSITORY.line.encode()
    machine.apt.write(machine.apt.differences("absent"))
    assert {path: path.read_bytes() for path in before} == before


def test_an_entry_by_hand_in_the_repositorys_own_file_is_given_back(machine):
    own = machine.root / "etc/apt/sources.list.d/cuda.list"
    own.write_text(f"deb {HERE} /")
    machine.apt.write(machine.apt.differences("present"))
    assert own.read_text() == f"{MARK}deb {HERE} /\ndeb [signed-by=/k.gpg] {HERE} /\n"
    assert machine.apt.differences("present") == {}
    machine.apt.write(machine.apt.differences("absent"))
    assert own.read_text() == f"deb {HERE} /\n"


def test_a_package_without_its_keyring_counts_as_missing(machine):
    assert machine.apt.installed() is None
    machine.version = "1.1-1"
    assert machine.apt.installed() == "1.1-1"
    (machine.root / "k.gpg").unlink()
    assert machine.apt.installed() is None


def test_a_repository_that_apt_cannot_verify_is_refused_with_apts_reason(machine):
    machine.reachable = False
    with pytest.raises(UserError, match=r"apt cannot use https://.*NO_PUBKEY A4B469963BF863CC; check"):
        machine.apt.try_out(Path("/k.gpg"))


@pytest.mark.parametrize(
    "text",
    [
        "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 5 (apt-get)\n",
        "dpkg: error: dpkg frontend lock was locked by another process with pid 5\nNote: removing it is wrong\n",
        "dpkg: error: dpkg frontend lock was locked by /usr/bin/python3.13 process with pid 5\nNote: wrong\n",
    ],
)
def test_the_words_for_a_lock_of_apt_and_dpkg_are_known(machine, text):
    machine.busy, machine.busy_text = 1, text
    machine.apt.install(Path("/x.deb"))
    assert len(machine.commands) == 2


def test_a_disk_that_is_full_is_named_in_dpkgs_words(machine):
    machine.busy, machine.busy_text = (
        1,
        (
            "dpkg: error processing archive /tmp/x.deb (--install):\n"
            " unable to flush /usr/share/keyrings/k.gpg.dpkg-new after padding: No space left on device\n"
            "Errors were encountered while processing:\n /tmp/x.deb\n"
        ),
    )
    with pytest.raises(UserError, match=r"failed: x\.deb: unable to flush .*: No space left on device$"):
        machine.apt.install(Path("/tmp/x.deb"))


def test_a_lock_is_waited_for_and_at_last_named(machine):
    machine.busy = 2
    machine.apt.install(Path("/x.deb"))
    assert len(machine.commands) == 3
    machine.busy = 1000
    with pytest.raises(UserError, match="another program has kept apt's lock for 1 s: Could not get lock"):
        machine.apt.install(Path("/x.deb"))


def test_the_keyring_is_read_out_of_the_package():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tree:
        member = tarfile.TarInfo("./usr/share/keyrings/k.gpg")
        member.size = 3
        tree.addfile(member, io.BytesIO(b"key"))
    assert keyring_of(buffer.getvalue(), "/usr/share/keyrings/k.gpg") == b"key"
    with pytest.raises(UserError, match="holds no /other"):
        keyring_of(buffer.getvalue(), "/other")
