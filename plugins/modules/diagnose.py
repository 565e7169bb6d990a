#!/usr/bin/python
"""Door to module_utils.diagnosis.host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: diagnose
short_description: Say why a service of a host does not run, or runs and does not work
description:
  - Looks at units, their journals by start, the kernel's log, GPU, disks, memory, ports, programs, clock, upstreams and
    lately changed packages, and names the most likely cause with its proof and its cure.
  - Changes nothing and fails for nothing it finds. What cannot be looked at is said, and the rest goes on.
  - The action plugin of the same name weighs the evidence on the controller, where the table of causes is
    (data/diagnosis); the evidence itself stays out of the result.
author: The llm-server maintainers (@llm-server)
options:
  services:
    description:
      - Services that belong on this host. Those that a run of this project put there are looked at anyway.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Name of the service., type: str, required: true}
      kind: {description: "What runs in it, such as C(vllm) or C(llama_cpp); its name when absent.", type: str}
      unit: {description: Its unit; C(<name>.service) when absent., type: str}
      metrics: {description: "Address of an engine's metrics, which tell of a queue and a full KV cache.", type: str}
  gpu:
    description: Whether the host is to have a GPU.
    type: bool
    default: false
  upstreams:
    description: What services of this host ask, to be reached from here.
    type: list
    elements: dict
    default: []
    suboptions:
      service: {description: Who asks., type: str, required: true}
      url: {description: Address., type: str, required: true}
      bearer: {description: Key to ask with., type: str}
attributes:
  check_mode: {description: It changes nothing in any mode., support: full}
notes:
  - Takes at most 20 seconds, whatever hangs.
"""

EXAMPLES = r"""
- name: Look for what is wrong
  llm.server.diagnose:
    services: [{name: vllm, metrics: "http://127.0.0.1:8001/metrics"}, {name: ai-server}]
    gpu: true
  register: diagnosis

- name: Show it
  ansible.builtin.debug:
    msg: "{{ diagnosis.report | join('\\n') }}"
"""

RETURN = r"""
healthy:
  description: Whether nothing is wrong.
  returned: always
  type: bool
report:
  description: The same for a person, the most likely cause first.
  returned: always
  type: list
  elements: str
  sample:
    - "vllm: an adapter has rank 256, the engine allows 16."
    - "  cause  lora_rank_too_large (engine)"
causes:
  description: What was named, with service, id, area, says, cure and line; the most likely first.
  returned: always
  type: list
  elements: dict
problems:
  description: What could not be looked at.
  returned: always
  type: list
  elements: str
seconds:
  description: How long the looks took.
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
