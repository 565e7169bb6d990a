#!/usr/bin/python
"""Thin module over module_utils.install.application_source; the action plugin sends a tree to the host if needed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: application_source
short_description: Install one version of an application's source into a directory of its own
description:
  - Creates C(<root>/<digest>) from a tree on the controller, an archive or a git repository. The directory is complete
    or absent, belongs to root and is never changed in place. A link switches the service to it; see
    M(llm.server.service_release).
  - If the directory exists and its user can read it, it is left unchanged; nothing is sent and the network is not used.
  - The application has C(app/main.py), and its requirements with hashes in C(uv.lock) (with C(pyproject.toml)) or in
    C(requirements.txt).
author: The llm-server maintainers (@llm-server)
options:
  root: {description: Directory of the sources., type: path, required: true}
  path: {description: The tree on the controller., type: path}
  excluded:
    description: Patterns of names or paths that are left out of the tree.
    type: list
    elements: str
    default: [.git, .venv, .env, __pycache__, "*.pyc", .pytest_cache, .ruff_cache, .mypy_cache]
  url: {description: An archive (.tar.gz or .zip)., type: str}
  checksum: {description: "Its checksum, C(sha256:<64 hexadecimal digits>).", type: str}
  repository: {description: URL of a git repository., type: str}
  version: {description: A tag of the repository or the 40 digits of a commit., type: str}
  ca_path: {description: Certificate authorities to trust for the archive., type: path}
  uv: {description: The uv program., type: path, default: /opt/uv/current/bin/uv}
  user: {description: User who clones and reads uv.lock., type: str}
  runs_as: {description: User who must be able to read the source; O(user) by default., type: str}
  environment: {description: "Variables for downloads, git and uv: proxy, certificates.", type: dict, default: {}}
  digest: {description: Digest of the tree; set by the action plugin., type: str}
  file: {description: The packed tree on the target; set by the action plugin., type: path}
attributes:
  check_mode: {description: Reports whether it would create the directory; does not use the network., support: full}
"""

EXAMPLES = r"""
- name: Install the application's source
  llm.server.application_source:
    root: /app/ai-server/releases
    repository: https://git.example.com/ai-server.git
    version: v1.4.0
    user: ai-server
  register: __source
"""

RETURN = r"""
path: {description: Directory of the source., type: str, returned: always, sample: /app/ai-server/releases/3f2a9b01c4de}
requirements:
  description: Text of the requirements with hashes; in check mode a comment if the source is not installed yet.
  type: str
  returned: always
"""

import os
import tempfile
from pathlib import Path

from ..module_utils.errors import UserError
from ..module_utils.install.application_source import EXCLUDED, export, install, made, named
from ..module_utils.install.downloads import download
from ..module_utils.install.released_program import sha256
from ..module_utils.quiet_module import QuietModule
from ..module_utils.unprivileged import barred, open_up

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


if __name__ == "__main__":
    main()
