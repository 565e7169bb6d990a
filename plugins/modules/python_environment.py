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
python: {description: Its interpreter., type: str, returned: always,
  sample: /opt/vllm/environments/3f2a9b01c4de/bin/python}
"""

from ..module_utils.doors.python_environment import main

if __name__ == "__main__":
    main()
