"""Kernel settings of sysctl: values in effect, the content of sysctl.d, and which later file overrides it at boot.

Plain Python. A setting is named with dots, such as net.core.rmem_max. Sources: sysctl.d(5), proc(5).
"""

from __future__ import annotations

import os
from pathlib import Path

from .. import host_text

# Of several files with the same name only the one in the first directory counts.
PLACES = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d")


def place(name: str) -> str:
    return f"/proc/sys/{name.replace('.', '/')}"


def value(host: host_text.Tree, name: str) -> str:
    """Return the value in effect, numbers separated by one space; empty if the kernel does not have the setting."""
    return " ".join(host.read(place(name)).split())


def put(host: host_text.Tree, name: str, wanted) -> None:
    """Set a value until the next boot."""
    host.at(place(name)).write_text(f"{wanted}\n")


def problem(host: host_text.Tree, name: str) -> str | None:
    """Return why a setting cannot be changed on this machine, None if it can."""
    if not host.at(place(name)).exists():
        return f"this kernel has no {name}"
    if not os.access(host.at(place(name)), os.W_OK):
        return f"{name} cannot be changed on this machine, as in a container"
    return None


def text(settings: dict) -> str:
    """Return the text of a file of sysctl.d; empty for no settings."""
    return "".join(f"{name} = {wanted}\n" for name, wanted in settings.items())


def overridden(host: host_text.Tree, own: str, settings: dict) -> dict[str, tuple[str, str]]:
    """Return which ``settings`` of the file ``own`` another file sets to a different value at the next boot.

    The result is ``{name: (file, value)}``. A pattern, such as net.*.rmem_max, does not override a full name.
    """
    found: dict[str, tuple[str, str]] = {}
    for path in _later(host, Path(own).name):
        for name, value in assignments(host.read(path)).items():
            if name in settings and value == " ".join(str(settings[name]).split()):
                found.pop(name, None)
            elif name in settings:
                found[name] = (path, value)
    return found


def _later(host: host_text.Tree, own: str) -> list[str]:
    """Return the files that are read after the one called ``own``, in order."""
    names: dict[str, str] = {}
    for folder in PLACES:
        for file in host.at(folder).glob("*.conf"):
            names.setdefault(file.name, f"{folder}/{file.name}")
    return [path for name, path in sorted(names.items()) if name > own]


def assignments(text: str) -> dict[str, str]:
    """Return the assignments in a file of sysctl.d, by the name with dots."""
    found = {}
    for line in host_text.lines(text):
        name, equals, value = line.strip().removeprefix("-").partition("=")
        if equals and not name.startswith(("#", ";")):
            found[_dotted(name.strip())] = " ".join(value.split())
    return found


def _dotted(name: str) -> str:
    """Return a name with dots. If its first separator is a slash, slashes separate and a dot is a slash of the path."""
    separators = [sign for sign in name if sign in "./"]
    return name.translate(str.maketrans("./", "/.")) if separators[:1] == ["/"] else name
