"""Programs from a Debian package, for an archive with upstream's layout.

apt downloads the package from the host's own mirrors, verified by the suite's signed index, into separate folders: the
host's package lists do not change.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lab import host
from lab.host import Problem


@dataclass(frozen=True)
class Repacked:
    """What is taken from a package: its programs by their names in the archive, and files of its data folder.

    Debian's programs read these files by an absolute path, which an archive does not have. So the path in the programs
    is replaced by `moved_to`, where the role links the version that runs.
    """

    name: str
    programs: dict[str, str]
    data: str
    files: tuple[str, ...]
    moved_to: str


def unpack(wanted: Repacked, sources: tuple[str, ...], options: tuple[str, ...], folder: Path) -> dict[str, Path]:
    """Download a package and return the archive's files by name, programs first.

    `sources` are lines of apt's sources and `options` lines of its configuration.
    """
    tree = folder / "tree"
    host.run(["dpkg-deb", "--extract", str(download(wanted.name, sources, options, folder)), str(tree)])
    for path in wanted.programs.values():
        program = tree / path
        program.write_bytes(moved(program.read_bytes(), f"/{wanted.data}", wanted.moved_to))
    programs = {name: tree / path for name, path in wanted.programs.items()}
    return programs | {name: tree / wanted.data / name for name in wanted.files}


def download(package: str, sources: tuple[str, ...], options: tuple[str, ...], folder: Path) -> Path:
    """Download a package of the suite in the sources, and return its path."""
    (folder / "sources.list").write_text("".join(f"{line}\n" for line in sources))
    for name in ("lists/partial", "cache/archives/partial", "parts"):
        (folder / name).mkdir(parents=True)
    settings = (
        *options,
        f'Dir::Etc::SourceList "{folder}/sources.list";',
        f'Dir::Etc::SourceParts "{folder}/parts";',
        f'Dir::State::Lists "{folder}/lists";',
        f'Dir::Cache "{folder}/cache";',
        'APT::Sandbox::User "root";',
    )
    configuration = folder / "apt.conf"
    configuration.write_text("".join(f"{line}\n" for line in settings))
    apt = ["apt-get", "--quiet", "--config-file", str(configuration)]
    cure = "check that this machine reaches its Debian mirror"
    host.run([*apt, "update"], tries=3, cure=cure)
    host.run([*apt, "download", package], cwd=folder, tries=3, cure=cure)
    return next(folder.glob(f"{package}_*.deb"))


def moved(program: bytes, old: str, new: str) -> bytes:
    """Return a program in which the folder `old` is replaced by `new`.

    The path is padded with slashes to its old length, so that the program's other addresses stay valid.
    """
    if len(new) > len(old):
        raise Problem(f"{new} is longer than {old}, so it cannot take its place.")
    return program.replace(old.encode(), new.ljust(len(old), "/").encode())
