"""Which releases and builds are kept, and the way back to one of them.

A release that never becomes ready is replaced by the last verified one. Earlier verified releases are kept for a
rollback; what no kept release uses is removed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path

from ..install import application_source, python_environment
from . import contents, secret_files, serving, store
from .description import PLACES, Refused, but_secrets, digest
from .store import Service

KEPT = 3  # the current release and two before it
NEW = 24 * 3600  # seconds during which a release counts as the newest change
OF_A_RELEASE = ("unit", "files", "engine")  # areas of causes: what a release consists of
BUILT = (application_source.MARKER, python_environment.MARKER)  # every build for a service has one of these


def renewed(service: Service, release: dict) -> dict:
    """Return ``release`` with the current secrets, live files and limits. Raises `Refused` if a secret is gone."""
    current = service.release(service.state()["current"])
    files, secrets = (
        _with_live(release[part], [file for file in current.get(part, []) if file.get("live")])
        for part in ("files", "secrets")
    )
    today = [
        secret_files.outlined(service, {**secret, "content": secret_files.current_text(service, secret)})
        for secret in secrets
    ]
    limits = current.get("limits", release.get("limits", {}))
    return {**release, "files": files, "secrets": today, "limits": limits}


def _with_live(files: list[dict], live: list[dict]) -> list[dict]:
    """Return ``files`` with those of ``live`` in place of the files at the same paths."""
    return [file for file in files if file["path"] not in {file["path"] for file in live}] + live


def confirm(service: Service) -> None:
    """Record that the current release serves, and remove releases that are no longer needed."""
    state = service.state()
    verified = [*_others(service, state), state["current"]]
    # A failed release is kept for inspection until a newer one serves.
    back = _others(service, state) != state["verified"] and state["failed"] != state["current"]
    service.note(verified=verified[-KEPT:], failed=state["failed"] if back else None)
    prune(service)


def _others(service: Service, state: dict) -> list[str]:
    """Return the verified releases that differ from the current one in more than the values of its secrets."""
    return [name for name in state["verified"] if not _same_but_secrets(service, name, state["current"])]


def _same_but_secrets(service: Service, one: str, other: str | None) -> bool:
    known = [service.release(name) for name in (one, other)]
    return one == other or (all(known) and but_secrets(known[0]) == but_secrets(known[1]))


def served_last(service: Service) -> bool:
    """Return whether the current release is the one that served last, whatever the values of its secrets are."""
    state = service.state()
    return bool(state["verified"]) and _same_but_secrets(service, state["verified"][-1], state["current"])


def prune(service: Service) -> None:
    """Remove releases that are not kept, and builds that no kept release uses."""
    needed, gone = _kept_and_gone(service)
    for directory in unused_builds(service):
        shutil.rmtree(directory, ignore_errors=True)
    current = needed.get(service.state()["current"])
    # A live secret is needed only while the current release has it.
    live = {file["path"] for release in needed.values() if current for file in contents.dropped(release, current)}
    stay = {entry["path"] for release in needed.values() for part in PLACES for entry in release[part]}
    for secret in {secret["path"] for release in gone.values() for secret in release["secrets"]} - stay | live:
        Path(secret).unlink(missing_ok=True)
    for name in gone:
        (service.store / "releases" / f"{name}.json").unlink()
        (service.store / "probes" / f"{name}.json").unlink(missing_ok=True)


def _kept_and_gone(service: Service) -> tuple[dict, dict]:
    """Return the stored releases by name: (those that are kept, those that are no longer needed)."""
    state = service.state()
    kept = {*state["verified"], state["current"], state["failed"]}
    stored = {path.stem: service.release(path.stem) for path in (service.store / "releases").glob("*.json")}
    return {n: r for n, r in stored.items() if n in kept}, {n: r for n, r in stored.items() if n not in kept}


def unused_builds(service: Service, wanted: list[dict] | None = None) -> list[Path]:
    """Return programs and environments to which neither a kept release nor one of ``wanted`` refers.

    They belong to releases that are not kept, or they were built for a release that was refused.
    """
    kept, gone = _kept_and_gone(service)
    needed = [*kept.values(), *(wanted or [])]
    found = {Path(link["target"]) for release in gone.values() for link in release["links"]}
    targets = {Path(link["target"]) for release in needed for link in release["links"]} | set(map(Path, service.beside))
    for parent in {target.parent for target in targets if target.parent.is_dir()}:
        found |= {place for place in parent.iterdir() if any((place / marker).is_file() for marker in BUILT)}
    # Services may share a build directory.
    targets |= linked(store.STORE.glob("*/releases/*.json"), but=service.store)
    return sorted(place for place in found - targets if place.is_dir() and not place.is_symlink())


def earlier(service: Service, to: str | None = None) -> str:
    """Return the verified release to go back to: ``to``, or the last one before the current.

    Raises `Refused` if there is none.
    """
    if not service.store.is_dir():
        present = sorted(path.name for path in service.store.parent.glob("*") if path.is_dir())
        raise Refused(f"there is no service {service.name} on this host; there are: {', '.join(present) or 'none'}")
    kept = _others(service, service.state())
    if not kept:
        raise Refused(f"{service.name}: no earlier verified release is kept here, so there is nothing to go back to")
    if to and to not in kept:
        raise Refused(f"{service.name}: release {to} is not kept here; kept are: {', '.join(kept)}")
    return to or kept[-1]


def go_back(service: Service, to: str | None = None) -> str:
    """Restore the last verified release before the current one (or ``to``) and start it; return its name.

    If its secrets have changed since, its name changes too.
    """
    target, current = earlier(service, to), service.release(service.state()["current"])
    old, proof = renewed(service, service.release(target)), service.proof_of(target)
    contents.put(service, old)
    service.store_proof(digest(old), proof)
    contents.take_away(service, current, but=old)
    service.note(current=digest(old))
    # Starting is better than staying down: systemd retries, and what is missing may come back.
    serving.start(service, proof["before_start"], regardless=True)
    return digest(old)


def preview(service: Service, target: str) -> dict:
    """Return the changes of going back to the release ``target``."""
    release = renewed(service, service.release(target))
    diff = [contents.shown(difference) for difference in contents.differences(service, release)]
    return {"changed": True, "release": target, "restarted": f"back to release {target}", "diff": diff}


def roll_back(service: Service) -> dict:
    """Keep the failed release for inspection and start the last verified one; if there is none, stop the service."""
    failed = service.state()["current"]
    service.note(failed=failed)
    if service.state()["verified"]:
        name = go_back(service)
        # The start_timeout of the failed release may be what is wrong with it.
        return {"changed": True, "rolled_back_to": name, "start_timeout": service.proof_of(name)["start_timeout"]}
    serving.stop(service)
    return {"changed": True, "rolled_back_to": None}


def to_go_back_to(service: Service, causes: list[dict], now: float) -> dict:
    """Return the release to go back to as ``target`` and ``why``; both None if the newest release is not to blame.

    ``causes`` are those that the diagnosis found, ``now`` is in seconds since 1970.
    """
    state, nobody = service.state(), {"target": None, "why": None}
    try:
        target = earlier(service)
    except Refused:
        return nobody  # there is none
    if target == state["failed"]:
        return nobody  # a service left it because it did not serve
    if not served_last(service) and state["current"] not in state["verified"]:
        return {"target": target, "why": "the newest release has never served"}
    own = [each for each in causes if each["area"] in OF_A_RELEASE]
    written = service.store / "releases" / f"{state['current']}.json"
    if own and now - written.stat().st_mtime < NEW:
        return {"target": target, "why": f"the newest release is less than a day old: {own[0]['says']}"}
    return nobody


def linked(releases: Iterable[Path], but: Path | None = None) -> set[Path]:
    """Return the directories to which the links of stored ``releases`` point, except those of the store ``but``."""
    files = [path for path in releases if but is None or path.parent.parent != but]
    return {Path(link["target"]) for path in files for link in json.loads(path.read_text())["links"]}


def in_use() -> set[Path]:
    """Return the directories to which stored releases of any service link, such as versions of a program."""
    return linked(store.STORE.glob("*/releases/*.json"))
