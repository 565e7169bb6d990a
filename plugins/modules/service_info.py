#!/usr/bin/python
"""Thin module over module_utils.release.services."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_info
short_description: List the services of a host that have releases
description:
  - Reads the release stores of M(llm.server.service_release) on a host. Other parts of the project ask here instead of
    reading the store's files, whose form may change.
  - Returns no secrets.
author: The llm-server maintainers (@llm-server)
options: {}
attributes:
  check_mode: {description: Changes nothing in any mode., support: full}
  diff_mode: {description: There is nothing to show., support: none}
"""

EXAMPLES = r"""
- name: Find the services that have releases
  llm.server.service_info:
  register: __services

- name: Show those that build environments
  ansible.builtin.debug:
    msg: "{{ __services.services | selectattr('environments') | map(attribute='name') }}"
"""

RETURN = r"""
services:
  description: The services of the host, sorted by name.
  type: list
  elements: dict
  returned: always
  contains:
    name: {description: Name of the service., type: str, returned: always, sample: vllm}
    unit: {description: Its unit of systemd., type: str, returned: always, sample: vllm.service}
    current:
      description: Digest of the recorded release; null before the first one.
      type: str
      returned: always
      sample: 72af0c1be2d94e11
    verified:
      description: Digests of the releases to which a rollback can go, newest last.
      type: list
      elements: str
      returned: always
      sample: [72af0c1be2d94e11]
    environments:
      description: Directories in which its virtual environments are built.
      type: list
      elements: str
      returned: always
      sample: [/opt/vllm/environments]
"""

from ..module_utils.host_module import HostModule
from ..module_utils.release.services import listed


def main() -> None:
    module = HostModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(changed=False, services=listed())


if __name__ == "__main__":
    main()
