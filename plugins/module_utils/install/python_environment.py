"""Build a virtual environment next to the running one, named by the digest of its inputs.

Plain Python; the same inputs give the same directory, so an existing environment is right and a missing one is built.
Nothing is ever changed in place.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from .. import unprivileged
from ..errors import UserError

MARKER = ".environment.json"
LOCKS = Path("/run")


def digest(inputs: dict) -> str:
    """Return 12 hexadecimal digits over all inputs of the environment."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:12]


def complete(directory: Path, user: str | None = None) -> bool:
    """Return whether ``directory`` holds a complete environment that ``user`` can run."""
    return (directory / MARKER).is_file() and _hindrance(directory, user) is None


def _hindrance(directory: Path, user: str | None) -> str | None:
    """Return why ``user`` cannot run the environment's interpreter, or None; a user who does not exist yet can."""
    python = directory / "bin/python"
    user = user if os.geteuid() == 0 else None
    try:
        unprivileged.run(str(python), "-I", "-c", "", user=user)
    except unprivileged.UnknownUser:
        return None
    except (unprivileged.CommandError, OSError) as error:
        return unprivileged.barred(python, user) or str(error)
    return None


class Builder:
    """Builds as ``user``, with ``environment`` variables, by ``uv`` or by ``pip``, for ``runs_as`` (``user``)."""

    def __init__(
        self, installer: str, uv: str, python: str, user: str | None, environment: dict, runs_as: str | None = None
    ):
        self.installer, self.uv, self.python, self.user = installer, uv, python, user
        self.environment, self.runs_as = environment, runs_as or user

    def build(self, directory: Path, inputs: dict, needed_mib: int) -> None:
        """Build ``directory`` completely, or leave nothing of it behind.

        ``inputs`` has ``requirements``, ``overrides``, ``constraints`` (texts of requirements files), ``hashes`` (bool)
        and ``imports`` (modules that must be importable at the end).
        """
        free = shutil.disk_usage(existing(directory)).free >> 20
        if free < needed_mib:
            raise UserError(f"the disk of {directory} has {free} MiB free, {needed_mib} MiB are needed")
        with self._alone(directory):
            if not complete(directory, self.runs_as):
                self._build(directory, inputs)

    @staticmethod
    @contextmanager
    def _alone(directory: Path):
        """Wait for another controller's run that is building the same environment now."""
        with (LOCKS / f"llm-server-environment-{directory.name}.lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _build(self, directory: Path, inputs: dict) -> None:
        unprivileged.open_up(directory.parent)
        closed = unprivileged.barred(directory.parent, self.runs_as)
        if closed:
            raise UserError(closed)
        # An environment that only its user can no longer run may still be in use by an older process.
        before = directory.with_name(f".{directory.name}.before")
        shutil.rmtree(before, ignore_errors=True)
        if (directory / MARKER).is_file():
            directory.rename(before)
        elif directory.exists():
            shutil.rmtree(directory)
        try:
            with tempfile.TemporaryDirectory(prefix="environment-") as stage:
                unprivileged.own(Path(stage), self.user)
                self._make(directory, inputs, Path(stage))
                for name in inputs["imports"]:
                    self._run(str(directory / "bin/python"), "-c", f"import {name}")
            hindrance = _hindrance(directory, self.runs_as)
            if hindrance:
                raise UserError(hindrance)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            if before.exists():
                before.rename(directory)
            raise
        shutil.rmtree(before, ignore_errors=True)
        (directory / MARKER).write_text(json.dumps(inputs, indent=1))

    def _make(self, directory: Path, inputs: dict, stage: Path) -> None:
        files = {}
        for name in ("requirements", "overrides", "constraints"):
            if inputs[name]:
                files[name] = stage / f"{name}.txt"
                files[name].write_text(inputs[name])
                files[name].chmod(0o644)
        # It stays the builder's: the unit's read-only file system keeps a service from writing to its own environment.
        directory.mkdir()
        unprivileged.own(directory, self.user)
        hashes = ["--require-hashes"] if inputs["hashes"] else []
        constraints = ["--constraint", str(files["constraints"])] if "constraints" in files else []
        if self.installer == "uv":
            self._run(self.uv, "venv", "--no-project", "--allow-existing", "--python", self.python, str(directory))
            overrides = ["--override", str(files["overrides"])] if "overrides" in files else []
            # The service cannot write to its environment: uncompiled code would be compiled again at every start.
            target = ["--compile-bytecode", "--python", str(directory / "bin/python")]
            sources = [*hashes, *overrides, *constraints, "--requirement", str(files["requirements"])]
            self._run(self.uv, "pip", "install", *target, *sources)
        else:
            if "overrides" in files:
                raise UserError("pip knows no overrides; choose uv as the installer or leave them out")
            self._run(self.python, "-m", "venv", str(directory))
            self._run(
                str(directory / "bin/python"), "-m", "pip", "install", "--no-input", *hashes, *constraints,
                "--requirement", str(files["requirements"]),
            )  # fmt: skip

    def _run(self, *argv: str) -> None:
        try:
            unprivileged.run(*argv, user=self.user, environment=self.environment)
        except unprivileged.CommandError as error:
            raise UserError(f"{error}{self._through()}") from None

    def _through(self) -> str:
        """Return the proxies given to the installer, without their passwords: the installer does not name them."""
        proxies = [
            f"{name} {re.sub('//[^/]*@', '//', value)}"
            for name, value in sorted(self.environment.items())
            if name.upper().endswith("_PROXY") and name.upper() != "NO_PROXY"
        ]
        return f" (it was to go through {', '.join(proxies)})" if proxies else ""


def existing(path: Path) -> Path:
    """Return ``path`` or its nearest parent that exists."""
    return next(parent for parent in [path, *path.parents] if parent.exists())
