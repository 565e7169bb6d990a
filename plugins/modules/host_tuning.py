#!/usr/bin/python
"""Thin module over module_utils.host.host_tuning."""

from __future__ import annotations

DOCUMENTATION = r"""
module: host_tuning
short_description: Configure the kernel and the GPUs for serving models, now and at every boot
description:
  - Sets values in C(/proc/sys) and transparent huge pages, and makes them permanent by sysctl.d and tmpfiles.d.
  - Configures the GPUs by a unit that runs before the engines. A setting that a GPU does not accept is refused before
    anything is set.
  - Records the values from before the first change, and restores those of settings that are no longer wanted.
  - "Sources: sysctl.d(5), tmpfiles.d(5), tcp(7), the kernel's documentation of transparent huge pages, nvidia-smi(1)."
author: The llm-server maintainers (@llm-server)
options:
  socket_buffer_mib: {description: Maximum buffer of a socket; 0 leaves it unchanged., type: int, default: 0}
  open_files: {description: Minimum of fs.nr_open and fs.file-max; 0 leaves them unchanged., type: int, default: 0}
  transparent_hugepages:
    description: Mode of transparent huge pages; empty leaves it unchanged.
    type: str
    choices: ["", madvise, always, never]
    default: ""
  gpu_persistence:
    description: Whether the driver keeps its state while no program uses a GPU. No effect without an NVIDIA GPU.
    type: bool
    default: false
  gpu_power_limit_watts: {description: Power limit of every GPU; 0 leaves it unchanged., type: int, default: 0}
  gpu_clocks_mhz:
    description: Lowest and highest clock of every GPU in MHz; empty leaves them to the driver.
    type: list
    elements: int
    default: []
  engines: {description: Units that start after the GPUs are configured., type: list, elements: str, default: []}
  state:
    description: V(absent) restores all values from before the first change, whatever the other options are.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode: {description: Shows the values and files; changes nothing., support: full}
  diff_mode: {description: Shows the values and files., support: full}
"""

EXAMPLES = r"""
- name: Configure the kernel and the GPUs
  llm.server.host_tuning:
    socket_buffer_mib: 128
    transparent_hugepages: madvise
    gpu_persistence: true
    engines: [vllm.service]
"""

RETURN = r"""
settings:
  description: The settings that were not as wanted, each with the value before and after.
  type: dict
  returned: success
  sample: {net.core.rmem_max: ["212992", "134217728"]}
overridden:
  description: Settings that other files override at the next boot, one sentence per setting; also shown as warnings.
  type: list
  elements: str
  returned: success
  sample: []
"""

from ..module_utils import host_text
from ..module_utils.errors import UserError
from ..module_utils.host.host_tuning import Host, Wanted, carry_out, change
from ..module_utils.host_module import HostModule


def main() -> None:
    module = HostModule(
        argument_spec={
            "socket_buffer_mib": {"type": "int", "default": 0},
            "open_files": {"type": "int", "default": 0},
            "transparent_hugepages": {"type": "str", "choices": ["", "madvise", "always", "never"], "default": ""},
            "gpu_persistence": {"type": "bool", "default": False},
            "gpu_power_limit_watts": {"type": "int", "default": 0},
            "gpu_clocks_mhz": {"type": "list", "elements": "int", "default": []},
            "engines": {"type": "list", "elements": "str", "default": []},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    options = dict(module.params)
    state, host = options.pop("state"), Host()
    wanted = Wanted(**options) if state == "present" else Wanted()
    try:
        planned = change(host, wanted)
        if planned.needed and not module.check_mode:
            carry_out(host, planned)
            left = change(host, wanted).differences()
            if left:
                module.fail_json(msg=f"The machine did not take it: {'; '.join(left)}.")
    except (UserError, OSError, ValueError) as error:
        module.fail_json(msg=host_text.printable(str(error)))
    for sentence in planned.warnings():
        module.warn(host_text.printable(sentence))
    values = {name: tuple(f"{value}\n" for value in pair) for name, pair in planned.values.items()}
    commands = {"GPUs": ("", "".join(f"{' '.join(command)}\n" for command in planned.commands))}
    module.exit_json(
        changed=planned.needed,
        settings=planned.values,
        overridden=[host_text.printable(sentence) for sentence in planned.warnings()],
        diff=[
            {
                "before_header": name,
                "after_header": name,
                "before": host_text.printable(before),
                "after": host_text.printable(after),
            }
            for name, (before, after) in {**values, **planned.texts, **commands}.items()
            if before != after
        ],
    )


if __name__ == "__main__":
    main()
