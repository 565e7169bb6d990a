"""llama.cpp for the mirror: its source as the archive of a tag, and a release archive built from it.

Both are published on github.com. If it does not answer, the source comes from the source distribution of
llama-cpp-python, whose digest is below. The archives have upstream's names in the mirror, by the commit of that copy.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lab import builds, host
from lab.builds import MIRROR
from lab.host import CACHE, Problem
from plugins.module_utils.engines import llama_cpp_build

DISTRIBUTION = "llama-cpp-python==0.3.36"
CHECKSUM = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
INSIDE = "llama_cpp_python-0.3.36/vendor/llama.cpp/"
VERSION = "0c1e57098"  # the commit of the copy
SAYS = "0.5.0-dev"
# Not needed for a build.
LEFT_OUT = ("docs/", "models/", "media/", "benches/", ".git", ".github/", ".devops/", ".pi/", ".gemini/")
REPOSITORY = "github.com/ggml-org/llama.cpp"
PROGRAMS = {"cmake": "cmake", "g++": "g++", "ninja": "ninja-build", "strip": "binutils"}
# The role's options, without one that this version ignores: with it, all archives in caches would be built again.
OPTIONS = (
    *llama_cpp_build.ONE_FILE,
    *llama_cpp_build.INSTRUCTIONS["amd64"],
    *(option for option in llama_cpp_build.ONLY_SERVER if option != llama_cpp_build.CURL),
)


def source() -> Path:
    """Return the path of the source archive in the mirror."""
    return MIRROR / REPOSITORY / "archive" / f"{VERSION}.tar.gz"


def release() -> Path:
    """Return the path of the program's archive in the mirror; the program runs on Debian 12 and later."""
    return MIRROR / REPOSITORY / "releases/download" / VERSION / f"llama-{VERSION}-bin-ubuntu-x64.tar.gz"


def finished(archive: Path) -> bool:
    """Return whether an archive exists and was made by the current recipe."""
    note = archive.with_name(f"{archive.name}.build")
    return archive.exists() and note.exists() and note.read_text() == recipe()


def keep(unfinished: Path, archive: Path) -> None:
    """Give an archive its final name, and write its recipe into a file beside it."""
    archive.with_name(f"{archive.name}.build").write_text(recipe())
    unfinished.rename(archive)


def recipe() -> str:
    """Return a digest of everything that determines the archives."""
    return host.digest([CHECKSUM, LEFT_OUT, OPTIONS])


def ensure(program: bool = False) -> dict[str, Any]:
    """Create the source archive in the mirror, and the program's if it is requested or was built before.

    Returns version, and for `source` and `program` their url (upstream's place) and checksum.
    """
    with host.lock("llama.cpp"):
        if not finished(source()):
            with host.step("Fetching the source of llama.cpp", "10 s"):
                fetch(source())
        if program and not finished(release()):
            host.ensure_packages(PROGRAMS)
            host.ensure_room(CACHE, 2, "building llama.cpp")
            with host.step("Building llama.cpp", "12 min"):
                build(source(), release())
    made = {"version": VERSION, "source": described(source())}
    return made | ({"program": described(release())} if finished(release()) else {})


def described(archive: Path) -> dict[str, str]:
    """Return an archive's url and checksum."""
    return {"url": f"https://{archive.relative_to(MIRROR)}", "checksum": f"sha256:{builds.sha256(archive)}"}


def fetch(target: Path) -> None:
    """Download the source distribution, verify its digest, and pack its copy of llama.cpp."""
    builds.prepared(target.parent)
    with tempfile.TemporaryDirectory(dir=builds.prepared(CACHE / "llama.cpp")) as folder:
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text(f"{DISTRIBUTION} --hash=sha256:{CHECKSUM}\n")
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        words = ["--no-deps", "--no-binary", DISTRIBUTION.partition("==")[0], "--require-hashes", "--dest", folder]
        cure = "check that this machine reaches PyPI"
        host.run([*pip, *words, "--requirement", str(wanted)], cure=cure, tries=3)
        (distribution,) = Path(folder).glob("*.tar.gz")
        unfinished = Path(folder) / "source.tar"
        with tarfile.open(distribution) as packed, tarfile.open(unfinished, "w") as made:
            for member in wanted_members(packed):
                made.addfile(member, packed.extractfile(member) if member.isfile() else None)
        with tarfile.open(unfinished) as plain:
            if not any(name.endswith("/CMakeLists.txt") for name in plain.getnames()):
                raise Problem(f"{DISTRIBUTION} no longer contains llama.cpp.")
        host.run(["gzip", "--no-name", str(unfinished)])
        keep(Path(f"{unfinished}.gz"), target)


def wanted_members(packed: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Return the entries of the copy that a build needs, below one folder as in upstream's archive."""
    for member in packed:
        inside = member.name.removeprefix(INSIDE)
        if inside == member.name or inside.startswith(LEFT_OUT):
            continue
        member.name = f"llama.cpp-{VERSION}/{inside}"
        member.pax_headers = {}  # they repeat a long name
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        yield member


def build(archive: Path, target: Path) -> None:
    """Build llama-server from the source archive, and pack it like upstream's release."""
    builds.prepared(target.parent)
    with tempfile.TemporaryDirectory(dir=builds.prepared(CACHE / "llama.cpp")) as folder:
        host.run(["tar", "--extract", "--file", str(archive), "--directory", folder])
        tree, made = Path(folder) / f"llama.cpp-{VERSION}", Path(folder) / "build"
        host.run(["cmake", "-S", str(tree), "-B", str(made), "-G", "Ninja", *OPTIONS])
        host.run(["nice", "cmake", "--build", str(made), "--target", "llama-server"])
        program = made / "bin" / "llama-server"
        host.run(["strip", str(program)])
        shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
        if SAYS not in shown.stdout + shown.stderr:
            raise Problem(f"The built llama-server says {(shown.stdout + shown.stderr).strip()!r} and not {SAYS}.")
        unfinished = target.with_suffix(".part")
        files = {f"llama-{VERSION}/llama-server": program, f"llama-{VERSION}/LICENSE": tree / "LICENSE"}
        builds.write_archive(unfinished, files, zipped=False)
        keep(unfinished, target)
