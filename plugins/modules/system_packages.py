#!/usr/bin/python
"""Thin module over module_utils.install.system_packages."""

from __future__ import annotations

DOCUMENTATION = r"""
module: system_packages
short_description: Install distribution packages in given versions, hold them on request, remove them with their role
description:
  - Installs, upgrades and downgrades packages to the requested versions and removes conflicting packages, in one
    transaction, and holds the packages.
  - Refuses a transaction that would remove anything else.
  - If everything is in place, apt does not run and the network is not used.
  - "Sources: apt-get(8), apt-mark(8), deb-version(7)."
author: The llm-server maintainers (@llm-server)
options:
  name:
    description: Name under which the module records which packages it installed and which are wanted, so that
      O(state=absent) removes exactly what was installed and no other name needs.
    type: str
    required: true
  packages:
    description: The packages.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: The package., type: str, required: true}
      version:
        description: Its version, with or without epoch and revision; any version if empty.
        type: str
        default: ""
      hold: {description: Whether apt must keep it at this version., type: bool, default: false}
  holds:
    description: Patterns of package names; installed packages that match are held at their current version.
    type: list
    elements: str
    default: []
  instead_of:
    description: Patterns of package names; installed packages that match are removed.
    type: list
    elements: str
    default: []
  lock_timeout:
    description: Seconds to wait while another process holds apt's lock.
    type: int
    default: 600
  state:
    description: V(absent) removes what was installed with these packages and no other role needs, and releases their
      holds; ca-certificates always stays.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode: {description: Reports what would be installed; does not use the network., support: full}
  diff_mode: {description: Shows versions and holds before and after., support: full}
"""

EXAMPLES = r"""
- name: Pin the 3.x package
  llm.server.system_packages:
    name: dcgm
    packages:
      - {name: datacenter-gpu-manager, version: 3.3.9, hold: true}
    instead_of: ["datacenter-gpu-manager-4-*"]
"""

RETURN = r"""
versions:
  description: Full version of each installed package, by name.
  type: dict
  returned: always
  sample: {datacenter-gpu-manager: "1:3.3.9"}
"""

from ..module_utils.doors.system_packages import main

if __name__ == "__main__":
    main()
