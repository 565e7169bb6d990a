"""Run a program as another user, with an environment that carries nothing of this one's home or Python.

Plain Python; needs root where ``user`` is not the one who runs it.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

LEFT_OUT = ("VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH")
ANYONE = "nobody"


class CommandError(RuntimeError):
    """The program failed; the text is its name and its own last words on one line."""


class UnknownUser(CommandError):
    """The host knows no such user."""


def run(*argv: str, user: str | None = None, environment: dict | None = None) -> str:
    """Run ``argv`` as ``user`` (this one when None) with a HOME that is gone afterwards; return its standard output."""
    variables = {key: value for key, value in os.environ.items() if key not in LEFT_OUT}
    with tempfile.TemporaryDirectory(prefix="home-") as home:
        own(Path(home), user)
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", check=False, cwd="/", umask=0o022,
            env={**variables, "HOME": home, **(environment or {})}, **identity(user),
        )  # fmt: skip
    if done.returncode:
        lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise CommandError(f"{Path(argv[0]).name} {argv[1]}: {' | '.join(lines[-4:])}")
    return done.stdout


def own(path: Path, user: str | None) -> None:
    """Hand ``path`` to ``user`` and his own group."""
    if user:
        shutil.chown(path, *_numbers(user))


def identity(user: str | None) -> dict:
    """Return what `subprocess.run` needs to run as ``user`` in his own group alone, {} for this user.

    Errors: `UnknownUser`.
    """
    if not user:
        return {}
    uid, gid = _numbers(user)
    return {"user": uid, "group": gid, "extra_groups": []}


def _numbers(user: str) -> tuple[int, int]:
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise UnknownUser(f"there is no user {user} on this host") from None
    return entry.pw_uid, entry.pw_gid


def group_of(name: str) -> str:
    """Return the group that ``name`` stands for: of a user his own group, whatever it is called, else itself."""
    try:
        return grp.getgrgid(pwd.getpwnam(name).pw_gid).gr_name
    except KeyError:
        return name


def open_up(directory: Path) -> None:
    """Make ``directory`` and its parents, and let everyone enter it; earlier runs made it as the login's umask said."""
    directory.mkdir(parents=True, exist_ok=True)
    mode = directory.stat().st_mode & 0o7777
    if mode & 0o555 != 0o555:
        directory.chmod(mode | 0o555)


def barred(path: Path, user: str | None = ANYONE, to: str = "x") -> str | None:
    """Say what keeps ``user`` from executing (or with ``r`` from reading) ``path``, or return None.

    Only root can ask for another user; else it is about this one. Of a user who is still to be made nothing is known.
    """
    user = user if os.geteuid() == 0 else None
    try:
        who = identity(user)
    except UnknownUser:
        return None

    def may(place: Path, how: str) -> bool:
        return not subprocess.run(["test", f"-{how}", str(place)], check=False, cwd="/", **who).returncode

    if may(path, to):
        return None
    for place in reversed(path.parents):
        if place.exists() and not may(place, "x"):
            seen = place.stat()
            return f"{user or 'this user'} cannot enter {place} (mode {seen.st_mode & 0o7777:04o}); chmod o+x lets him"
    return f"{path} is not there or {user or 'this user'} may not use it"
