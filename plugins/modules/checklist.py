#!/usr/bin/python
"""Thin module over module_utils.release.checklist; the action plugin of the same name collects the checks of roles."""

from __future__ import annotations

DOCUMENTATION = r"""
module: checklist
short_description: Measure a finished server, one row per check
description:
  - Sends the requests that a user would send to a server and reports what was measured. Changes nothing and never
    fails because of a red row, so that one red row does not hide the others.
author: The llm-server maintainers (@llm-server)
options:
  roles:
    description:
      - Roles of the host whose checks are measured, C(__ROLE_checks) in their C(vars/checklist.yml). A role whose
        C(ROLE_state) is V(absent) has none.
      - A check of a role can also have C(when), and C(outside) to be measured from the controller.
    type: list
    elements: str
    default: []
  engines:
    description: >-
      Engines to measure, as M(llm.server.validate_variables) returns them. Their rows come first.
    type: list
    elements: dict
    default: []
  checks:
    description: Other checks, in the order of the table. Their rows come after those of the engines.
    type: list
    elements: dict
    default: []
    suboptions:
      what: {description: Name of the row., type: str, required: true}
      kind:
        description: Function of module_utils/release/checklist.py.
        type: str
        required: true
        choices:
          [http, models, completion, at_once, gpu_memory, chat, metric, unit, sockets, pushes, remote_write,
          journal_job, file_job, collector_queue, collector_journal, collector_files, gpu, driver, device_nodes, swap,
          apt_repository, tuning, disk, watchdog, timer, backup, rules, notices]
      options: {description: Options of the kind., type: dict, required: true}
      bearer: {description: API key for requests of this check., type: str}
      password: {description: Password for requests of this check., type: str}
      cure: {description: What to do if the row is red., type: str, default: ""}
attributes:
  check_mode: {description: It changes nothing in any mode., support: full}
"""

EXAMPLES = r"""
- name: Measure what two roles have installed
  llm.server.checklist:
    roles: [node_exporter, vmagent]

- name: Measure something else
  llm.server.checklist:
    checks:
      - what: node_exporter answers
        kind: metric
        options: {url: "http://127.0.0.1:9100/metrics", series: [node_memory_MemTotal_bytes]}
"""

RETURN = r"""
rows:
  description: One entry per check.
  type: list
  elements: dict
  returned: always
  sample: [{what: node_exporter answers, measured: "1 series asked for, all there", ok: true, cure: ""}]
"""

from ..module_utils.doors.checklist import main

if __name__ == "__main__":
    main()
