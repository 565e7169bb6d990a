#!/usr/bin/python
"""Thin module over module_utils.load.process_profile."""

from __future__ import annotations

DOCUMENTATION = r"""
module: process_profile
short_description: Profile the Python code of a unit's processes
description:
  - Samples the main process of a unit and its children with py-spy for some seconds and writes a flame graph. The
    processes keep running.
  - Fails if the unit is not running or not Python.
author: The llm-server maintainers (@llm-server)
options:
  unit: {description: The unit., type: str, required: true}
  program: {description: Path of py-spy on the host; without it the module only inspects the unit., type: path}
  seconds: {description: Seconds to record; at most 600., type: int, default: 30}
  rate: {description: Samples per second; at most 1000., type: int, default: 100}
  output: {description: Path of the flame graph on the host., type: path}
attributes:
  check_mode: {description: Inspects the unit and records nothing., support: full}
"""

EXAMPLES = r"""
- name: Profile the engine
  llm.server.process_profile:
    unit: vllm.service
    program: /var/lib/llm-profile/3f2a9b01c4de/bin/py-spy
    seconds: 30
    output: /var/lib/llm-profile/vllm.svg
"""

RETURN = r"""
pid: {description: The main process., type: int, returned: always, sample: 812}
samples: {description: Number of samples in the flame graph., type: int, returned: when recorded, sample: 2970}
"""

from pathlib import Path

from ..module_utils.errors import UserError
from ..module_utils.host_module import HostModule
from ..module_utils.load import process_profile


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
    except (UserError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, pid=pid, samples=samples)


if __name__ == "__main__":
    main()
