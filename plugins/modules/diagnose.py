#!/usr/bin/python
"""Thin module over module_utils.diagnosis.host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: diagnose
short_description: Report why a service of a host does not run, or runs but does not work
description:
  - Reads units, their journals by start, the kernel's log, GPU, disks, memory, ports, programs, clock, upstreams and
    recently changed packages, and names the most likely cause with its evidence and its cure.
  - Changes nothing and does not fail because of a finding. What cannot be read is reported, and the rest continues.
  - The action plugin of the same name judges the evidence on the controller, where the table of causes is
    (data/diagnosis). The evidence itself is not in the result.
author: The llm-server maintainers (@llm-server)
options:
  services:
    description:
      - Services that belong on this host. Services that this project installed there are always included.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Name of the service., type: str, required: true}
      kind: {description: "What runs in it, such as C(vllm) or C(llama_cpp); its name by default.", type: str}
      unit: {description: Its unit; C(<name>.service) by default., type: str}
      metrics: {description: "Address of an engine's metrics, which show a queue and a full KV cache.", type: str}
  gpu:
    description: Whether the host should have a GPU.
    type: bool
    default: false
  upstreams:
    description: Servers that services of this host send requests to. They must be reachable from the host.
    type: list
    elements: dict
    default: []
    suboptions:
      service: {description: Service that sends the requests., type: str, required: true}
      url: {description: Address., type: str, required: true}
      bearer: {description: API key of the requests., type: str}
attributes:
  check_mode: {description: It changes nothing in any mode., support: full}
notes:
  - Takes at most 20 seconds, even if something hangs.
"""

EXAMPLES = r"""
- name: Diagnose the host
  llm.server.diagnose:
    services: [{name: vllm, metrics: "http://127.0.0.1:8001/metrics"}, {name: ai-server}]
    gpu: true
  register: diagnosis

- name: Show the report
  ansible.builtin.debug:
    msg: "{{ diagnosis.report | join('\\n') }}"
"""

RETURN = r"""
healthy:
  description: Whether nothing was found to be wrong.
  returned: always
  type: bool
report:
  description: The diagnosis as lines for people, the most likely cause first.
  returned: always
  type: list
  elements: str
  sample:
    - "vllm: an adapter has rank 256, the engine allows 16."
    - "  cause  lora_rank_too_large (engine)"
causes:
  description: The causes that were found, each with service, id, area, says, cure and line; the most likely first.
  returned: always
  type: list
  elements: dict
problems:
  description: What could not be read.
  returned: always
  type: list
  elements: str
seconds:
  description: How long the checks took.
  returned: always
  type: float
"""

from ..module_utils.diagnosis import host
from ..module_utils.host_module import HostModule


def main() -> None:
    module = HostModule(
        argument_spec=host.ARGUMENTS,
        supports_check_mode=True,
    )
    wanted = module.params
    found = host.look(wanted["services"], wanted["gpu"], wanted["upstreams"])
    module.exit_json(changed=False, evidence=found)


if __name__ == "__main__":
    main()
