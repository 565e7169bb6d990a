"""A release as data: what it consists of, and its digest.

A *release* is everything that a process is started with: its files, its unit and the links that select its program.
Its digest is in the process's environment, so the process itself shows which release it was started with. Memory
limits and live files are not part of it: they belong to the host, and a rollback keeps the current ones.
"""

from __future__ import annotations

import hashlib
import json

from ..errors import UserError
from . import systemd_unit

PLACES = ("files", "secrets", "links")


class Refused(UserError):
    """The release cannot be right. The text names the cause; the service was not touched."""


def digest(release: dict) -> str:
    """Return 16 hexadecimal digits over everything that the process is started with."""
    # Empty parts are left out, so that a release from before such a part existed keeps its digest.
    parts = {key: release[key] for key in ("files", "secrets", "links", "inputs", "unit", "timer") if release.get(key)}
    parts = {"files": [], "links": [], **parts}
    for part in {"files", "secrets"} & parts.keys():
        parts[part] = [file for file in parts[part] if not file.get("live")]
    parts = {key: part for key, part in parts.items() if part or key in ("files", "links")}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def but_secrets(release: dict) -> str:
    """Return the digest of a release that does not depend on its secrets; see `rollback.renewed`."""

    def plain(lines: list) -> list:
        return [line if isinstance(line, str) else line[0] for line in lines]

    files = [{**secret, "lines": plain(secret["lines"])} for secret in release["secrets"]]
    return digest({**release, "secrets": files})


def unit_text(release: dict) -> str:
    """Return the text of the unit file of a release."""
    return systemd_unit.limited(release["unit"], release.get("limits", {}))


def described(file: dict) -> dict:
    """Return path, owner, group and mode of a file."""
    return {key: file[key] for key in ("path", "mode", "owner", "group")}


def private(file: dict) -> bool:
    """Return whether only the owner can read a file: then it counts as a secret."""
    return not int(file["mode"], 8) & 0o077


def digest_before(files: list[dict], release: dict) -> str:
    """Return the earlier digest of ``release``, with secrets as ordinary ``files``; processes may still carry it."""
    return digest(
        {**release, "files": [{**described(file), "content": file["content"]} for file in files], "secrets": []}
    )


def environment_of(release: dict) -> str:
    """Return the text of the environment file that holds the release's digest."""
    return f"{systemd_unit.RELEASE_VARIABLE}={digest(release)}\n"
