#!/usr/bin/python
"""Thin module over module_utils.incident.evidence."""

from __future__ import annotations

DOCUMENTATION = r"""
module: incident_evidence
short_description: Collect the evidence of an incident into one archive on the controller, without secrets
description:
  - Collects state and journal of the units, their answers, metrics, processes, memory, disks, sockets, GPU, the
    kernel's log, the watchdog's record and the diagnosis, and writes them with a summary to one archive per host.
  - Changes nothing on the host, and does not fail because of a finding. What cannot be read is reported, and the rest
    continues.
  - Secrets are removed on the host, by the values in its files of secrets and by their form. They are removed again on
    the controller, by the values of all variables that a role marks as secret, and by O(secrets).
author: The llm-server maintainers (@llm-server)
options:
  directory:
    description: Directory of the controller for the archives; created with mode 0700 if it is missing.
    type: path
    required: true
  services:
    description:
      - Services that belong on this host. Services that this project installed there are always included.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Name of the service., type: str, required: true}
      kind: {description: "What runs in it, as in the module diagnose.", type: str}
      unit: {description: Its unit; C(<name>.service) by default., type: str}
      metrics: {description: Address of its metrics., type: str}
  logs:
    description: Patterns of log files; the end of each belongs in the archive.
    type: list
    elements: str
    default: []
  gpu:
    description: Whether the host should have a GPU.
    type: bool
    default: false
  upstreams:
    description: Servers that services of this host send requests to, as in the module diagnose.
    type: list
    elements: dict
    default: []
    suboptions:
      service: {description: Service that sends the requests., type: str, required: true}
      url: {description: Address., type: str, required: true}
      bearer: {description: API key of the requests., type: str}
  secrets:
    description: Other values that must not be in the archive. They stay on the controller.
    type: list
    elements: str
    default: []
attributes:
  check_mode: {description: Reads the host and writes no archive., support: full}
notes:
  - Takes at most 40 seconds, even if something hangs.
"""

EXAMPLES = r"""
- name: Collect the evidence
  llm.server.incident_evidence:
    directory: "{{ playbook_dir }}/../incidents"
    services: [{name: vllm, metrics: "http://127.0.0.1:8001/metrics"}, {name: ai-server}]
    secrets: ["{{ incident_webhook_url }}"]
  register: __incident_evidence
"""

RETURN = r"""
archive:
  description: The archive on the controller, mode 0600; null in check mode.
  returned: always
  type: str
  sample: /srv/llm-server/incidents/host1-20260115T031502Z.tar.gz
healthy:
  description: Whether all services answer and the diagnosis found nothing.
  returned: always
  type: bool
rows:
  description: Findings and next steps, as checklist rows.
  returned: always
  type: list
  elements: dict
summary:
  description: The same as text, with the diagnosis.
  returned: always
  type: str
seconds:
  description: How long it took on the host.
  returned: when the host could be looked at
  type: float
"""

from ..module_utils.diagnosis import host
from ..module_utils.host_module import HostModule
from ..module_utils.incident import evidence


def main() -> None:
    module = HostModule(
        argument_spec={**host.ARGUMENTS, "logs": {"type": "list", "elements": "str", "default": []}},
        supports_check_mode=True,
    )
    wanted = module.params
    found = evidence.gather(wanted["services"], wanted["gpu"], wanted["upstreams"], wanted["logs"])
    module.exit_json(changed=False, gathered=found)


if __name__ == "__main__":
    main()
