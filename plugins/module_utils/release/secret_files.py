"""Files of secrets: what a release stores of them, and their current text.

A secret is stored only in its own file. A release has a keyed digest of it, which is enough to see that the process was
started with another value. So a rollback uses the current secrets.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from .description import Refused, described, digest, private

if TYPE_CHECKING:
    from .store import Service


def without_secrets(service: Service, release: dict, plain: dict | None = None) -> dict:
    """Return a release in the current form. Releases in the earlier form have secrets among their files.

    ``plain`` has, by the path of such a file, the names in it that are not secrets.
    """
    if "secrets" in release:
        return release
    held = [{**file, "plain": (plain or {}).get(file["path"])} for file in release["files"] if private(file)]
    return {
        **release,
        "files": [file for file in release["files"] if not private(file)],
        "secrets": [outlined(service, file) for file in held],
        "inputs": {},
    }


def outlined(service: Service, file: dict) -> dict:
    """Return what a release stores of a secret file. Raises `Refused` if a line is not ``NAME=value``."""
    plain = sorted(file["plain"] or [])
    # Left out unless set, so that a release from before these attributes existed keeps its digest.
    kept = {**described(file), **{name: True for name in ("whole", "live") if file.get(name)}, "plain": plain}
    return {**kept, "lines": outline(service, kept, file["content"])}


def outline(service: Service, file: dict, text: str) -> list:
    """Return the lines of a secret file: plain lines unchanged, of the others name and digest of the value."""
    if file.get("whole"):
        return [["", service.keyed(text)]]
    path, plain, lines = file["path"], file["plain"], []
    for number, line in enumerate(lines_of(text), 1):
        name, found, value = line.partition("=")
        if not found:
            raise Refused(f"{service.name}: line {number} of {path} is not NAME=value, as a file of secrets needs it")
        # An address may contain a password.
        lines.append(line if name in plain and "@" not in value else [name, service.keyed(value)])
    return lines


def current_text(service: Service, secret: dict) -> str:
    """Return the text of a release's secret file with the current values of its secrets.

    A secret that the current file does not have is left out: the inventory no longer has it, and its value is
    stored nowhere else.
    """
    try:
        now = Path(secret["path"]).read_text()
    except OSError:
        raise Refused(
            f"{service.name}: {secret['path']} is gone, and no release keeps a secret; run site.yml"
        ) from None
    if secret.get("whole"):
        return now
    values = {line.partition("=")[0]: line for line in lines_of(now)}
    lines = [line if isinstance(line, str) else values.get(line[0]) for line in secret["lines"]]
    return "".join(f"{line}\n" for line in lines if line is not None)


def outline_on_disk(service: Service, secret: dict) -> list | None:
    """Return the outline of the file as it is on the disk, or None if it cannot be read as one."""
    try:
        return outline(service, secret, Path(secret["path"]).read_text(errors="replace"))
    except (OSError, Refused):
        return None


def clean(service: Service, plain: dict | None = None) -> None:
    """Remove secrets from releases and probes that were stored in the earlier form; see `without_secrets`."""
    names = {}
    for path in sorted((service.store / "releases").glob("*.json")):
        old = json.loads(path.read_text())
        held = [file for file in old["files"] if private(file)]
        if "secrets" in old or not held:
            continue
        new = without_secrets(service, old, plain)
        proof = service.proof_of(path.stem)
        service.store_proof(digest(new), {**proof, "probes": [referring(probe, held) for probe in proof["probes"]]})
        service.keep(new)
        names[path.stem] = digest(new)
    if not names:
        return
    state = service.state()
    service.note(
        current=names.get(state["current"], state["current"]),
        failed=names.get(state["failed"], state["failed"]),
        verified=[names.get(name, name) for name in state["verified"]],
    )
    # Last: a run that is interrupted before this begins again with the same result.
    for old in names:
        for part in ("releases", "probes"):
            (service.store / part / f"{old}.json").unlink(missing_ok=True)


def lines_of(text: str) -> list[str]:
    """Return the lines of a file of secrets; unlike `str.splitlines`, only newlines end a line."""
    return text.removesuffix("\n").split("\n") if text else []


def referring(probe: dict, files: list[dict]) -> dict:
    """Return a probe of the earlier form with its key as a reference to the file in ``files``; {} if no file has it."""
    ((kind, options),) = ((kind, options) for kind, options in probe.items() if options)
    key = options.pop("bearer", None)
    for file in files if key else []:
        for line in file["content"].splitlines():
            name, _, value = line.partition("=")
            if value == key:
                return {kind: {**options, "bearer_file": file["path"], "bearer_variable": name}}
    return {} if key else {kind: options}
