#!/usr/bin/python
"""Door to ansible.module_utils.process_profile."""

from __future__ import annotations

DOCUMENTATION = r"""
module: process_profile
short_description: Record where the Python of a unit's processes spends its time
description:
  - Records the main process of a unit and its children by py-spy for some seconds and draws a flame graph. The
    processes go on meanwhile; nothing stops them.
  - A unit that does not run, or is not Python, is refused.
author: The llm-server maintainers
options:
  unit: {description: The unit., type: str, required: true}
  program: {description: py-spy on the host; without it the unit is looked at alone., type: path}
  seconds: {description: How long is recorded; at most 600., type: int, default: 30}
  rate: {description: Samples a second; at most 1000., type: int, default: 100}
  output: {description: File of the host for the flame graph., type: path}
attributes:
  check_mode: {description: Looks at the unit and records nothing., support: full}
"""

EXAMPLES = r"""
- name: Record the engine
  process_profile:
    unit: vllm.service
    program: /var/lib/llm-profile/3f2a9b01c4de/bin/py-spy
    seconds: 30
    output: /var/lib/llm-profile/vllm.svg
"""

RETURN = r"""
pid: {description: The main process., type: int, returned: always, sample: 812}
samples: {description: How many samples the flame graph has., type: int, returned: when it was recorded, sample: 2970}
"""

from pathlib import Path

from ansible.module_utils import process_profile
from ansible.module_utils.host_module import HostModule
from ansible.module_utils.systemd_unit import SystemdError


def main() -> None:
    module = HostModule(
        argument_spec={
            "unit": {"type": "str", "required": True},
            "program": {"type": "path"},
            "seconds": {"type": "int", "default": 30},
            "rate": {"type": "int", "default": 100},
            "output": {"type": "path"},
        },
        required_together=[("program", "output")],
        supports_check_mode=True,
    )
    wanted = module.params
    for name, most in (("seconds", process_profile.SECONDS), ("rate", 1000)):
        if not 0 < wanted[name] <= most:
            module.fail_json(msg=f"profile_{name} is {wanted[name]}; it must be above 0 and at most {most}.")
    try:
        pid = process_profile.main_process(wanted["unit"])
        if not wanted["program"] or module.check_mode:
            module.exit_json(changed=False, pid=pid)
        output = Path(wanted["output"])
        process_profile.record(wanted["program"], pid, wanted["seconds"], wanted["rate"], output)
        samples = process_profile.samples(output.read_text(errors="replace"))
    except (process_profile.ProfileError, SystemdError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, pid=pid, samples=samples)


if __name__ == "__main__":
    main()
