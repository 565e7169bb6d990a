#!/usr/bin/python
"""Thin module over module_utils.incident.recovery; the action plugin of the same name waits and rolls back."""

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

from ..module_utils.host_module import HostModule
from ..module_utils.incident import recovery
from ..module_utils.release import door, serving
from ..module_utils.release.store import Service


def preview(service: Service, wanted: dict) -> dict:
    told = recovery.recover(service, wanted["metrics"], check_mode=True)
    return {"changed": told["changed"], "recovery": told}


def change(service: Service, wanted: dict) -> dict:
    told = recovery.recover(service, wanted["metrics"], check_mode=False)
    if told.get("watch") and told["await"]:
        serving.watch(service)
    return {"changed": told["changed"], "recovery": told}


def main() -> None:
    module = HostModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "kind": {"type": "str"},
            "metrics": {"type": "str"},
            "drain_command": {"type": "list", "elements": "str", "default": []},
            "restore_command": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    if not Service(module.params["name"]).state()["current"]:  # the lock's file would stay behind
        module.exit_json(**preview(Service(module.params["name"]), {"metrics": None}))
    door.run(module, preview, change)


if __name__ == "__main__":
    main()
