#!/usr/bin/python
"""Door to module_utils.incident.recovery; the action plugin of the same name calls it phase by phase."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_recovery
short_description: Bring a service back that does not serve, and leave alone one that does
description:
  - Asks the probes of the release that runs. A service that answers, one whose start is not over, and an engine that
    still produces tokens are left alone.
  - Otherwise it is restarted once, within the budget of the role watchdog and with its evidence kept, after the
    conditions of its release hold, such as free GPU memory. A host without the watchdog has no budget.
  - Where it does not serve then, and the newest release is to blame, the last verified release before it comes back, as
    with O(llm.server.service_release#module:state=previous). It is to blame where it has never served, or where it is
    less than a day old and the diagnosis names a cause in what a release is made of. A release that was left this way
    is not gone back to.
  - Never fails because a service does not serve; C(serves) tells.
author: The llm-server maintainers (@llm-server)
options:
  name:
    description: Name of the service.
    type: str
    required: true
  kind:
    description: What runs in it, such as V(vllm) or V(llama_cpp); its name when absent.
    type: str
  metrics:
    description: Address of an engine's metrics, which tell a busy one from one that hangs.
    type: str
  take_out:
    description:
      - Command that takes the host out of rotation before a release goes back, as in M(llm.server.service_release).
    type: list
    elements: str
    default: []
  put_back:
    description: Command that puts the host back into rotation, as in M(llm.server.service_release).
    type: list
    elements: str
    default: []
  phase:
    description: Step of the action plugin; not for playbooks.
    type: str
    choices: [recover, blame]
    default: recover
  causes:
    description: With O(phase=blame), what the diagnosis names for the service.
    type: list
    elements: dict
    default: []
attributes:
  check_mode: {description: Says what it would do; restarts nothing., support: full}
"""

EXAMPLES = r"""
- name: Bring the engine back
  llm.server.service_recovery:
    name: vllm
    metrics: http://127.0.0.1:8001/metrics
  register: __service_recovery
"""

RETURN = r"""
serves:
  description: Whether the service serves now; null where it is not on this host.
  returned: always
  type: bool
rows:
  description: What was found, what was done and what comes next, as rows of the checklist.
  returned: always
  type: list
  elements: dict
restarted:
  description: Whether it was restarted or went back to another release.
  returned: always
  type: bool
"""

import time

from ..module_utils.host_module import HostModule
from ..module_utils.incident import recovery
from ..module_utils.release.service_release import Refused, Service
from ..module_utils.release.systemd_unit import SystemdError


def main() -> None:
    module = HostModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "kind": {"type": "str"},
            "metrics": {"type": "str"},
            "take_out": {"type": "list", "elements": "str", "default": []},
            "put_back": {"type": "list", "elements": "str", "default": []},
            "phase": {"type": "str", "choices": ["recover", "blame"], "default": "recover"},
            "causes": {"type": "list", "elements": "dict", "default": []},
        },
        supports_check_mode=True,
    )
    wanted, service = module.params, Service(module.params["name"])
    if not service.state()["current"]:
        module.exit_json(changed=False, recovery=recovery.recover(service, None, module.check_mode))
    try:
        with service.lock():
            if wanted["phase"] == "blame":
                told = recovery.to_go_back_to(service, wanted["causes"], time.time())
                if told["target"]:
                    service.note(failed=service.state()["current"])
            else:
                told = recovery.recover(service, wanted["metrics"], module.check_mode)
                if told.get("watch") and told["await"]:
                    service.watch()
    except (Refused, SystemdError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=told.get("changed", False), recovery=told)


if __name__ == "__main__":
    main()
