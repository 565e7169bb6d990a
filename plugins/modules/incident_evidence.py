#!/usr/bin/python
"""Door to module_utils.incident.evidence."""

from __future__ import annotations

DOCUMENTATION = r"""
module: incident_evidence
short_description: Gather what an incident is judged by into one archive on the controller, without secrets
description:
  - Gathers state and journal of the units, how they answer, metrics, processes, memory, disks, sockets, GPU, the
    kernel's log, the watchdog's record and the diagnosis, and writes them with a summary to one archive a host.
  - Changes nothing on the host, and fails for nothing it finds. What cannot be looked at is said, and the rest goes on.
  - Secrets are taken out on the host, by the values that stand in its files of secrets and by their form, and again on
    the controller, by O(secrets).
author: The llm-server maintainers (@llm-server)
options:
  directory:
    description: Directory of the controller for the archives; made with mode 0700 where it is missing.
    type: path
    required: true
  services:
    description:
      - Services that belong on this host. Those that a run of this project put there are looked at anyway.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Name of the service., type: str, required: true}
      kind: {description: "What runs in it, as the module diagnose takes it.", type: str}
      unit: {description: Its unit; C(<name>.service) when absent., type: str}
      metrics: {description: Address of its metrics., type: str}
  logs:
    description: Patterns of log files whose ends belong into the archive.
    type: list
    elements: str
    default: []
  gpu:
    description: Whether the host is to have a GPU.
    type: bool
    default: false
  upstreams:
    description: What services of this host ask, as the module diagnose takes it.
    type: list
    elements: dict
    default: []
    suboptions:
      service: {description: Who asks., type: str, required: true}
      url: {description: Address., type: str, required: true}
      bearer: {description: Key to ask with., type: str}
  secrets:
    description: Values that must not be in the archive. They stay on the controller.
    type: list
    elements: str
    default: []
attributes:
  check_mode: {description: Looks at the host and writes no archive., support: full}
notes:
  - Takes at most 40 seconds, whatever hangs.
"""

EXAMPLES = r"""
- name: Gather the evidence
  llm.server.incident_evidence:
    directory: "{{ playbook_dir }}/../incidents"
    services: [{name: vllm, metrics: "http://127.0.0.1:8001/metrics"}, {name: ai-server}]
    secrets: ["{{ vllm_api_key }}"]
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
  description: What was found and what comes next, as rows of the checklist.
  returned: always
  type: list
  elements: dict
summary:
  description: The same as a text, with the diagnosis.
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
