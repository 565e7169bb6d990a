#!/usr/bin/python
"""Thin module over module_utils.gpu.dcgm: runs the host engine in the installed version."""

from __future__ import annotations

DOCUMENTATION = r"""
module: dcgm_engine
short_description: Run DCGM's host engine in the installed version
description:
  - Enables and starts the package's own unit, and restarts it if the running engine reports another version than the
    package's, for example after an upgrade or an interrupted run.
  - C(dcgmi -v) gives the engine 100 ms to answer. So the engine of an active unit is asked for 5 s before it counts as
    not answering.
  - Waits until the engine answers, then compares the versions of the installed client and the running engine.
  - "Source: C(dcgmi -v)."
author: The llm-server maintainers (@llm-server)
options:
  version: {description: "Version of the package, with or without epoch and revision.", type: str}
  unit: {description: The unit., type: str, default: nvidia-dcgm.service}
  timeout: {description: Seconds until the engine must answer., type: int, default: 60}
  state:
    description: V(stopped) disables and stops the unit if it exists.
    type: str
    choices: [running, stopped]
    default: running
attributes:
  check_mode: {description: Reports whether it would start or stop the unit., support: full}
"""

EXAMPLES = r"""
- name: Run the engine
  llm.server.dcgm_engine:
    version: "1:3.3.9"
"""

RETURN = r"""
client: {description: Version of the installed client., type: str, returned: when running, sample: 3.3.9}
engine: {description: Version of the running engine., type: str, returned: when running, sample: 3.3.9}
restarted: {description: Why the engine was started; null if it was not., type: str, returned: when running}
"""

import time

from ..module_utils.errors import UserError
from ..module_utils.gpu import dcgm
from ..module_utils.host_module import HostModule
from ..module_utils.release import systemd_unit


def main() -> None:
    module = HostModule(
        argument_spec={
            "version": {"type": "str"},
            "unit": {"type": "str", "default": "nvidia-dcgm.service"},
            "timeout": {"type": "int", "default": 60},
            "state": {"type": "str", "choices": ["running", "stopped"], "default": "running"},
        },
        required_if=[("state", "running", ["version"])],
        supports_check_mode=True,
    )
    try:
        stop(module) if module.params["state"] == "stopped" else run(module)
    except UserError as error:
        module.fail_json(msg=f"DCGM's engine: {error}")


def stop(module: HostModule) -> None:
    unit = module.params["unit"]
    live = systemd_unit.show(unit)
    changed = live.get("ActiveState") == "active" or live.get("UnitFileState") == "enabled"
    if changed and not module.check_mode:
        systemd_unit.run("systemctl", "disable", "--now", unit)
    module.exit_json(changed=changed)


def run(module: HostModule) -> None:
    unit, version = module.params["unit"], module.params["version"]
    live = systemd_unit.show(unit)
    state = dcgm.ask_patiently() if live.get("ActiveState") == "active" else dcgm.ask()
    reason = dcgm.start_reason(live, state, version)
    enable = live.get("UnitFileState") != "enabled"
    if module.check_mode:
        module.exit_json(
            changed=bool(reason or enable), restarted=reason, client=state["client"], engine=state["engine"]
        )
    journal_cursor, deadline = systemd_unit.journal_end(), time.monotonic() + module.params["timeout"]
    if reason or enable:
        systemd_unit.run("systemctl", "daemon-reload")
    if enable:
        systemd_unit.run("systemctl", "enable", unit)
    if reason:
        systemd_unit.run("systemctl", "restart", unit)
    while (state := dcgm.ask(within=max(deadline - time.monotonic(), 1)))["engine"] is None:
        if time.monotonic() >= deadline:
            break
        if systemd_unit.show(unit).get("ActiveState") in ("failed", "inactive"):
            break
        time.sleep(0.5)
    wrong = {name: state[name] for name in ("client", "engine") if state[name] != dcgm.upstream(version)}
    if wrong:
        trouble = state.get("trouble") or "; ".join(
            f"the {name} says {seen or 'nothing'}" for name, seen in wrong.items()
        )
        module.fail_json(
            msg=f"DCGM {dcgm.upstream(version)} is installed and {trouble}. See journalctl -u {unit}.",
            journal=systemd_unit.journal(unit, journal_cursor)[-15:],
        )
    module.exit_json(changed=bool(reason or enable), restarted=reason, **state)


if __name__ == "__main__":
    main()
