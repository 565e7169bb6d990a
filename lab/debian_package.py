"""Programs of a package of Debian, for an archive that has upstream's layout.

apt downloads the package from the host's own mirrors, by the suite's signed index, into folders of its own: the host's
lists of packages stay as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lab import host
from lab.host import Problem


@dataclass(frozen=True)
class Repacked:
    """What is taken from a package: its programs by their names in the archive, and files of its folder of data.

    Debian's programs read such files by an absolute path, and an archive has none; so they are told to look in
    `moved_to`, where the role links the version that runs.
    """

    name: str
    programs: dict[str, str]
    data: str
    files: tuple[str, ...]
    moved_to: str


def unpack(wanted: Repacked, sources: tuple[str, ...], options: tuple[str, ...], folder: Path) -> dict[str, Path]:
    """Download a package and return the files of the archive by their names in it, programs first.

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
    """Download a package of the suite that the sources name, and return its path."""
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
    """Return a program that looks in the folder `new` for what it has in `old`.

    The path stays as long as it was, which a program's other addresses rely on: slashes more mean nothing.
    """
    if len(new) > len(old):
        raise Problem(f"{new} is longer than {old}, so it cannot take its place.")
    return program.replace(old.encode(), new.ljust(len(old), "/").encode())
