#!/usr/bin/python
"""Thin module over module_utils.engines.llama_cpp_build."""

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_cpp_build
short_description: Build llama-server from an archive of llama.cpp's source
description:
  - Downloads the archive, verifies its checksum, builds the server with cmake as O(user) and moves it into
    C(<root>/<version>-<cpu|cuda>) in one step. A build of the same version with other options gets its own directory.
  - If the build exists and its user can run it, it is left unchanged and the network is not used.
  - An interrupted build continues where it stopped; a failed one leaves its log in C(<root>/.work-*).
author: The llm-server maintainers (@llm-server)
options:
  version: {description: The version in the name of the directory., type: str}
  url: {description: The archive of the source (.tar.gz)., type: str}
  checksum: {description: "Its checksum, C(sha256:<64 hexadecimal digits>).", type: str}
  cuda: {description: Whether to build for NVIDIA GPUs., type: bool, default: false}
  options:
    description: Further options of cmake, such as C(-DGGML_NATIVE=ON).
    type: list
    elements: str
    default: []
  jobs:
    description: Number of parallel compilers; 0 means one per processor, as far as the memory allows.
    type: int
    default: 0
  needed_mib: {description: Free disk space in MiB that a new build needs., type: int, default: 2048}
  user: {description: Account that builds; the module's own by default., type: str}
  runs_as: {description: User who must be able to run it., type: str, default: nobody}
  environment:
    description: Environment variables for cmake and compilers, such as C(PATH) or C(CCACHE_DIR).
    type: dict
    default: {}
  ca_path: {description: Certificate authorities to trust for the download., type: path}
  root: {description: Directory of all builds., type: path, default: /opt/llama.cpp}
  state:
    description: V(absent) removes the builds and releases below O(root) that no release of a service needs.
    type: str
    choices: [present, absent]
    default: present
  beside:
    description: With O(state=absent), directories to keep because a service is about to run on them.
    type: list
    elements: path
    default: []
attributes:
  check_mode: {description: Reports whether it would build; does not use the network., support: full}
"""

EXAMPLES = r"""
- name: Build llama-server
  llm.server.llama_cpp_build:
    version: b11669
    url: https://github.com/ggml-org/llama.cpp/archive/b11669.tar.gz
    checksum: sha256:<64 hexadecimal digits>
    cuda: true
    options: [-DCMAKE_CUDA_ARCHITECTURES=89]
"""

RETURN = r"""
path: {description: Directory of this build., type: str, returned: when present, sample: /opt/llama.cpp/b11669-cuda}
"""

import os
import re
import shutil
from pathlib import Path

from ..module_utils.engines.llama_cpp_build import Build, Workshop, jobs, place, unused
from ..module_utils.errors import UserError
from ..module_utils.install.downloads import download
from ..module_utils.quiet_module import QuietModule
from ..module_utils.release.rollback import in_use
from ..module_utils.unprivileged import ANYONE


def main() -> None:
    module = QuietModule(
        argument_spec={
            "version": {"type": "str"},
            "url": {"type": "str"},
            "checksum": {"type": "str"},
            "cuda": {"type": "bool", "default": False},
            "options": {"type": "list", "elements": "str", "default": []},
            "jobs": {"type": "int", "default": 0},
            "needed_mib": {"type": "int", "default": 2048},
            "user": {"type": "str"},
            "runs_as": {"type": "str", "default": ANYONE},
            "environment": {"type": "dict", "default": {}},
            "ca_path": {"type": "path"},
            "root": {"type": "path", "default": "/opt/llama.cpp"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "beside": {"type": "list", "elements": "path", "default": []},
        },
        required_if=[("state", "present", ("version", "url", "checksum"))],
        supports_check_mode=True,
    )
    wanted = module.params
    if wanted["state"] == "absent":
        remove(module, Path(wanted["root"]), wanted["beside"])
    if not re.fullmatch(r"sha256:[0-9a-f]{64}", wanted["checksum"]):
        module.fail_json(msg=f"checksum must be sha256: and 64 hexadecimal digits, not {wanted['checksum']!r}")
    build = Build(wanted["version"], wanted["checksum"], wanted["cuda"], tuple(wanted["options"]))
    shop = Workshop(
        home=Path(wanted["root"]),
        user=wanted["user"],
        runs_as=wanted["runs_as"] or None,
        jobs=jobs(wanted["jobs"], len(os.sched_getaffinity(0)), memory_mib()),
        needed_mib=wanted["needed_mib"],
        environment={name: str(value) for name, value in wanted["environment"].items()},
    )
    changed = not shop.whole(build)
    if changed and not module.check_mode:
        try:
            with shop.lock():
                changed = not shop.whole(build)
                if changed:
                    shop.make(build, lambda target: download(module, wanted["url"], target, wanted["ca_path"]))
        except (UserError, OSError) as error:
            module.fail_json(msg=f"llama.cpp {build.version} ({build.kind}) from {wanted['url']}: {error}")
    directory = place(shop.home, build)
    diff = {"before": "", "after": f"{directory} from {wanted['url']}\n"} if changed else {}
    module.exit_json(changed=changed, path=str(directory), diff=diff)


def remove(module: QuietModule, home: Path, beside: list[str]) -> None:
    """Remove the builds that no release needs, and the directory of all builds if it is empty."""
    unused_builds = unused(home, in_use() | {Path(place) for place in beside})
    if unused_builds and not module.check_mode:
        for place in unused_builds:
            shutil.rmtree(place)
    left = {*home.iterdir()} - {*unused_builds, home / ".lock"} if home.is_dir() else {home}
    if not left and not module.check_mode:
        shutil.rmtree(home)
    module.exit_json(
        changed=bool(unused_builds) or not left,
        diff={"before": "".join(f"{place}\n" for place in unused_builds), "after": ""},
    )


def memory_mib() -> int:
    """Return the memory that is available to programs now, in MiB."""
    found = re.search(r"^MemAvailable: *(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) >> 10 if found else 0


if __name__ == "__main__":
    main()
