"""Build a Go program from a tag of its repository: verified commit, own toolchain, a directory of its own.

The directory's name contains the version and a digest over all inputs of the build. So a build either exists or not,
an old one is never changed under a running process, and a rollback only switches a link. Plain Python on top of git
and go.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .. import unprivileged
from ..errors import UserError
from .build_directory import BuildDirectory

NEEDED_MIB = 2048  # sources, modules, caches and objects of one build


def environment_of(mirror: str, ca_path: str, own: dict) -> dict:
    """Return the variables of a build behind a ``mirror`` whose certificate ``ca_path`` proves; ``own`` ones win."""
    modules = {"GOPROXY": f"{mirror}/go-modules"} if mirror else {}
    trusted = {"GIT_SSL_CAINFO": ca_path, "SSL_CERT_FILE": ca_path} if ca_path else {}
    return {**modules, **trusted, **own}


@dataclass(frozen=True)
class Build:
    """What to build: the ``package`` of ``source`` (a git URL) at the tag ``version``, which must be ``commit``."""

    name: str
    version: str
    source: str
    commit: str
    package: str
    toolchain: str  # version of Go
    ldflags: str = ""
    says: str = ""  # text that `--version` must contain

    @property
    def directory_name(self) -> str:
        """Return ``<version>-<8 hexadecimal digits>``; the address of the sources does not change the build."""
        decisive = {key: value for key, value in asdict(self).items() if key != "source"}
        return f"{self.version}-{hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:8]}"


@dataclass(frozen=True)
class Workshop(BuildDirectory):
    """Where and as which user to build; ``home`` is the program's directory."""

    go: Path  # root of the Go toolchain
    user: str | None = None  # the account that builds; the current one if None
    environment: dict[str, str] = field(default_factory=dict)

    def whole(self, build: Build) -> bool:
        """Return whether the build exists and its user can run it."""
        return not unprivileged.barred(self.home / build.directory_name / build.name, self.user)

    def make(self, build: Build) -> Path:
        """Build next to the target and move into place in one step; return the complete directory."""
        target = self.home / build.directory_name
        closed = unprivileged.barred(self.home, self.user)
        if closed:
            raise UserError(closed)
        self.need_room(NEEDED_MIB)
        with tempfile.TemporaryDirectory(prefix=".build-", dir=self.home) as name:
            stage = Path(name)
            stage.chmod(0o755)
            tree = stage / "work" / "tree"
            tree.parent.mkdir()
            unprivileged.own(tree.parent, self.user)
            self._fetch(build, tree)
            program = self._compile(build, tree)
            complete = stage / "whole"
            complete.mkdir()
            complete.chmod(0o755)
            shutil.copyfile(program, complete / build.name)
            (complete / build.name).chmod(0o755)
            (complete / ".build.json").write_text(json.dumps(asdict(build), indent=1))
            if target.exists():
                target.rename(stage / "before")
            complete.rename(target)
        return target

    def _fetch(self, build: Build, tree: Path) -> None:
        """Fetch the tag. Raises UserError if it is not the expected commit."""
        self._run("git", "clone", "--quiet", "--branch", build.version, "--", build.source, str(tree))
        found = self._run("git", "-C", str(tree), "rev-parse", "HEAD").strip()
        if found != build.commit:
            raise UserError(
                f"tag {build.version} of {build.source} is commit {found}, expected {build.commit}; "
                "do not use it before you know why"
            )

    def _compile(self, build: Build, tree: Path) -> Path:
        program = tree.parent / build.name
        go = [str(self.go / "bin" / "go"), "-C", str(tree), "build", "-trimpath", "-o", str(program)]
        self._run(*go, *(["-ldflags", build.ldflags] if build.ldflags else []), build.package, own=tree.parent)
        output = self._run(str(program), "--version")
        if program.is_symlink() or build.says not in output:
            raise UserError(f"the built program says {output.strip()!r} instead of {build.says!r}")
        return program

    def _run(self, *argv: str, own: Path | None = None) -> str:
        """Run one step as the building user; Go's files go below ``own``, and git gives up on a stalled server."""
        environment = {
            "LC_ALL": "C",
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_HTTP_LOW_SPEED_LIMIT": "1000",
            "GIT_HTTP_LOW_SPEED_TIME": "60",
        }
        if own:
            environment |= {
                "GOROOT": str(self.go),
                "GOPATH": str(own / "path"),
                "GOCACHE": str(own / "cache"),
                "GOTMPDIR": str(own),
                "GOTOOLCHAIN": "local",
                "GOFLAGS": "-buildvcs=false -modcacherw",
                "CGO_ENABLED": "1",
            }
        try:
            return unprivileged.run(*argv, user=self.user, environment={**environment, **self.environment})
        except unprivileged.CommandError as error:
            raise UserError(str(error)) from None
