#!/usr/bin/python
"""Thin module that records a drained host; the action plugin of the same name runs the command."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_drain
short_description: Take a host out of rotation until its service is deployed again
description:
  - Runs a command on the controller that takes the host out of rotation, once, and leaves the service as it is. The
    next successful run of M(llm.server.service_release) or M(llm.server.service_rollback) for the service puts the host
    back.
  - If the host is unreachable, the command runs anyway, and nothing is recorded.
author: The llm-server maintainers (@llm-server)
extends_documentation_fragment:
  - llm.server.service
options:
  drain_command:
    description: Command that takes this host out of rotation, such as at a load balancer. It runs on the controller.
    type: list
    elements: str
    required: true
attributes:
  check_mode: {description: Reports whether the host is in rotation; runs no command., support: full}
"""

EXAMPLES = r"""
- name: Take the host out of rotation
  llm.server.service_drain:
    name: vllm
    drain_command: [/usr/local/bin/rotation, drain, "{{ inventory_hostname }}"]
"""

RETURN = r"""
rotation: {description: Whether the host is out of rotation., type: str, returned: success, sample: out}
unnoted: {description: Why nothing could be recorded on the host., type: str, returned: when nothing was recorded}
"""

from ..module_utils.host_module import HostModule
from ..module_utils.release import arguments, door, serving
from ..module_utils.release.store import Service

ARGUMENTS = {**arguments.NAME, "drain_command": {"type": "list", "elements": "str", "required": True}}


def preview(service: Service, wanted: dict) -> dict:
    return {"changed": not service.state()["out"]}


def change(service: Service, wanted: dict) -> dict:
    return serving.set_rotation(service, out=True)


def main() -> None:
    module = HostModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    door.run(module, preview, change)


if __name__ == "__main__":
    main()
