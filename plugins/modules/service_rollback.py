#!/usr/bin/python
"""Thin module over module_utils.release.rollback; the action plugin of the same name waits for the start."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_rollback
short_description: Go back to an earlier verified release of a service
description:
  - Restores the files, links and unit of a release that M(llm.server.service_release) has kept, with the current
    secrets, live files and limits, and starts it.
  - Waits until the probes of that release answer. If they do not, the last verified release is put back and started,
    and the task fails with the cause taken from the journal.
  - The release that was left has served, so a second rollback returns to it.
author: The llm-server maintainers (@llm-server)
extends_documentation_fragment:
  - llm.server.service
  - llm.server.service.start
  - llm.server.service.rotation
options:
  release:
    description: The release to go back to; by default the last verified one before the current.
    type: str
attributes:
  check_mode: {description: Shows the differences; writes and starts nothing., support: full}
  diff_mode: {description: "Shows files and the unit; of secrets, only that they changed.", support: full}
"""

EXAMPLES = r"""
- name: Go back to the last verified release
  llm.server.service_rollback:
    name: vllm
    start_timeout: 600
    drain_command: [/usr/local/bin/rotation, drain, "{{ inventory_hostname }}"]
    restore_command: [/usr/local/bin/rotation, restore, "{{ inventory_hostname }}"]
"""

RETURN = r"""
release: {description: Digest of the release that was restored., type: str, returned: always, sample: 1f0c9a7be2d34c55}
restarted: {description: Why the service was restarted., type: str, returned: always}
elapsed: {description: Seconds from the start until the probes answered., type: float, returned: when it was started}
cause: {description: "Cause found in the journal, with its cure.", type: dict, returned: on failure}
journal: {description: Last lines of the service's journal., type: list, elements: str, returned: on failure}
rolled_back_to: {description: Release that serves again; null if there was none., type: str, returned: on failure}
rotation: {description: Whether the host was put back into rotation., type: str, returned: when hooks ran, sample: back}
"""

from ..module_utils.engines import engine_states
from ..module_utils.quiet_module import QuietModule
from ..module_utils.release import arguments, checks, door, rollback, secret_files
from ..module_utils.release.description import Refused
from ..module_utils.release.store import Service

ARGUMENTS = {**arguments.NAME, **arguments.START, **arguments.ROTATION, "release": {"type": "str"}}


def target(service: Service, wanted: dict) -> str:
    return rollback.earlier(service, wanted["release"])


def preview(service: Service, wanted: dict) -> dict:
    return rollback.preview(service, target(service, wanted))


def change(service: Service, wanted: dict) -> dict:
    if service.name in engine_states.away():
        raise Refused(f"{service.name} is off because another engine of its group serves; switch to it first")
    secret_files.clean(service)
    way = preview(service, wanted)
    checks.check_unit(service, service.release(way["release"]), check_mode=False)
    restored = rollback.go_back(service, way["release"])
    out = service.state()["out"]
    return {**way, "release": restored, "await": True, "may_roll_back": True, "out": out}


def main() -> None:
    module = QuietModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    door.run(module, preview, change, before=target)


if __name__ == "__main__":
    main()
