#!/usr/bin/python
"""Thin module over module_utils.release.deploy; the action plugin of the same name waits for the start."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_release
short_description: Deploy a release of a systemd service, and roll back if it does not serve
description:
  - Writes the files, links and unit of a service after each has been checked. Restarts the service only if the running
    process differs from the release on disk. The process carries the digest of its release in its environment, so the
    next run completes an interrupted one.
  - Stored releases have no secrets. A rollback, by M(llm.server.service_rollback) or after a failed start, restores the
    earlier release with the current secrets.
  - Changes that others made to the unit are checked too. A mask, a link or a drop-in that changes what the unit says is
    refused; a drop-in that only adds something, such as a limit, is a warning.
  - Waits until the probes answer. If they do not, the last verified release is put back and started, and the task
    fails with the cause taken from the journal.
  - M(llm.server.service_account) creates the user and the directories before there is a release.
  - "Source of the unit's defaults: systemd.exec(5)."
author: The llm-server maintainers (@llm-server)
extends_documentation_fragment:
  - llm.server.service
  - llm.server.service.start
  - llm.server.service.account
  - llm.server.service.program
  - llm.server.service.contents
  - llm.server.service.rotation
options:
  state:
    description:
      - V(present) writes, starts and verifies the release; V(absent) removes the service but keeps the directories
        marked O(directories[].keep).
    type: str
    choices: [present, absent]
    default: present
  purge:
    description: With O(state=absent), remove kept directories and the user too.
    type: bool
    default: false
  compare_only:
    description:
      - Do only what a run without changes does, such as asking the probes. If anything differs, report it like check
        mode and leave it as it is.
      - It fails at once if another run holds the service's lock. With O(state=absent), what an interrupted removal left
        is removed.
    type: bool
    default: false
attributes:
  check_mode: {description: Runs the checks and shows the differences; writes and starts nothing., support: full}
  diff_mode: {description: "Shows files and the unit; of secrets, only that they changed.", support: full}
"""

EXAMPLES = r"""
- name: Run node_exporter
  llm.server.service_release:
    name: node_exporter
    user: node_exporter
    program:
      version: 1.9.0
      url: https://github.com/prometheus/node_exporter/releases/download/v1.9.0/node_exporter-1.9.0.linux-amd64.tar.gz
      checksum: sha256:<64 hexadecimal digits>
    unit:
      Unit: {Description: Host metrics for Prometheus}
      Service:
        User: node_exporter
        ExecStart: /opt/node_exporter/current/node_exporter --web.listen-address=127.0.0.1:9100
    listens: [9100]
    probes:
      - metric: {url: "http://127.0.0.1:9100/metrics", series: [node_memory_MemTotal_bytes]}

- name: Remove it, and keep its data
  llm.server.service_release:
    name: node_exporter
    state: absent
"""

RETURN = r"""
release: {description: Digest of the requested release., type: str, returned: always, sample: 1f0c9a7be2d34c55}
program:
  description: Directory of the program's version.
  type: str
  returned: with O(program)
  sample: /opt/node_exporter/1.9.0
restarted: {description: Why the service was restarted; null if it was not., type: str, returned: always}
elapsed: {description: Seconds from the start until the probes answered., type: float, returned: when it was started}
cause: {description: "Cause found in the journal, with its cure.", type: dict, returned: on failure}
journal: {description: Last lines of the service's journal., type: list, elements: str, returned: on failure}
rolled_back_to: {description: Release that serves again; null if there was none., type: str, returned: on failure}
rotation: {description: Whether the host was put back into rotation., type: str, returned: when hooks ran, sample: back}
"""

from ..module_utils.doors.service_release import main

if __name__ == "__main__":
    main()
