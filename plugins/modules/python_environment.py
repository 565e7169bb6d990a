#!/usr/bin/python
"""Thin module over module_utils.install.python_environment."""

from __future__ import annotations

DOCUMENTATION = r"""
module: python_environment
short_description: Build a virtual environment next to the running one
description:
  - Creates C(<root>/<digest>) from a set of requirements, as the user who will run it, and returns its path. The digest
    covers all inputs of the environment.
  - If the environment exists and its user can run it, it is left unchanged and no package index is used. Nothing is
    changed in place, so a service keeps running on the old environment until its link is switched; see
    M(llm.server.service_release).
author: The llm-server maintainers (@llm-server)
options:
  root: {description: Directory of the environments., type: path, required: true}
  requirements: {description: Text of a requirements file., type: str, required: true}
  overrides: {description: Text of a requirements file that overrides requirements of packages (uv only)., type: str}
  constraints: {description: Text of a constraints file., type: str}
  hashes: {description: Whether every requirement has hashes and they are checked., type: bool, default: false}
  imports: {description: Modules that must be importable at the end., type: list, elements: str, default: []}
  installer: {description: Program that installs the packages., type: str, choices: [uv, pip], default: uv}
  uv: {description: The uv program., type: path, default: /opt/uv/current/bin/uv}
  python: {description: Interpreter of the environment., type: str, default: /usr/bin/python3}
  user: {description: User who builds., type: str}
  runs_as: {description: User who must be able to run it; O(user) by default., type: str}
  environment: {description: "Variables for the installer: index, proxy, cache, certificates.", type: dict, default: {}}
  link:
    description: A link that then leads to the environment. A service's own link is an option of its release instead.
    type: path
  needed_mib: {description: Free disk space in MiB that is required before the build., type: int, default: 200}
attributes:
  check_mode: {description: Reports whether it would build; does not use the network., support: full}
"""

EXAMPLES = r"""
- name: Build the environment
  llm.server.python_environment:
    root: /app/ai-server/environments
    requirements: "{{ lookup('ansible.builtin.file', 'requirements.txt') }}"
    hashes: true
    imports: [app.main]
    user: ai-server
  register: __environment
"""

RETURN = r"""
path: {description: The environment., type: str, returned: always, sample: /app/ai-server/environments/3f2a9b01c4de}
"""

from pathlib import Path

from ..module_utils import atomic_file
from ..module_utils.errors import UserError
from ..module_utils.install.python_environment import Builder, complete, digest
from ..module_utils.quiet_module import QuietModule


def main() -> None:
    module = QuietModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "requirements": {"type": "str", "required": True},
            "overrides": {"type": "str"},
            "constraints": {"type": "str"},
            "hashes": {"type": "bool", "default": False},
            "imports": {"type": "list", "elements": "str", "default": []},
            "installer": {"type": "str", "choices": ["uv", "pip"], "default": "uv"},
            "uv": {"type": "path", "default": "/opt/uv/current/bin/uv"},
            "python": {"type": "str", "default": "/usr/bin/python3"},
            "user": {"type": "str"},
            "runs_as": {"type": "str"},
            "environment": {"type": "dict", "default": {}},
            "link": {"type": "path"},
            "needed_mib": {"type": "int", "default": 200},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    inputs = {
        key: wanted[key]
        for key in ("requirements", "overrides", "constraints", "hashes", "imports", "installer", "python")
    }
    directory = Path(wanted["root"]) / digest(inputs)
    runs_as = wanted["runs_as"] or wanted["user"]
    link = Path(wanted["link"]) if wanted["link"] else None
    missing = not complete(directory, runs_as)
    misplaced = link is not None and atomic_file.leads_to(link) != str(directory)
    if missing and not module.check_mode:
        variables = {key: str(value) for key, value in wanted["environment"].items()}
        builder = Builder(wanted["installer"], wanted["uv"], wanted["python"], wanted["user"], variables, runs_as)
        try:
            builder.build(directory, inputs, wanted["needed_mib"])
        except (UserError, OSError) as error:
            module.fail_json(msg=f"{directory}: {error}")
    if misplaced and not module.check_mode:
        try:
            atomic_file.link(link, directory)
        except OSError as error:
            module.fail_json(msg=f"{link} does not lead to {directory}: {error}")
    diff = {"before": "", "after": f"{directory}\n{wanted['requirements'][:2000]}"} if missing else {}
    module.exit_json(changed=missing or misplaced, path=str(directory), diff=diff)


if __name__ == "__main__":
    main()
