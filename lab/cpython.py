"""CPython from Maven Central, laid out as its own `make altinstall` would.

Version 3.10 is for machines whose distribution has an older one: it is the Python of Ubuntu 22.04, which production
runs on. The newest version is for the controller of tests/newest_controller.py. Both include venv and headers, and find
their libraries in their own folder, so they need no environment variable on a machine or on this host.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from lab import builds, host
from lab.host import CACHE, Problem


@dataclass(frozen=True)
class Release:
    """A version on Maven Central. `sqlite` is the wheel with the SQLite extension, if the artefact lacks it."""

    version: str
    artefact: str
    checksum: str
    ffi: str
    sqlite: str = ""

    @property
    def name(self) -> str:
        """Return the interpreter's name, such as python3.10."""
        return f"python{self.version.rpartition('.')[0]}"

    @property
    def places(self) -> dict[str, str]:
        """Return the needed files: path in the artefact -> path in the installation."""
        library = f"lib{self.name}.so.1.0"
        return {
            f"bin/{self.name}": f"bin/{self.name}",
            library: f"lib/{library}",
            self.ffi: f"lib/{self.ffi}",
            f"lib/{self.name}/": f"lib/{self.name}/",
            f"include/{self.name}/": f"include/{self.name}/",
        }

    @property
    def left_out(self) -> tuple[str, ...]:
        """Return the folders that nothing here imports."""
        return tuple(f"lib/{self.name}/{name}/" for name in ("test", "idlelib", "lib2to3", "tkinter", "turtledemo"))


# The application imports SQLite. This wheel has the same extension, statically linked with SQLite.
SQLITE = "pysqlite3-binary==0.5.4.post2 --hash=sha256:7f8171c8dd11dfc6fe5321394903782df9610f51d457a3ebe8c972c0bc4606fb"
UBUNTU = Release(
    version="3.10.8",
    artefact="org.bytedeco:cpython:3.10.8-1.5.8:jar:linux-x86_64",
    checksum="2f101b1aa06effdbda3c318c1728b13f22b571707c7b7704abaf5d19a33aa981",
    ffi="libffi.so.6",
    sqlite=SQLITE,
)
NEWEST = Release(
    version="3.14.3",
    artefact="org.bytedeco:cpython:3.14.3-1.5.13:jar:linux-x86_64",
    checksum="eb5f1a6fe2dc498ac18927189a37f28a47b0ba06ae6bd85112eff023fe2eb46f",
    ffi="libffi.so.8",
)
COPY = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy"
INSIDE = "org/bytedeco/cpython/linux-x86_64/"
PROGRAM = "/usr/local/bin/python3.10"
# Where its OpenSSL looks for certificates: a folder of the machine that compiled it.
CERTIFICATES = "__w/javacpp-presets/javacpp-presets/cpython/cppbuild/linux-x86_64/ssl/cert.pem"


def recipe(release: Release | None = None) -> str:
    """Return a digest of everything that determines a copy; without a release, of the one on machines."""
    wanted = release or UBUNTU
    return host.digest([wanted.checksum, wanted.places, wanted.left_out, wanted.sqlite, CERTIFICATES])


def ensure(release: Release = UBUNTU) -> Path:
    """Make sure the interpreter is in the cache, and return its folder: what `/usr/local` is on a machine."""
    folder = CACHE / "python" / f"{release.version}-{recipe(release)}"
    with host.lock("python"):
        if not folder.exists():
            host.ensure_room(folder.parent, 1, f"CPython {release.version}")
            builds.prepared(folder.parent)
            with (
                host.step(f"Fetching CPython {release.version} from Maven Central", "15 s"),
                tempfile.TemporaryDirectory(dir=folder.parent) as work,
            ):
                tree = Path(work) / "tree"
                unpack(fetch(Path(work), release), tree, release)
                if release.sqlite:
                    add_sqlite(tree, release)
                tree.rename(folder)
    return folder


def fetch(folder: Path, release: Release = UBUNTU) -> Path:
    """Download the artefact by Maven into `folder`, verify it, and return it."""
    host.ensure_packages({"mvn": "maven"})
    settings = {"maven.repo.local": CACHE / "maven", "artifact": release.artefact, "outputDirectory": folder}
    words = [f"-D{name}={value}" for name, value in settings.items()]
    host.run(
        ["mvn", "--quiet", "--batch-mode", COPY, *words], cure="check that this machine reaches Maven Central", tries=3
    )
    (archive,) = folder.glob("cpython-*.jar")
    if builds.sha256(archive) != release.checksum:
        archive.unlink()
        raise Problem(f"{release.artefact} has changed: its checksum differs from the one in {Path(__file__).name}.")
    return archive


def unpack(archive: Path, tree: Path, release: Release = UBUNTU) -> None:
    """Write the needed parts of the artefact to the folder `tree`."""
    with zipfile.ZipFile(archive) as packed:
        for name in packed.namelist():
            place = place_of(name, release)
            if place:
                target = tree / place
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(packed.read(name))
    (tree / "bin" / release.name).chmod(0o755)


def add_sqlite(tree: Path, release: Release) -> None:
    """Add the missing SQLite extension to the interpreter in `tree`."""
    lock, wheel = tree.with_name("sqlite.txt"), tree.with_name("sqlite")
    lock.write_text(f"{release.sqlite}\n")
    installer = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    words = ["--python", str(tree / "bin" / release.name), "--target", str(wheel), "--requirement", str(lock)]
    host.run([*installer, *words], cure="check that this machine reaches PyPI", tries=3)
    (extension,) = (wheel / "pysqlite3").glob("_sqlite3.*.so")
    shutil.copy(extension, tree / "lib" / release.name / "lib-dynload")


def place_of(name: str, release: Release = UBUNTU) -> str | None:
    """Return the target path of a member of the artefact; None if it is not needed.

    The artefact has the interpreter twice; the one in `bin` is used.
    """
    inside = name.removeprefix(INSIDE)
    if name.endswith("/") or inside == name or inside.startswith(release.left_out):
        return None
    pairs = release.places.items()
    return next((to + inside[len(at) :] for at, to in pairs if inside == at or inside.startswith(at)), None)


def copy_into(root: Path) -> None:
    """Copy the interpreter into a machine's root file system."""
    shutil.copytree(ensure(), root / "usr/local", symlinks=True)
    link = root / CERTIFICATES
    link.parent.mkdir(parents=True)
    link.symlink_to("/etc/ssl/certs/ca-certificates.crt")
