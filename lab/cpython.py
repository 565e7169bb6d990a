"""CPython 3.10 for machines whose distribution has an older one, laid out as its own `make altinstall` would.

Ubuntu 22.04, which production runs on, has this Python. It comes from Maven Central, complete with venv and headers,
and finds its library beside itself, so it needs no environment variable: neither on a machine nor on this host.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

from lab import builds, host
from lab.host import CACHE, Problem

VERSION = "3.10.8"
ARTEFACT = f"org.bytedeco:cpython:{VERSION}-1.5.8:jar:linux-x86_64"
CHECKSUM = "2f101b1aa06effdbda3c318c1728b13f22b571707c7b7704abaf5d19a33aa981"
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
INSIDE = "org/bytedeco/cpython/linux-x86_64/"
# What is wanted, by where it lies in the artefact and where in the installation.
PLACES = {
    "bin/python3.10": "bin/python3.10",
    "libpython3.10.so.1.0": "lib/libpython3.10.so.1.0",
    "libffi.so.6": "lib/libffi.so.6",
    "lib/python3.10/": "lib/python3.10/",
    "include/python3.10/": "include/python3.10/",
}
LEFT_OUT = tuple(f"lib/python3.10/{name}/" for name in ("test", "idlelib", "lib2to3", "tkinter", "turtledemo"))
# It was compiled without SQLite, which the application imports: this wheel has the same extension, linked with it.
SQLITE = "pysqlite3-binary==0.5.4.post2 --hash=sha256:7f8171c8dd11dfc6fe5321394903782df9610f51d457a3ebe8c972c0bc4606fb"
PROGRAM = "/usr/local/bin/python3.10"
# Where its OpenSSL looks for certificates: a folder of the machine that compiled it.
CERTIFICATES = "__w/javacpp-presets/javacpp-presets/cpython/cppbuild/linux-x86_64/ssl/cert.pem"


def recipe() -> str:
    """Return what decides how a machine's copy turns out."""
    return host.digest([CHECKSUM, PLACES, LEFT_OUT, SQLITE, CERTIFICATES])


def ensure() -> Path:
    """Make sure the interpreter is in the cache, and return its folder: what `/usr/local` is on a machine."""
    folder = CACHE / "python" / f"{VERSION}-{recipe()}"
    with host.lock("python"):
        if not folder.exists():
            host.ensure_room(folder.parent, 1, f"CPython {VERSION}")
            builds.prepared(folder.parent)
            with (
                host.step(f"Fetching CPython {VERSION} from Maven Central", "15 s"),
                tempfile.TemporaryDirectory(dir=folder.parent) as work,
            ):
                tree = Path(work) / "tree"
                unpack(fetch(Path(work)), tree)
                add_sqlite(tree)
                tree.rename(folder)
    return folder


def fetch(folder: Path) -> Path:
    """Fetch the artefact by Maven into `folder`, and return it, checked."""
    host.ensure_packages({"mvn": "maven"})
    settings = {"maven.repo.local": CACHE / "maven", "artifact": ARTEFACT, "outputDirectory": folder}
    words = [f"-D{name}={value}" for name, value in settings.items()]
    host.run(
        ["mvn", "--quiet", "--batch-mode", COPY, *words], cure="check that this machine reaches Maven Central", tries=3
    )
    (archive,) = folder.glob("cpython-*.jar")
    if builds.sha256(archive) != CHECKSUM:
        archive.unlink()
        raise Problem(f"{ARTEFACT} is not what it was: its checksum differs from the one in {Path(__file__).name}.")
    return archive


def unpack(archive: Path, tree: Path) -> None:
    """Write the wanted parts of the artefact to the folder `tree`."""
    with zipfile.ZipFile(archive) as packed:
        for name in packed.namelist():
            place = place_of(name)
            if place:
                target = tree / place
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(packed.read(name))
    (tree / "bin/python3.10").chmod(0o755)


def add_sqlite(tree: Path) -> None:
    """Give the interpreter in `tree` the extension that it lacks."""
    lock, wheel = tree.with_name("sqlite.txt"), tree.with_name("sqlite")
    lock.write_text(f"{SQLITE}\n")
    installer = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    words = ["--python", str(tree / "bin/python3.10"), "--target", str(wheel), "--requirement", str(lock)]
    host.run([*installer, *words], cure="check that this machine reaches PyPI", tries=3)
    (extension,) = (wheel / "pysqlite3").glob("_sqlite3.*.so")
    shutil.copy(extension, tree / "lib/python3.10/lib-dynload")


def place_of(name: str) -> str | None:
    """Return where a member of the artefact goes, None for what is not wanted.

    The interpreter that the artefact has twice is the one in `bin`.
    """
    inside = name.removeprefix(INSIDE)
    if name.endswith("/") or inside == name or inside.startswith(LEFT_OUT):
        return None
    return next((to + inside[len(at) :] for at, to in PLACES.items() if inside == at or inside.startswith(at)), None)


def lay_over(root: Path) -> None:
    """Put the interpreter into a machine's root file system."""
    shutil.copytree(ensure(), root / "usr/local", symlinks=True)
    link = root / CERTIFICATES
    link.parent.mkdir(parents=True)
    link.symlink_to("/etc/ssl/certs/ca-certificates.crt")
