#!/usr/bin/python
"""Thin module over module_utils.install.released_program."""

from __future__ import annotations

DOCUMENTATION = r"""
module: released_program
short_description: Install one version of a released program into a directory of its own
description:
  - Downloads the archive, verifies its checksum, unpacks it next to the target and moves it into place in one step, so
    that C(<root>/<name>/<version>) is complete or absent. Another archive of an installed version gets its own
    directory.
  - If the version exists with the same checksum and anyone can run it, it is left unchanged and the network is not
    used.
  - The service that runs the program removes old versions; see M(llm.server.service_release).
author: The llm-server maintainers (@llm-server)
options:
  name: {description: The program., type: str, required: true}
  version: {description: "Its version, which names its directory.", type: str}
  url: {description: The archive (.tar.gz or .zip)., type: str}
  checksum: {description: "Its checksum, C(sha256:<64 hexadecimal digits>).", type: str}
  member:
    description: The program inside the archive, without the archive's top folder; O(name) by default.
    type: str
  root: {description: Directory of all released programs., type: path, default: /opt}
  runs_as:
    description: User who must be able to run it; any user by default, the user who installs it if empty.
    type: str
    default: nobody
  ca_path: {description: Certificate authorities to trust for the download., type: path}
  state:
    description: V(absent) removes every version.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode: {description: Reports whether it would install; does not use the network., support: full}
"""

EXAMPLES = r"""
- name: Install node_exporter
  llm.server.released_program:
    name: node_exporter
    version: 1.9.0
    url: https://github.com/prometheus/node_exporter/releases/download/v1.9.0/node_exporter-1.9.0.linux-amd64.tar.gz
    checksum: sha256:<64 hexadecimal digits>
"""

RETURN = r"""
path: {description: Directory of this version., type: str, returned: when present, sample: /opt/node_exporter/1.9.0}
"""

from ..module_utils.doors.released_program import main

if __name__ == "__main__":
    main()
