"""The user, the groups and the directories of a service.

What exists already is used unchanged and never removed. The store records what was created, and what the service needs
even if another service created it.
"""

from __future__ import annotations

import grp
import pwd
import shutil
from pathlib import Path

from ..unprivileged import group_of
from . import contents, systemd_unit
from .description import Refused
from .store import Service


def need(service: Service, user: str | None, directories: list[dict]) -> None:
    """Record what the service uses, so that it stays when another service that created it is removed."""
    if not recorded(service, user, directories):
        service.note(needs=_needs(user, directories))


def recorded(service: Service, user: str | None, directories: list[dict]) -> bool:
    """Return whether the record has what the service uses."""
    return service.state()["needs"] == _needs(user, directories)


def _needs(user: str | None, directories: list[dict]) -> dict:
    return {"user": user, "directories": sorted({entry["path"] for entry in directories})}


def missing_user(user: str | None) -> bool:
    return bool(user) and user not in accounts()


def check_accounts(service: Service, entries: list[dict], user: str | None, groups: list[str]) -> None:
    """Raise `Refused` if the host lacks an owner or a group of ``entries``, or one of ``groups`` to join.

    ``user`` and the group of that name are created if they are missing, so they do not count.
    """
    for entry in entries:
        told = f"on this host, to which {entry['path']} is to belong; create it or name another"
        if entry["owner"] not in (user, "root") and entry["owner"] not in accounts():
            raise Refused(f"{service.name}: there is no user {entry['owner']} {told}")
        if entry["group"] not in (user, "root") and not has_group(entry["group"]):
            raise Refused(f"{service.name}: there is no group {entry['group']} {told}")
    missing = [name for name in groups if not has_group(name)]
    if missing:
        variable = f"{service.name.replace('-', '_')}_groups"
        raise Refused(
            f"{service.name}: there is no group {', '.join(missing)} on this host for the service to join; "
            f"create it, or take it out of {variable}"
        )


def add_user(service: Service, user: str, home: str) -> None:
    """Create the service's user in a group of the same name; an existing user is not recorded as created."""
    there = has_group(user)
    own = ["--gid", user] if there else ["--user-group"]
    systemd_unit.run(
        "useradd", "--system", *own, "--no-create-home", "--home-dir", home, "--shell", "/usr/sbin/nologin", user
    )
    service.note(created={**service.state()["created"], "user": user, "group": None if there else user})


def wrong_directories(directories: list[dict]) -> list[dict]:
    """Return the directories that do not exist, or with another owner, group or mode."""
    return [
        entry
        for entry in directories
        if not Path(entry["path"]).is_dir()
        or contents.attributes(Path(entry["path"])) != (entry["mode"], entry["owner"], entry["group"])
    ]


def put_directory(service: Service, entry: dict) -> None:
    path = Path(entry["path"])
    missing = [parent for parent in reversed(path.parents) if not parent.exists()]
    made = [{"path": str(parent), "keep": False, "declared": False} for parent in missing]
    if not path.exists():
        made.append({"path": str(path), "keep": entry["keep"], "declared": True})
    # Recorded first: an interrupted run must not leave a directory that is never removed.
    created = service.state()["created"]
    service.note(created={**created, "directories": created["directories"] + made})
    for parent in missing:
        parent.mkdir(mode=0o755)
    path.mkdir(exist_ok=True)
    path.chmod(int(entry["mode"], 8))
    shutil.chown(path, entry["owner"], entry["group"])


class Accounts:
    """The users that the host knows, from any source: a directory service does not list all of its users."""

    def __contains__(self, name: object) -> bool:
        try:
            return bool(name) and bool(pwd.getpwnam(str(name)))
        except KeyError:
            return False


def accounts() -> Accounts:
    return Accounts()


def has_group(name: str) -> bool:
    try:
        return bool(grp.getgrnam(name))
    except KeyError:
        return False


def settle_groups(service: Service, wanted: dict) -> None:
    """Check the users and groups, and replace a user that is named as a group by the user's own group."""
    entries = [entry for part in ("directories", "files", "secrets") for entry in wanted.get(part) or []]
    for entry in entries:
        entry["group"] = group_of(entry["group"])
    if wanted.get("state") != "absent":
        check_accounts(service, entries, wanted["user"], wanted.get("groups") or [])


def prepare(service: Service, wanted: dict, new_user: bool, directories: list[dict]) -> None:
    """Create the user if it is a ``new_user`` and set up the ``directories``; record what the service needs."""
    if new_user:
        add_user(service, wanted["user"], wanted["home"])
    for entry in directories:
        put_directory(service, entry)
    need(service, wanted["user"], wanted["directories"])
