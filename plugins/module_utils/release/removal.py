"""Remove a service: its releases, its unit, and what was created for it and is used by no other service."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from . import account, contents, store, systemd_unit
from .store import Service


def removable(service: Service, purge: bool) -> bool:
    """Return whether `remove` would remove anything of the service."""
    return (
        _own_unit(service)
        or any((service.store / "releases").glob("*.json"))
        or any(_goes(entry, _kept(service, purge)) for entry in service.state()["created"]["directories"])
    )


def _own_unit(service: Service) -> bool:
    return service.unit_path.exists() and not service.unit_path.is_symlink()


def _kept(service: Service, purge: bool) -> list[Path]:
    entries = service.state()["created"]["directories"]
    return [] if purge else [Path(entry["path"]) for entry in entries if entry["keep"]]


def _goes(entry: dict, kept: list[Path]) -> bool:
    """Return whether a created directory is removed: a declared one without kept data, any other only if empty."""
    path = Path(entry["path"])
    if entry["declared"] and not any(data.is_relative_to(path) for data in kept):
        return path.exists()
    return path.is_dir() and not any(path.iterdir())


def remove(service: Service, purge: bool) -> bool:
    """Remove the service; return whether there was anything. Kept data stays unless ``purge``."""
    changed, kept, state = removable(service, purge), _kept(service, purge), service.state()
    if service.main_unit() != service.unit:  # first: it would start the service again
        systemd_unit.run("systemctl", "disable", "--now", service.timer, check=False)
    if _own_unit(service):
        systemd_unit.run("systemctl", "disable", "--now", service.unit, check=False)
        systemd_unit.run("systemctl", "reset-failed", service.unit, check=False)
    elif state["current"]:
        # The link belongs to someone else, and disabling would remove it.
        systemd_unit.run("systemctl", "stop", service.unit, check=False, timeout=300)
    for path in (service.store / "releases").glob("*.json"):
        release = json.loads(path.read_text())
        contents.take_away(service, release)
        for secret in release.get("secrets", []):
            Path(secret["path"]).unlink(missing_ok=True)
    if _own_unit(service):
        service.unit_path.unlink()
        systemd_unit.run("systemctl", "daemon-reload")
    created = _bequeath(service, state["created"])
    for entry in reversed(created["directories"]):
        if _goes(entry, kept):
            shutil.rmtree(entry["path"], ignore_errors=True)
    left = [entry for entry in created["directories"] if Path(entry["path"]).exists()]
    data = any(entry["keep"] for entry in left)
    # Data without an owner would belong to the next user who gets the number.
    if created["user"] in account.accounts() and not data:
        if created.get("group", created["user"]) != created["user"]:
            # userdel also removes a user's own group of the same name, and this group existed before.
            systemd_unit.run("usermod", "--gid", "nogroup", created["user"], check=False)
        systemd_unit.run("userdel", created["user"], check=False)
    shutil.rmtree(service.store, ignore_errors=True)
    if data:
        # Kept data can still be purged later.
        service.note(created={**created, "directories": left})
    for path in (service.store.parent, service.store.parent.parent):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    return changed


def _bequeath(service: Service, created: dict) -> dict:
    """Pass what other services need on to the first of them; return what only this service uses."""
    own = {**created, "directories": list(created["directories"])}
    for path in sorted({*store.STORE.glob("*/state.json")} - {service.store / "state.json"}):
        heir = Service(path.parent.name)
        state = heir.state()
        user, needed = state["needs"]["user"], state["needs"]["directories"]
        heirs = {**state["created"], "directories": list(state["created"]["directories"])}
        left = [entry for entry in own["directories"] if _holds(entry["path"], needed)]
        heirs["directories"] = left + heirs["directories"]
        own["directories"] = [entry for entry in own["directories"] if entry not in left]
        if user and user == own["user"]:
            heirs |= {"user": user, "group": own.get("group", user)}
            own["user"] = None
        if heirs != state["created"]:
            heir.note(created=heirs)
    return own


def _holds(path: str, needed: list[str]) -> bool:
    """Return whether a directory is one of ``needed`` or a parent of one."""
    return any(Path(one).is_relative_to(path) for one in needed)
