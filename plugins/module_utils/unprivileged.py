"""Run a program as another user, with an environment that carries nothing of this one's home or Python.

Plain Python; needs root where ``user`` is not the one who runs it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

LEFT_OUT = ("VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH")


class CommandError(RuntimeError):
    """The program failed; the text is its name and its own last words on one line."""


def run(*argv: str, user: str | None = None, environment: dict | None = None) -> str:
    """Run ``argv`` as ``user`` (this one when None) with a HOME that is gone afterwards; return its standard output."""
    variables = {key: value for key, value in os.environ.items() if key not in LEFT_OUT}
    with tempfile.TemporaryDirectory(prefix="home-") as home:
        own(Path(home), user)
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", cwd="/", user=user, group=user,
            extra_groups=[] if user else None, env={**variables, "HOME": home, **(environment or {})}, umask=0o022,
        )  # fmt: skip
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise CommandError(f"{Path(argv[0]).name} {argv[1]}: {' | '.join(lines[-4:])}")
    return done.stdout


def own(path: Path, user: str | None) -> None:
    """Hand ``path`` to ``user`` and the group of the same name."""
    if user:
        shutil.chown(path, user, user)
