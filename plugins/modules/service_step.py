#!/usr/bin/python
"""Thin module over module_utils.release, for the action plugins of a service."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_step
short_description: Do one step of a deployment or a rollback; internal
description:
  - Internal. The action plugins of M(llm.server.service_release), M(llm.server.service_rollback),
    M(llm.server.service_drain) and M(llm.server.service_recovery) call it. Use these modules in playbooks.
  - Each step holds the service's lock, and a step after the start fails if another run has changed the service.
author: The llm-server maintainers (@llm-server)
extends_documentation_fragment:
  - llm.server.service
  - llm.server.service.start
  - llm.server.service.account
  - llm.server.service.program
  - llm.server.service.contents
options:
  step:
    description:
      - V(preview) checks whether the change of O(state) would interrupt a serving service, and runs the trials if so.
      - V(drain) and V(restore) record that the host is out of rotation or back.
      - V(poll) watches the start of a release for O(seconds).
      - V(confirm) records that the release serves; V(roll_back) goes back to the release that served before.
      - V(blame) decides by O(causes) whether the release is to blame, and records it as failed if so.
    type: str
    choices: [preview, drain, restore, poll, roll_back, confirm, blame]
    required: true
  state:
    description:
      - With O(step=preview), the change that is to come. V(previous) is a rollback, the others are as in
        M(llm.server.service_release).
    type: str
    choices: [present, absent, previous]
    default: present
  purge:
    description: As in M(llm.server.service_release).
    type: bool
    default: false
  release:
    description: Release that the step is about.
    type: str
  seconds:
    description: With O(step=poll), how long to watch before the module returns.
    type: float
    default: 5
  causes:
    description: With O(step=blame), the causes that the diagnosis found for the service.
    type: list
    elements: dict
    default: []
attributes:
  check_mode: {description: Does nothing., support: full}
"""

EXAMPLES = r"""
- name: Watch a start
  llm.server.service_step:
    name: vllm
    step: poll
    release: 1f0c9a7be2d34c55
    start_timeout: 600
"""

RETURN = r"""
interrupts: {description: Whether a serving service would be interrupted., type: bool, returned: with step=preview}
ready: {description: Whether the service serves., type: bool, returned: with step=poll}
dead: {description: Whether its process has exited., type: bool, returned: with step=poll}
why: {description: Why it does not serve; null if it does., type: str, returned: with step=poll}
elapsed: {description: Seconds since the start., type: float, returned: with step=poll}
journal:
  description: Its journal since the start, if it does not serve.
  type: list
  elements: str
  returned: with step=poll
rolled_back_to:
  description: Release that was started; null if there was none.
  type: str
  returned: with step=roll_back
target:
  description: Release to go back to; null if the release is not to blame.
  type: str
  returned: with step=blame
"""

import time
from functools import partial

from ..module_utils.quiet_module import QuietModule
from ..module_utils.release import arguments, checks, deploy, door, removal, rollback, serving
from ..module_utils.release.description import Refused
from ..module_utils.release.store import Service

ARGUMENTS = {
    **arguments.NAME,
    **arguments.START,
    **arguments.ACCOUNT,
    **arguments.PROGRAM,
    **arguments.CONTENTS,
    "step": {
        "type": "str",
        "choices": ["preview", "drain", "restore", "poll", "roll_back", "confirm", "blame"],
        "required": True,
    },
    "state": {"type": "str", "choices": ["present", "absent", "previous"], "default": "present"},
    "purge": {"type": "bool", "default": False},
    "release": {"type": "str"},
    "seconds": {"type": "float", "default": 5},
    "causes": {"type": "list", "elements": "dict", "default": []},
}


def change(service: Service, wanted: dict) -> dict:
    step = wanted["step"]
    if step == "preview":
        return preview(service, wanted)
    if step in ("drain", "restore"):
        return serving.set_rotation(service, out=step == "drain")
    if wanted["release"] != service.state()["current"]:
        raise Refused(f"{service.name}: another run changed this service meanwhile; run this one again")
    if step == "poll":
        questions = service.proof_of(wanted["release"])["probes"]
        return {"changed": False, **serving.poll(service, questions, wanted["seconds"], wanted["start_timeout"])}
    if step == "confirm":
        rollback.confirm(service)
        return {"changed": False}
    if step == "blame":
        told = rollback.to_go_back_to(service, wanted["causes"], time.time())
        if told["target"]:
            service.note(failed=wanted["release"])
        return {"changed": bool(told["target"]), **told}
    return rollback.roll_back(service)


def preview(service: Service, wanted: dict) -> dict:
    """Return whether the change ``interrupts`` a serving service. Raises `Refused` if it would be refused."""
    # A service that a timer starts serves nobody in between.
    serves = bool(service.state()["verified"]) and service.main_unit() == service.unit
    if wanted["state"] == "previous":
        rollback.preview(service, rollback.earlier(service, wanted["release"]))
        return {"changed": False, "interrupts": serves}
    if wanted["state"] == "absent":
        return {"changed": False, "interrupts": serves and removal.removable(service, wanted["purge"])}
    interrupts = serves and bool(deploy.deploy(service, wanted, check_mode=True)["restarted"])
    if interrupts:
        checks.try_out(service, deploy.wanted_release(service, wanted), wanted["trials"])
    return {"changed": False, "interrupts": interrupts}


def main() -> None:
    module = QuietModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    describes = module.params["step"] == "preview" and module.params["state"] != "previous"
    settle = partial(deploy.settle, module) if describes else None
    door.run(module, lambda *_: {"changed": False}, change, before=settle)


if __name__ == "__main__":
    main()
