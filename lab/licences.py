"""Check the licence of a Go program: that of each module that is linked into it.

Every module contains the text of its licence; a program with a module that is not permissive is refused before it is
kept.
"""

from __future__ import annotations

import re
from pathlib import Path

from lab import host
from lab.host import Problem

NAMES = re.compile(r"(licen[cs]e|copying|unlicense)([-.].*)?", re.IGNORECASE)
# Patterns of the licences' texts; the first match counts.
TEXTS = {
    "MPL-2.0": r"\A\W*(\S+\s+){0,20}?Mozilla Public License,?\s+(v\.|version)\s*2\.0",  # its text mentions the GPL too
    "GPL": r"GNU\s+(AFFERO\s+|LESSER\s+|LIBRARY\s+)?GENERAL\s+PUBLIC\s+LICENSE",
    "Apache-2.0": r"Apache License,?\s+Version 2\.0",
    "BSD": r"Redistribution and use in source and binary forms",
    "MIT": r"Permission is hereby granted, free of charge, to any person",
    "ISC": r"Permission to use, copy, modify, and(/or)? distribute this software",
    "CC0": r"CC0 1\.0 Universal|released into the public domain",
}
PERMISSIVE = TEXTS.keys() - {"GPL"}
# Modules without a licence text, and the licence that their author states elsewhere.
STATED_ELSEWHERE = {
    # A dependency of node_exporter, by the author of github.com/dennwc/btrfs (Apache-2.0), whose only dependency it is.
    "github.com/dennwc/ioctl": "Apache-2.0",
}


def kind(text: str) -> str:
    """Return the name of the licence of a text; empty if it is unknown."""
    return next((name for name, words in TEXTS.items() if re.search(words, text, re.IGNORECASE)), "")


def of_folder(folder: Path) -> str:
    """Return the licence of a module's folder; empty if it has no text or an unknown one."""
    kinds = {kind(path.read_text(errors="replace")) for path in sorted(folder.iterdir()) if NAMES.fullmatch(path.name)}
    return " AND ".join(sorted(kinds)) if "" not in kinds else ""


def linked(go: str, program: Path) -> list[tuple[str, str]]:
    """Return the modules that are linked into a program, with their versions, without its own module."""
    output = host.run([go, "version", "-m", str(program)])
    return re.findall(r"^\t(?:dep|=>)\t(\S+)\t(v\S+)", output, re.MULTILINE)


def folder_of(cache: Path, module: str, version: str) -> Path:
    """Return a module's folder in Go's cache, where a capital letter is written as ! and the small letter."""
    return cache / (re.sub("[A-Z]", lambda found: f"!{found[0].lower()}", module) + f"@{version}")


def check(go: str, program: Path, cache: Path) -> dict[str, str]:
    """Return the licence of every module linked into a program; raise Problem if one is not permissive."""
    found = {}
    for module, version in linked(go, program):
        folder = folder_of(cache, module, version)
        found[module] = STATED_ELSEWHERE.get(module) or (of_folder(folder) if folder.is_dir() else "")
    if not found:
        raise Problem(f"{program.name} does not list its linked modules, so its licences cannot be read.")
    wrong = {name: licence for name, licence in found.items() if not permissive(licence)}
    if wrong:
        listed = ", ".join(
            f"{name} ({licence or 'no licence that is known'})" for name, licence in sorted(wrong.items())
        )
        raise Problem(f"{program.name} contains modules that must not be used: {listed}.")
    return found


def permissive(licence: str) -> bool:
    """Return whether every part of a module's licence is permissive."""
    return bool(licence) and all(part in PERMISSIVE for part in licence.split(" AND "))


def table(go: str, environment: dict[str, str], modules: Path) -> str:
    """Return the licences of all modules in a go.mod, one line each: module, version, licence."""
    locked = re.findall(r"^(?:require )?\s*(\S+\.\S+/\S+|\S+\.\S+) (v\S+)", modules.read_text(), re.MULTILINE)
    cache, lines = Path(environment["GOMODCACHE"]), []
    for module, version in sorted(locked):
        folder = folder_of(cache, module, version)
        if not folder.is_dir():
            host.run([go, "mod", "download", f"{module}@{version}"], env=environment, cwd=cache, tries=3)
        lines.append(f"{module} {version} {STATED_ELSEWHERE.get(module) or of_folder(folder) or 'unknown'}\n")
    return "".join(lines)
