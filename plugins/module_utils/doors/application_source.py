"""The module application_source; its options and results are documented with it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ..errors import UserError
from ..install.application_source import EXCLUDED, export, install, made, named
from ..install.downloads import download
from ..install.released_program import sha256
from ..quiet_module import QuietModule
from ..unprivileged import barred, open_up

UNKNOWN = "# known when the source is there\n"
ARGUMENTS = {
    "root": {"type": "path", "required": True},
    "path": {"type": "path"},
    "excluded": {"type": "list", "elements": "str", "default": EXCLUDED},
    "url": {"type": "str"},
    "checksum": {"type": "str"},
    "repository": {"type": "str"},
    "version": {"type": "str"},
    "ca_path": {"type": "path"},
    "uv": {"type": "path", "default": "/opt/uv/current/bin/uv"},
    "user": {"type": "str"},
    "runs_as": {"type": "str"},
    "environment": {"type": "dict", "default": {}},
    "digest": {"type": "str"},
    "file": {"type": "path"},
}


def origin_of(wanted: dict) -> dict:
    """Return the data that names the directory; a mirror of the same archive counts as the same source."""
    if wanted["url"]:
        return {"archive": wanted["checksum"]}
    if wanted["repository"]:
        return {"repository": wanted["repository"], "version": wanted["version"]}
    return {"tree": wanted["digest"]}


def fetch(module: QuietModule, archive: Path) -> Path:
    """Fetch the source as one packed file on this machine; return the file."""
    wanted = module.params
    if wanted["url"]:
        download(module, wanted["url"], archive, wanted["ca_path"])
        found = sha256(archive)
        if found != wanted["checksum"]:
            raise UserError(f"it has {found}, expected {wanted['checksum']}")
        return archive
    if wanted["repository"]:
        export(wanted["repository"], wanted["version"], archive, wanted["user"])
        return archive
    return Path(wanted["file"])


def bring(module: QuietModule, origin: dict, directory: Path) -> dict:
    """Fetch the source and make ``directory`` from it; return its record. Raises UserError or OSError."""
    wanted = module.params
    open_up(directory.parent)
    closed = barred(directory.parent, wanted["runs_as"] or wanted["user"])
    if closed:
        raise UserError(closed)
    with tempfile.TemporaryDirectory(prefix=".fetched-", dir=directory.parent) as stage:
        archive = fetch(module, Path(stage) / "archive")
        return install(archive, origin, directory, wanted["uv"], wanted["user"])


def main() -> None:
    module = QuietModule(
        argument_spec=ARGUMENTS,
        mutually_exclusive=[("path", "url", "repository")],
        required_one_of=[("path", "url", "repository")],
        required_together=[("url", "checksum"), ("repository", "version")],
        supports_check_mode=True,
    )
    wanted = module.params
    os.environ.update({key: str(value) for key, value in wanted["environment"].items()})
    origin = origin_of(wanted)
    directory = Path(wanted["root"]) / named(origin)
    noted = None if barred(directory / "app/main.py", wanted["runs_as"] or wanted["user"], "r") else made(directory)
    result = {
        "changed": noted is None,
        "path": str(directory),
        "requirements": (noted or {}).get("requirements", UNKNOWN),
    }
    if noted is None:
        place = wanted["url"] or wanted["repository"] or wanted["path"]
        result["diff"] = {"before": "", "after": f"{directory} from {place}\n"}
        if module.check_mode:
            module.exit_json(**result)
        if wanted["path"] and not wanted["file"]:
            module.exit_json(**result, send=True)
        try:
            noted = bring(module, origin, directory)
        except (UserError, OSError) as error:
            module.fail_json(msg=f"the application's source {place}: {error}")
        result["requirements"] = noted["requirements"]
    module.exit_json(**result)
