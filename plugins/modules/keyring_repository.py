#!/usr/bin/python
"""Thin module over module_utils.install.keyring_repository."""

from __future__ import annotations

DOCUMENTATION = r"""
module: keyring_repository
short_description: Register an apt repository through its keyring package
description:
  - Downloads the keyring package and verifies its checksum, then lets apt read and verify the repository with that key
    in a separate directory. Only then it installs the package, writes the source and fetches the repository's index.
  - Entries of the same origin in other files, such as one made for apt-key, are commented out, because apt stops at
    conflicting values of Signed-By. O(state=absent) restores them.
  - Does not use the network if nothing has to change.
  - "Source: sources.list(5)."
author: The llm-server maintainers (@llm-server)
options:
  package: {description: The keyring package., type: str, required: true}
  version: {description: Its version., type: str, required: true}
  url: {description: Download address of the package., type: str, required: true}
  checksum: {description: "Its checksum, C(sha256:<64 hexadecimal digits>); for O(state=present).", type: str}
  keyring: {description: The keyring that the package installs., type: path, required: true}
  source: {description: The file with apt sources that registers the repository., type: path, required: true}
  uri: {description: "Address of the flat repository, or of a mirror of it.", type: str, required: true}
  origin:
    description: Text that is in the addresses of all entries of this origin, also those of a mirror.
    type: str
    required: true
  ca_path: {description: Certificate authorities to trust for the download and for apt's access., type: path}
  lock_timeout: {description: Seconds to wait for another program that holds apt's lock., type: int, default: 600}
  state:
    description: V(absent) purges the package and restores what was commented out.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode: {description: Shows what would change; does not use the network., support: full}
  diff_mode: {description: Shows the files with apt sources., support: full}
"""

EXAMPLES = r"""
- name: Register NVIDIA's repository
  llm.server.keyring_repository:
    package: cuda-keyring
    version: 1.1-1
    url: https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2204/x86_64/cuda-keyring_1.1-1_all.deb
    checksum: sha256:<64 hexadecimal digits>
    keyring: /usr/share/keyrings/cuda-archive-keyring.gpg
    source: /etc/apt/sources.list.d/cuda-ubuntu2204-x86_64.list
    uri: https://developer.download.nvidia.com/compute/cuda/repos/ubuntu2204/x86_64/
    origin: developer.download.nvidia.com/compute/cuda/repos/
"""

RETURN = r"""
installed:
  description: Version of the keyring package that was installed before; null if there was none.
  type: str
  returned: success
  sample: 1.1-1
set_aside:
  description: Files with entries that were commented out, or restored with O(state=absent).
  type: list
  elements: str
  returned: success
  sample: [/etc/apt/sources.list.d/cuda.list]
"""

import hashlib
import re
import subprocess
import tempfile
from http.client import HTTPException
from pathlib import Path

from ansible.module_utils.urls import fetch_url

from ..module_utils import host_text
from ..module_utils.errors import UserError
from ..module_utils.install.keyring_repository import Apt, Repository, keyring_of
from ..module_utils.quiet_module import QuietModule

SILENCE_LIMIT = 30  # seconds without a byte
ARGUMENTS = {
    "package": {"type": "str", "required": True},
    "version": {"type": "str", "required": True},
    "url": {"type": "str", "required": True},
    "checksum": {"type": "str"},
    "keyring": {"type": "path", "required": True, "no_log": False},
    "source": {"type": "path", "required": True},
    "uri": {"type": "str", "required": True},
    "origin": {"type": "str", "required": True},
    "ca_path": {"type": "path"},
    "lock_timeout": {"type": "int", "default": 600},
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
}


def download(module: QuietModule) -> bytes:
    """Return the keyring package. Raises UserError if the download fails or the checksum differs."""
    url, checksum = module.params["url"], module.params["checksum"]
    answer, info = fetch_url(module, url, timeout=SILENCE_LIMIT, ca_path=module.params["ca_path"])
    if info["status"] != 200:
        raise UserError(f"{url} cannot be had: {info['msg']}; check the address or the mirror")
    try:
        package = answer.read()
    except (OSError, HTTPException) as error:
        raise UserError(f"the download of {url} broke off: {error}; run again") from None
    found = f"sha256:{hashlib.sha256(package).hexdigest()}"
    if found != checksum:
        raise UserError(f"{url} has the checksum {found}, expected was {checksum}; it is not installed")
    return package


def register(module: QuietModule, apt: Apt, texts: dict[str, tuple[str, str]], new: bool) -> None:
    """Verify the repository, then install the package, write the source and update the index."""
    keyring = apt.repository.keyring
    with tempfile.TemporaryDirectory(prefix="keyring-") as work:
        if new:
            package, key = Path(work) / "keyring.deb", Path(work) / "keyring.gpg"
            package.write_bytes(download(module))
            tree = subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], capture_output=True, check=False)
            key.write_bytes(keyring_of(tree.stdout, keyring))
            key.parent.chmod(0o755)
            apt.try_out(key)
            apt.install(package)
            texts = apt.differences("present")
        else:
            apt.try_out(Path(keyring))
    apt.write(texts)
    apt.update()


def differences(texts: dict[str, tuple[str, str]]) -> list[dict]:
    """Return the changed files in the form of Ansible's diff."""
    return [
        {
            "before_header": path,
            "after_header": path,
            "before": host_text.printable(before),
            "after": host_text.printable(after),
        }
        for path, (before, after) in texts.items()
    ]


def main() -> None:
    module = QuietModule(
        argument_spec=ARGUMENTS,
        required_if=[("state", "present", ("checksum",))],
        supports_check_mode=True,
    )
    wanted = module.params
    present = wanted["state"] == "present"
    if present and not re.fullmatch(r"sha256:[0-9a-f]{64}", wanted["checksum"]):
        module.fail_json(msg=f"checksum must be sha256: and 64 hexadecimal digits, not {wanted['checksum']!r}")
    names = ("package", "version", "keyring", "source", "uri", "origin")
    repository = Repository(*(wanted[name] for name in names), wanted["ca_path"] or "")
    apt = Apt(repository, patience=wanted["lock_timeout"])
    installed = apt.installed()
    texts = apt.differences(wanted["state"])
    new = installed != wanted["version"]
    changed = bool(texts) or (new or not apt.indexed() if present else apt.known() or apt.indexed())
    if changed and not module.check_mode:
        try:
            if present:
                register(module, apt, texts, new)
            else:
                apt.purge()
                apt.write(texts)
        except (UserError, OSError) as error:
            module.fail_json(msg=f"{wanted['package']} {wanted['version']}: {error}")
    module.exit_json(
        changed=changed,
        installed=installed,
        set_aside=[path for path in texts if path not in (wanted["source"], repository.settings)],
        diff=differences(texts),
    )


if __name__ == "__main__":
    main()
