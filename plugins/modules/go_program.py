#!/usr/bin/python
"""Thin module over module_utils.install.go_program."""

from __future__ import annotations

DOCUMENTATION = r"""
module: go_program
short_description: Build a Go program from a tag of its git repository
description:
  - Fetches the tag, verifies its commit, builds with the given Go toolchain and moves the result into
    C(<root>/<name>/<version>-<digest>) in one step. The digest covers all inputs of the build.
  - If the build exists and its user can run it, it is left unchanged and the network is not used.
  - Only the finished program stays; sources, modules and caches of the build are removed.
author: The llm-server maintainers (@llm-server)
options:
  name: {description: "The program, and its directory below O(root).", type: str, required: true}
  version: {description: The tag., type: str, required: true}
  source: {description: URL of the git repository., type: str, required: true}
  commit: {description: Commit of the tag in 40 hexadecimal digits., type: str, required: true}
  package: {description: "The Go package, relative to the repository.", type: str, default: .}
  ldflags: {description: "Linker flags, as in C(go build -ldflags).", type: str, default: ""}
  says: {description: Text that the built program's C(--version) must contain., type: str, default: ""}
  program: {description: File name of the program; O(name) by default., type: str}
  go: {description: Root of the Go toolchain., type: path, required: true}
  go_version: {description: Its version., type: str, required: true}
  user: {description: Account that builds and runs it; the module's own by default., type: str}
  environment:
    description: Environment variables for git and Go, such as C(GOPROXY), C(GOFLAGS) or C(HTTPS_PROXY).
    type: dict
    default: {}
  root: {description: Directory of all programs., type: path, default: /opt}
attributes:
  check_mode: {description: Reports whether it would build; does not use the network., support: full}
"""

EXAMPLES = r"""
- name: Build dcgm-exporter
  llm.server.go_program:
    name: dcgm_exporter
    program: dcgm-exporter
    version: 3.3.9-3.6.1
    source: https://github.com/NVIDIA/dcgm-exporter.git
    commit: b97b7633e3f39f7a537bd77561cc0ec0c2dca3f5
    package: ./cmd/dcgm-exporter
    ldflags: -X main.BuildVersion=3.3.9-3.6.1
    go: /opt/dcgm_exporter/go/1.23.12
    go_version: 1.23.12
"""

RETURN = r"""
path:
  description: Directory of this build.
  type: str
  returned: always
  sample: /opt/dcgm_exporter/3.3.9-3.6.1-5f1d20cb
"""

import re
from pathlib import Path

from ..module_utils.errors import UserError
from ..module_utils.install.go_program import Build, Workshop
from ..module_utils.quiet_module import QuietModule


def main() -> None:
    module = QuietModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "version": {"type": "str", "required": True},
            "source": {"type": "str", "required": True},
            "commit": {"type": "str", "required": True},
            "package": {"type": "str", "default": "."},
            "ldflags": {"type": "str", "default": ""},
            "says": {"type": "str", "default": ""},
            "program": {"type": "str"},
            "go": {"type": "path", "required": True},
            "go_version": {"type": "str", "required": True},
            "user": {"type": "str"},
            "environment": {"type": "dict", "default": {}},
            "root": {"type": "path", "default": "/opt"},
        },
        supports_check_mode=True,
    )
    options = module.params
    if not re.fullmatch(r"[0-9a-f]{40}", options["commit"]):
        module.fail_json(msg=f"commit must be 40 hexadecimal digits, not {options['commit']!r}")
    build = Build(
        name=options["program"] or options["name"],
        version=options["version"],
        source=options["source"],
        commit=options["commit"],
        package=options["package"],
        toolchain=options["go_version"],
        ldflags=options["ldflags"],
        says=options["says"],
    )
    environment = {name: str(value) for name, value in options["environment"].items()}
    home = Path(options["root"]) / options["name"]
    shop = Workshop(home, Path(options["go"]), options["user"], environment)
    directory = home / build.directory_name
    changed = not shop.whole(build)
    if changed and not module.check_mode:
        try:
            with shop.lock():
                changed = not shop.whole(build)
                if changed:
                    shop.make(build)
        except (UserError, OSError, KeyError) as error:
            module.fail_json(msg=f"{build.name} {build.version} cannot be built: {error}")
    diff = {"before": "", "after": f"{directory} from {build.source} {build.commit}\n"} if changed else {}
    module.exit_json(changed=changed, path=str(directory), diff=diff)


if __name__ == "__main__":
    main()
