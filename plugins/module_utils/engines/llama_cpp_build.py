"""Build llama-server from an archive of llama.cpp's source, in a directory of its own.

An existing build is complete: it is compiled in a working directory, asked for its version, and moved into place in
one step. An interrupted or failed build leaves the working directory, where the next one continues. Plain Python on
top of cmake.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .. import unprivileged
from ..errors import UserError
from ..install import released_program
from ..install.build_directory import BuildDirectory

MARKER = ".build.json"
MADE = (MARKER, released_program.MARKER)
PROGRAM = "llama-server"
JOB_MIB = 2048  # memory in MiB that one compiler process may need
ONE_FILE = ("-DCMAKE_BUILD_TYPE=Release", "-DBUILD_SHARED_LIBS=OFF")
CURL = "-DLLAMA_CURL=OFF"  # newer versions ignore it
# Only the server: without tests, examples, a web interface, and parts that download something.
ONLY_SERVER = (
    "-DLLAMA_OPENSSL=OFF",
    CURL,
    "-DLLAMA_BUILD_UI=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_SUBPROCESS=OFF",
)
OPTIONS = (*ONE_FILE, *ONLY_SERVER)
# Instructions that server processors have had since 2015, because a virtual machine may move.
INSTRUCTIONS = {
    "amd64": ("-DGGML_NATIVE=OFF", "-DGGML_AVX2=ON", "-DGGML_FMA=ON", "-DGGML_F16C=ON", "-DGGML_BMI2=ON"),
    "arm64": (),
}
TOLD = re.compile(r"CMake Error|\berror:|No space left|Killed signal|terminate called|not found|cannot find", re.I)
MEMORY = re.compile(r"Killed signal|cannot allocate memory|virtual memory exhausted", re.I)


@dataclass(frozen=True)
class Build:
    """What to build: ``version`` from the archive with ``checksum``; ``options`` are cmake's, merged over OPTIONS."""

    version: str
    checksum: str
    cuda: bool = False
    options: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        return "cuda" if self.cuda else "cpu"

    @property
    def recipe(self) -> str:
        """Return 12 hexadecimal digits over all inputs of the build."""
        return hashlib.sha256(json.dumps([asdict(self), OPTIONS], sort_keys=True).encode()).hexdigest()[:12]

    @property
    def flags(self) -> list[str]:
        return [*OPTIONS, f"-DGGML_CUDA={'ON' if self.cuda else 'OFF'}", *self.options]


def built(directory: Path) -> str | None:
    """Return the recipe of the build in ``directory``, or None if the build is not complete."""
    try:
        marker = json.loads((directory / MARKER).read_text())
        return marker["recipe"] if (directory / PROGRAM).stat().st_size == marker["size"] else None
    except (OSError, ValueError, KeyError):
        return None


def place(home: Path, build: Build) -> Path:
    """Return the directory of a build: ``<version>-<cpu|cuda>``, plus its recipe if another build has that name."""
    plain = home / f"{build.version}-{build.kind}"
    beside = plain.with_name(f"{plain.name}-{build.recipe}")
    there = built(plain)
    return beside if there != build.recipe and (there or built(beside) == build.recipe) else plain


def unused(home: Path, needed: set[Path]) -> list[Path]:
    """Return the builds and releases below ``home`` that are not ``needed``, and leftovers of builds."""
    if not home.is_dir():
        return []
    made = [place for place in home.iterdir() if place.is_dir() and not place.is_symlink()]
    kept = [place for place in made if place in needed or not any((place / name).is_file() for name in MADE)]
    left = [place for place in made if place.name.startswith((".work-", ".stage-"))]
    return sorted({*made} - {*kept} | {*left})


def jobs(wanted: int, cpus: int, memory_mib: int) -> int:
    """Return how many compilers run in parallel: ``wanted``, or as many as processors and memory allow."""
    return wanted or max(1, min(cpus, memory_mib // JOB_MIB))


def options_of(architecture: str, cuda: str, more: list[str]) -> list[str]:
    """Return cmake's options for a host; ``more`` come last, so that they win.

    ``architecture`` is amd64 or arm64, ``cuda`` the version in the names of CUDA's packages (12-8), empty for none.
    """
    compiler = f"/usr/local/cuda-{cuda.replace('-', '.')}/bin/nvcc"
    gpu = [f"-DCMAKE_CUDA_COMPILER={compiler}", "-DCMAKE_CUDA_ARCHITECTURES=native"] if cuda else []
    return [*INSTRUCTIONS[architecture], *gpu, *more]


def complaint(output: str) -> str:
    """Return the error of a failed step: its first error, or its last lines."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    first = next((number for number, line in enumerate(lines) if TOLD.search(line)), None)
    # cmake prints the reason below the location.
    told = lines[first : first + 4] if first is not None and "CMake Error" in lines[first] else lines[first or 0 :][:1]
    said = " | ".join(told if first is not None else lines[-3:]) or "it says nothing"
    return said + ("; the memory was not enough: lower llama_cpp_build_jobs" if MEMORY.search(output) else "")


@dataclass(frozen=True)
class Workshop(BuildDirectory):
    """Where and as which user to build, and who must be able to run the result."""

    user: str | None = None  # the account that builds; the current one if None
    runs_as: str | None = None
    jobs: int = 1
    needed_mib: int = 0
    environment: dict[str, str] = field(default_factory=dict)

    def whole(self, build: Build) -> bool:
        """Return whether the build exists and its user can run it."""
        directory = place(self.home, build)
        return built(directory) == build.recipe and not unprivileged.barred(directory / PROGRAM, self.runs_as)

    def make(self, build: Build, fetch: Callable[[Path], None]) -> Path:
        """Build and move into place; return the directory. ``fetch`` writes the archive of the source to a path."""
        work = self.home / f".work-{build.recipe}"
        if not (work / "unpacked").exists():
            self.need_room(self.needed_mib, "make room, or set llama_cpp_build_mib")
            self._unpack(build, work, fetch)
        self._compile(build, work)
        target = self._put(build, work)
        for done in self.home.glob(".work-*"):
            shutil.rmtree(done, ignore_errors=True)
        return target

    def _unpack(self, build: Build, work: Path, fetch: Callable[[Path], None]) -> None:
        """Unpack the verified source into ``work``, owned by the builder."""
        shutil.rmtree(work, ignore_errors=True)
        (work / "source").mkdir(parents=True)
        archive = work / "archive"
        fetch(archive)
        try:
            released_program.verify(archive, build.checksum)
        except UserError:
            shutil.rmtree(work)
            raise
        released_program.unpack(archive, work / "source")
        archive.unlink()
        if not (work / "source" / "CMakeLists.txt").is_file():
            shutil.rmtree(work)
            raise UserError("the archive has no CMakeLists.txt: it is not the source of llama.cpp")
        for path in [work, *work.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        (work / "unpacked").touch()

    def _compile(self, build: Build, work: Path) -> None:
        source, made = work / "source", work / "build"
        for path in [work, *work.rglob("*")]:  # files that another user left there
            if not path.is_symlink():
                unprivileged.own(path, self.user)
        try:
            self._run(work, "cmake", "-S", str(source), "-B", str(made), *build.flags)
        except UserError:
            # cmake's cache records what it found or missed.
            shutil.rmtree(made, ignore_errors=True)
            raise
        self._run(work, "cmake", "--build", str(made), "--target", PROGRAM, "--parallel", str(self.jobs))
        program = made / "bin" / PROGRAM
        if program.is_symlink() or not program.is_file():
            raise UserError(f"the build has no bin/{PROGRAM}")
        self._run(work, str(program), "--version")

    def _put(self, build: Build, work: Path) -> Path:
        target = place(self.home, build)
        with tempfile.TemporaryDirectory(prefix=".stage-", dir=self.home) as name:
            whole = Path(name) / "whole"
            whole.mkdir()
            shutil.copyfile(work / "build" / "bin" / PROGRAM, whole / PROGRAM)
            if (work / "source" / "LICENSE").is_file():
                shutil.copyfile(work / "source" / "LICENSE", whole / "LICENSE")
            size = (whole / PROGRAM).stat().st_size
            (whole / MARKER).write_text(json.dumps({"recipe": build.recipe, "size": size, **asdict(build)}, indent=1))
            for path in whole.iterdir():
                path.chmod(0o755 if path.name == PROGRAM else 0o644)
            whole.chmod(0o755)
            if target.exists():
                target.rename(Path(name) / "before")
            whole.rename(target)
        closed = unprivileged.barred(target / PROGRAM, self.runs_as)
        if closed:
            raise UserError(closed)
        return target

    def _run(self, work: Path, *argv: str) -> None:
        """Run one step as the building user; its output is kept in ``work``, where a failure can be read in full."""
        variables = {key: value for key, value in os.environ.items() if key not in unprivileged.LEFT_OUT}
        variables |= {"LC_ALL": "C", "HOME": str(work / "home"), **self.environment}
        (work / "home").mkdir(exist_ok=True)
        unprivileged.own(work / "home", self.user)
        try:
            done = subprocess.run(
                argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", cwd=work,
                umask=0o022, env=variables, check=False, **unprivileged.identity(self.user),
            )  # fmt: skip
        except (OSError, unprivileged.UnknownUser) as error:
            raise UserError(f"{Path(argv[0]).name}: {error}") from None
        (work / "last.log").write_text(done.stdout)
        if done.returncode:
            log = f"{work / 'last.log'} has all of it"
            raise UserError(f"{Path(argv[0]).name} {argv[1]}: {complaint(done.stdout)} ({log})")
