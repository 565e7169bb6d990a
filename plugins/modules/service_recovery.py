#!/usr/bin/python
"""Thin module over module_utils.incident.recovery; the action plugin of the same name calls it in phases."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_recovery
short_description: Recover a service that does not serve, and leave one alone that does
description:
  - Runs the probes of the current release. A service that answers, one whose start is not over, and an engine that
    still produces tokens are left alone.
  - Otherwise the service is restarted once, after the conditions of its release hold, such as free GPU memory. The
    restart counts against the budget of the role watchdog, and the evidence is kept first. A host without the watchdog
    has no budget.
  - If the service still does not serve and the newest release is to blame, the last verified release before it is
    restored, as with M(llm.server.service_rollback). A release is to blame if it has never served, or if it is less
    than a day old and the diagnosis names a cause in what a release consists of. A release that was left this way is
    not restored again.
  - Never fails because a service does not serve; see RV(serves).
author: The llm-server maintainers (@llm-server)
options:
  name:
    description: Name of the service.
    type: str
    required: true
  kind:
    description: What runs in it, such as V(vllm) or V(llama_cpp); its name by default.
    type: str
  metrics:
    description: Address of an engine's metrics, which distinguish a busy engine from one that hangs.
    type: str
  drain_command:
    description:
      - Command that takes the host out of rotation before a rollback, as in M(llm.server.service_release).
    type: list
    elements: str
    default: []
  restore_command:
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
    description: With O(phase=blame), the causes that the diagnosis found for the service.
    type: list
    elements: dict
    default: []
attributes:
  check_mode: {description: Reports what it would do; restarts nothing., support: full}
"""

EXAMPLES = r"""
- name: Recover the engine
  llm.server.service_recovery:
    name: vllm
    metrics: http://127.0.0.1:8001/metrics
  register: __service_recovery
"""

RETURN = r"""
serves:
  description: Whether the service serves now; null if it is not on this host.
  returned: always
  type: bool
rows:
  description: Findings, actions and next steps, as checklist rows.
  returned: always
  type: list
  elements: dict
restarted:
  description: Whether it was restarted or rolled back to another release.
  returned: always
  type: bool
"""

import time

from ..module_utils.errors import UserError
from ..module_utils.host_module import HostModule
from ..module_utils.incident import recovery
from ..module_utils.release import serving
from ..module_utils.release.store import Service


def main() -> None:
    module = HostModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "kind": {"type": "str"},
            "metrics": {"type": "str"},
            "drain_command": {"type": "list", "elements": "str", "default": []},
            "restore_command": {"type": "list", "elements": "str", "default": []},
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
                    serving.watch(service)
    except (UserError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=told.get("changed", False), recovery=told)


if __name__ == "__main__":
    main()
