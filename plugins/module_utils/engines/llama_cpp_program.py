"""Ask a llama-server for its version and its arguments; nothing is loaded or started.

The program's arguments change from version to version, so the role uses the help page of the installed one. Plain
Python.
"""

from __future__ import annotations

import difflib
import re
import signal

from .. import unprivileged
from ..errors import UserError

# `-c,    --ctx-size N    size of …`, `--metrics    …`, and lines that end with a comma and continue below.
NAME = re.compile(r"(?<![\w-])--([a-zA-Z][\w.-]*)")
ENTRY = re.compile(r"^-")
VERSION = re.compile(r"^version: (?P<version>.+)$", re.MULTILINE)


def names(page: str) -> set[str]:
    """Return the long names of the arguments on a help page, without their dashes."""
    found: set[str] = set()
    for line in page.splitlines():
        if ENTRY.match(line):
            found |= set(NAME.findall(re.split(r"\s{2,}(?=[^-\s])", line)[0]))
    return found


def version(output: str) -> str:
    """Return the version in the output of ``--version``, such as ``0.7.0 (build 11669, commit Debian)``; "" if none."""
    found = VERSION.search(output)
    return found["version"].strip() if found else ""


def unknown(wanted: list[str], known: set[str], variable: str) -> list[str]:
    """Return one sentence for each name of ``wanted`` that the program does not know; ``no-`` negates a switch."""
    problems = []
    for name in wanted:
        plain = name.lstrip("-").replace("_", "-")
        if plain not in known:
            near = difflib.get_close_matches(plain, known, 1)
            hint = f"; did you mean {near[0]}?" if near else "; llama-server --help lists them."
            problems.append(f"{variable}: this version has no argument {plain}{hint}")
    return problems


def ask(program: str, argument: str, user: str | None) -> str:
    """Return the program's output for ``--help`` or ``--version``, run as ``user``."""
    try:
        return unprivileged.run("/bin/sh", "-c", 'exec "$0" "$1" 2>&1', program, argument, user=user)
    except unprivileged.CommandError as error:
        reason = str(error).partition(": ")[2] or "it leaves without a word"
        if died_of(program, argument, user) == signal.SIGILL:
            reason = (
                "this processor lacks instructions that it was built for; build it on the host, or for an older one"
            )
        raise UserError(f"{program} does not run here: {reason}") from None


def died_of(program: str, argument: str, user: str | None) -> int:
    """Return the number of the signal that ends the program, 0 if none does."""
    ask_shell = '"$0" "$1" >/dev/null 2>&1; echo $?'
    code = int(unprivileged.run("/bin/sh", "-c", ask_shell, program, argument, user=user).strip() or 0)
    return code - 128 if code > 128 else 0
