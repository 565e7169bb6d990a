"""Check that a logrotate file works together with all others of the host.

logrotate skips a complete file, with exit code 0, if it names a log that an earlier file names or that other users can
write to. So logrotate checks each file alone, in debug mode, in which it changes nothing, and the logs that the files
rotate are compared. Source: logrotate(8), and the output of 3.18 to 3.22.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from itertools import takewhile
from pathlib import Path

from ..errors import UserError

CONFIGURATION = Path("/etc/logrotate.conf")
LOGROTATE = "/usr/sbin/logrotate"


def asked(path: Path) -> tuple[int, str]:
    """Return exit code and output of logrotate for a configuration file and the files it includes."""
    with tempfile.NamedTemporaryFile(prefix="logrotate-") as state:
        # Older versions report a missing state file as an error.
        state.write(b"logrotate state -- version 2\n")
        state.flush()
        done = subprocess.run(
            [LOGROTATE, "--debug", "--state", state.name, str(path)],
            capture_output=True, text=True, errors="replace", check=False, env={"LC_ALL": "C", "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def patterns(said: str) -> list[str]:
    """Return the globs that logrotate reports as rotated: absolute paths followed by the frequency."""
    lines = re.findall(r"^rotating pattern: (.*)$", said, re.MULTILINE)
    return [glob for line in lines for glob in takewhile(lambda word: word.startswith("/"), line.split())]


def files_read(said: str, configuration: Path) -> list[Path]:
    """Return the included files that logrotate read, in its order."""
    folder, found = configuration.parent, []
    for word, name in re.findall(r"^(including|reading config file) (.+)$", said, re.MULTILINE):
        if word == "including":
            folder = Path(name)
        elif Path(name) != configuration:
            found.append(folder / name)
    return found


def first_error(said: str) -> str:
    """Return logrotate's first error about a file; empty if there is none."""
    found = re.search(r"^error: (.*)$", said, re.MULTILINE)
    return found[1].rstrip(".") if found else ""


def overlap(one: str, other: str) -> bool:
    """Return whether two globs can match the same path."""
    parts, others = one.split("/"), other.split("/")
    return len(parts) == len(others) and all(map(_meet, map(_tokens, parts), map(_tokens, others)))


def _tokens(part: str) -> list[str]:
    return re.findall(r"\[!?\]?[^\]]*\]|\\.|.", part)


def _meet(one: list[str], other: list[str]) -> bool:
    if not one or not other:
        return all(token == "*" for token in one or other)
    if one[0] == "*":
        return _meet(one[1:], other) or _meet(one, other[1:])
    if other[0] == "*":
        return _meet(one=other, other=one)
    # A character class counts as matching any character.
    same = one[0] == other[0] or any(token == "?" or len(token) > 2 for token in (one[0], other[0]))
    return same and _meet(one[1:], other[1:])


def check(path: Path, content: str, configuration: Path = CONFIGURATION, ask=asked) -> None:
    """Raise UserError if logrotate would skip ``content`` at ``path``, or another file because of it."""
    _, said = ask(configuration)
    if f"including {path.parent}\n" not in said:
        errors = re.findall(rf"^error: (.*{re.escape(configuration.name)}.*?)[.]?$", said, re.MULTILINE)
        why = errors[0] if errors else f"it does not include {path.parent}"
        raise UserError(f"logrotate does not read {path}: {configuration}: {why}; correct {configuration}")
    with tempfile.TemporaryDirectory(prefix="logrotate-") as folder:
        staged = Path(folder, path.name)
        staged.write_text(content)
        staged.chmod(0o644)
        code, own = ask(staged)
    if code:
        raise UserError(f"logrotate refuses {path}: {first_error(own).replace(str(staged), str(path))}")
    ours, whole = patterns(own), patterns(said)
    for other in [file for file in files_read(said, configuration) if file != path]:
        theirs = patterns(ask(other)[1])
        whole = [glob for glob in whole if glob not in theirs]
        _compare(ours, theirs, path, other)
    _compare(ours, [glob for glob in whole if glob not in ours], path, configuration)


def _compare(ours: list[str], theirs: list[str], path: Path, other: Path) -> None:
    both = [(mine, glob) for mine in ours for glob in theirs if overlap(mine, glob)]
    if both:
        mine, glob = both[0]
        raise UserError(
            f"{other} rotates {glob} and {path} would rotate {mine}, and logrotate passes over a file that names a log "
            f"again; take {glob} out of {other}, or remove that file"
        )
