"""Run a program as another user, with an environment that contains nothing of the caller's home or Python.

Plain Python; needs root if ``user`` is not the current user.
"""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import subprocess
import tempfile
from pathlib import Path

from .errors import UserError

LEFT_OUT = ("VIRTUAL_ENV", "PYTHONHOME", "PYTHONPATH")
ANYONE = "nobody"


class CommandError(UserError):
    """The program failed; the text is its name and its last message on one line."""


class UnknownUser(CommandError):
    """The user does not exist on the host."""


def run(*argv: str, user: str | None = None, environment: dict | None = None) -> str:
    """Run ``argv`` as ``user`` (the current one if None) with a temporary HOME; return its standard output."""
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
    """Make ``user`` and the user's own group the owners of ``path``."""
    if user:
        shutil.chown(path, *_numbers(user))


def identity(user: str | None) -> dict:
    """Return what `subprocess.run` needs to run as ``user`` with only the user's own group, {} for the current user.

    Raises `UnknownUser`.
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
    """Return the group that ``name`` means: a user's own group, whatever it is called, or ``name`` itself."""
    try:
        return grp.getgrgid(pwd.getpwnam(name).pw_gid).gr_name
    except KeyError:
        return name


def open_up(directory: Path) -> None:
    """Create ``directory`` and its parents, and let everyone enter it; earlier runs used the login's umask."""
    directory.mkdir(parents=True, exist_ok=True)
    mode = directory.stat().st_mode & 0o7777
    if mode & 0o555 != 0o555:
        directory.chmod(mode | 0o555)


def barred(path: Path, user: str | None = ANYONE, to: str = "x") -> str | None:
    """Return why ``user`` cannot execute (or with ``r`` read) ``path``, or None.

    Only root can ask for another user; otherwise the current one is checked. A user who does not exist yet is not
    checked.
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
