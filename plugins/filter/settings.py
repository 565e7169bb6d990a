"""Filter for settings that an inventory adds to an application."""

from __future__ import annotations

import difflib
import re
from fnmatch import fnmatchcase

EXAMPLE = re.compile(r"^#?([A-Za-z_][A-Za-z0-9_*]*)=(.*)$", re.MULTILINE)


def setting_problems(added: dict, example: str, variable: str) -> list[str]:
    """Return a sentence for each of ``added`` (``{NAME: value}``) that would have no effect or cannot be used.

    ``example`` is the text of the application's ``.env.example``; if it is empty, the names are not known. A value
    there that is a number means that a number above 0 is required: an integer (for ``20``), or any (for ``2.0``).
    ``variable`` is the variable that has ``added``. No sentence contains a value. Settings that the role writes from
    its own variables are checked by the rule kind ``settings``.
    """
    known = dict(EXAMPLE.findall(example))
    problems = []
    for name, value in added.items():
        why = _unknown(str(name), known) or _unfit(value, known.get(name, ""))
        if why:
            problems.append(f"{variable} has {name}, {why}.")
    return problems


def _unknown(name: str, known: dict) -> str:
    if not known or any(fnmatchcase(name, pattern) for pattern in known):
        return ""
    near = difflib.get_close_matches(name.upper(), known, 1)
    hint = f"; did you mean {near[0]}" if near else "; its .env.example lists them all"
    return f"which is not a setting of the application{hint}"


def _unfit(value, shown: str) -> str:
    if value is None or value == "":  # left out
        return ""
    integer, number = re.fullmatch("[0-9]+", shown), re.fullmatch(r"[0-9]+\.[0-9]+", shown)
    if isinstance(value, bool):
        good = False
    elif integer:
        good = bool(re.fullmatch("[0-9]+", str(value))) and int(value) > 0
    elif number:
        good = bool(re.fullmatch(r"[0-9]*\.?[0-9]+", str(value))) and float(value) > 0
    elif shown or isinstance(value, dict):
        good = isinstance(value, str)
    else:
        good = True
    wanted = "a whole number above 0" if integer else "a number above 0" if number else "a text; quote it"
    return "" if good else f"which must be {wanted}"


class FilterModule:
    def filters(self):
        return {"setting_problems": setting_problems}
