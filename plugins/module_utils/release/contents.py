"""The contents of a release on the disk: describe them, compare them, write them, take them away.

A file or a secret may be *live*: the process reads it again while it runs. It is not part of the release. Changing,
adding or removing it restarts nothing, and a rollback keeps the current one.
"""

from __future__ import annotations

import grp
import pwd
from pathlib import Path

from .. import atomic_file, unprivileged
from ..install import released_program
from . import secret_files, store, systemd_unit
from .description import PLACES, described, digest, environment_of, private, unit_text
from .store import Service, write

AT_BOOT = " at boot"


def build(
    service: Service, files: list[dict], links: list[dict], unit: dict, secrets=(), inputs=None, groups=(), peers=(),
    limits=None, timer=None,
) -> dict:  # fmt: skip
    """Return the release that the arguments describe."""
    sections = {key: dict(value or {}) for key, value in unit.items()}
    own = sections.setdefault("Service", {})
    if own.get("Group"):
        own["Group"] = unprivileged.group_of(own["Group"])
    if groups:
        own["SupplementaryGroups"] = " ".join(groups)
    if peers:
        # Accounting shows whether systemd can filter on this host; see `systemd_unit.address_filter`.
        own |= {"IPAccounting": "yes", "IPAddressDeny": "any", "IPAddressAllow": " ".join(peers)}
    given = own.get("EnvironmentFile") or []
    own["EnvironmentFile"] = [*(given if isinstance(given, list) else [given]), str(service.environment)]
    return {
        # Attributes that a file does not have are left out, so that a release from before they existed keeps its
        # digest.
        "files": [
            {**described(file), "content": file["content"], **({"live": True} if file.get("live") else {})}
            for file in files
        ],
        "secrets": [secret_files.outlined(service, file) for file in secrets],
        # The same version from another archive is a different program.
        "links": [
            {
                "path": link["path"],
                "target": link["target"],
                "archive": released_program.installed_checksum(Path(link["target"])),
            }
            for link in links
        ],
        "inputs": {name: str(value) for name, value in (inputs or {}).items()},
        "unit": systemd_unit.render(sections, systemd_unit.TIMED if timer else None),
        **({"timer": systemd_unit.render(timer, systemd_unit.TIMER)} if timer else {}),
        "limits": dict(limits or {}),
    }


def differences(service: Service, release: dict) -> list[dict]:
    """Return where the disk differs from ``release``: what, before, after (None if there is nothing), secret."""
    found = []
    for file in [*release["files"], *_unit_files(service, release)]:
        path = Path(file["path"])
        before = _text_of(path)
        if before != file["content"] or attributes(path) != (file["mode"], file["owner"], file["group"]):
            found.append({"what": str(path), "before": before, "after": file["content"], "secret": private(file)})
    for secret in release["secrets"]:
        path = Path(secret["path"])
        if secret_files.outline_on_disk(service, secret) != secret["lines"] or attributes(path) != (
            secret["mode"],
            secret["owner"],
            secret["group"],
        ):
            found.append({"what": str(path), "before": None, "after": None, "secret": True})
    for link in release["links"]:
        before = atomic_file.leads_to(Path(link["path"]))
        if before != link["target"]:
            found.append({"what": link["path"], "before": before, "after": link["target"], "secret": False})
    current = service.release(service.state()["current"])
    for file in dropped(current, release):
        if Path(file["path"]).is_file():
            secret = "content" not in file
            found.append({"what": file["path"], "before": file.get("content"), "after": None, "secret": secret})
    before = current.get("inputs", release["inputs"])
    for name in sorted({*before, *release["inputs"]}):
        if before.get(name) != release["inputs"].get(name):
            values = {"before": before.get(name), "after": release["inputs"].get(name)}
            found.append({"what": f"input {name!r}", **values, "secret": False})
    text = environment_of(release)
    if not found and (not service.environment.is_file() or service.environment.read_text() != text):
        found.append({"what": str(service.environment), "before": None, "after": text, "secret": False})
    if release.get("limits") and systemd_unit.unscored(service.unit):
        found.append({"what": "OOM score", "before": None, "after": None, "secret": False})
    main = service.main_unit(release)
    if systemd_unit.show(main).get("UnitFileState") != "enabled":
        found.append({"what": f"{main}{AT_BOOT}", "before": "off", "after": "on", "secret": False})
    return found


def dropped(release: dict, but: dict) -> list[dict]:
    """Return the live files and secrets of ``release`` (which may be {}) that ``but`` does not have."""
    stay = {file["path"] for part in ("files", "secrets") for file in but[part]}
    files = [file for part in ("files", "secrets") for file in release.get(part, [])]
    return [file for file in files if file.get("live") and file["path"] not in stay]


def besides_live(service: Service, release: dict, differences: list[dict]) -> bool:
    """Return whether ``differences`` has anything but live files and secrets, new, changed or removed ones."""
    files = [*release["files"], *release["secrets"], *dropped(service.release(service.state()["current"]), release)]
    live = {file["path"] for file in files if file.get("live")}
    return not {difference["what"] for difference in differences} <= live


def _text_of(path: Path) -> str | None:
    return path.read_text(errors="replace") if path.is_file() else None


def _unit_files(service: Service, release: dict) -> list[dict]:
    texts = {service.unit_path: unit_text(release)}
    if release.get("timer"):
        texts[service.timer_path] = release["timer"]
    owned = {"mode": "0644", "owner": "root", "group": "root"}
    return [{"path": str(path), "content": text, **owned} for path, text in texts.items()]


def put(service: Service, release: dict, texts: dict | None = None) -> None:
    """Write every file, link and the unit of ``release``, each in one step.

    ``texts`` has the secrets by path. Without it the secrets on the disk stay, with the release's owner and mode.
    """
    service.keep(release)
    if release.get("timer") and _text_of(service.timer_path) not in (None, release["timer"]):
        # A running timer that gets new times may find that it missed one, and start the service at once.
        systemd_unit.run("systemctl", "stop", service.timer, check=False)
    for file in [*release["files"], *_unit_files(service, release)]:
        write(Path(file["path"]), file["content"], int(file["mode"], 8), file["owner"], file["group"])
    for secret in release["secrets"]:
        text = secret_files.current_text(service, secret) if texts is None else texts[secret["path"]]
        write(Path(secret["path"]), text, int(secret["mode"], 8), secret["owner"], secret["group"])
    for link in release["links"]:
        atomic_file.link(Path(link["path"]), link["target"])
    write(service.environment, environment_of(release), 0o600)
    # A reload applies the memory limit to running processes, but not the OOM score.
    systemd_unit.run("systemctl", "daemon-reload")
    if release.get("limits"):
        systemd_unit.score(service.unit)
    systemd_unit.run("systemctl", "enable", service.main_unit(release))


def take_away(service: Service, release: dict, but: dict | None = None) -> None:
    """Remove the files and links of ``release`` that ``but`` does not have.

    A secret file stays as long as a kept release needs it, since its text is stored nowhere else; see `rollback.prune`.
    """
    stay = {entry["path"] for part in PLACES for entry in (but or {}).get(part, [])}
    if but and digest(but) == digest(release):
        # The process goes on without them. A release that is replaced has them until the next one serves.
        for file in dropped(release, but):
            Path(file["path"]).unlink(missing_ok=True)
    for entry in [*release["files"], *release["links"]]:
        path = Path(entry["path"])
        if entry["path"] not in stay:
            if (
                path.parent == store.UNITS and path.exists()
            ):  # such as a timer, which would keep running without its file
                systemd_unit.run("systemctl", "stop", path.name, check=False, timeout=300)
            path.unlink(missing_ok=True)
    main = service.main_unit(release)
    if main == service.timer if but is None else main != service.main_unit(but):
        systemd_unit.run("systemctl", "disable", "--now", main, check=False)
    if release.get("timer") and not (but or {}).get("timer"):
        service.timer_path.unlink(missing_ok=True)


def attributes(path: Path) -> tuple[str, str, str] | None:
    """Return ``(mode, owner, group)`` as a playbook writes them, or None if the path does not exist."""
    try:
        seen = path.stat()
    except OSError:
        return None
    try:
        owner, group = pwd.getpwuid(seen.st_uid).pw_name, grp.getgrgid(seen.st_gid).gr_name
    except KeyError:
        owner, group = str(seen.st_uid), str(seen.st_gid)
    return f"{seen.st_mode & 0o7777:04o}", owner, group


def shown(difference: dict) -> dict:
    """Return a difference in the form of a task's diff; of a secret it says only that it differs."""
    what = difference["what"]
    if difference["secret"]:
        return {"prepared": f"{what}: secret, its text is not shown\n"}
    return {
        "before_header": what,
        "after_header": what,
        "before": (difference["before"] or "").rstrip("\n") + "\n" if difference["before"] else "",
        "after": (difference["after"] or "").rstrip("\n") + "\n",
    }
