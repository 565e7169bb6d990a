#!/usr/bin/python
"""Thin module over module_utils.host.swap_file."""

from __future__ import annotations

DOCUMENTATION = r"""
module: swap_file
short_description: Maintain one swap file of a given size, in use now and after a reboot
description:
  - Creates the file, activates it, keeps one line for it in C(/etc/fstab) and sets C(vm.swappiness).
  - Grows and shrinks by way of a second file that takes the pages meanwhile, so that there is never less swap than the
    smaller of both sizes. A file in use is never changed in place. The next run completes an interrupted one.
  - Swap that is not at O(path) and was not created by this module is left unchanged, and so is every other line of
    fstab.
  - A swap file of the right size that someone else created at O(path) is adopted; it and its line in fstab stay with
    O(state=absent). One of another size is created again.
  - An existing line for O(path) in fstab keeps its options except C(noauto), and a file that is created again is
    activated with them. If a unit of the host activates the file at boot, no line is added.
  - "Sources: swapon(8), fstab(5), sysctl.d(5)."
author: The llm-server maintainers (@llm-server)
options:
  path: {description: The swap file., type: path, default: /swapfile}
  size_mib: {description: Its size in MiB; required with O(state=present)., type: int}
  swappiness:
    description: How eagerly the kernel swaps, 0 to 200; required with O(state=present).
    type: int
  state:
    description:
      - V(absent) deactivates the file that this module created, if memory allows it, removes it and its line, and
        restores the earlier swappiness. What this module did not create stays.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode: {description: Checks disk and memory too and shows the steps; changes nothing., support: full}
  diff_mode: {description: Shows the steps and the configuration files., support: full}
"""

EXAMPLES = r"""
- name: Set up 32 GiB of swap
  llm.server.swap_file:
    path: /swapfile
    size_mib: 32768
    swappiness: 10
"""

RETURN = r"""
steps:
  description: The steps on swap files, in order.
  type: list
  elements: str
  returned: success
  sample: [make /swapfile 32768 MiB, on /swapfile 32768 MiB]
foreign:
  description: Swap in use that does not belong to this module, with its size in MiB; it is left unchanged.
  type: dict
  returned: success
  sample: {/dev/sda2: 1024}
"""

from ..module_utils import host_text
from ..module_utils.errors import UserError
from ..module_utils.host.swap_file import BRIDGE, Host, carry_out, change
from ..module_utils.host_module import HostModule


def main() -> None:
    module = HostModule(
        argument_spec={
            "path": {"type": "path", "default": "/swapfile"},
            "size_mib": {"type": "int"},
            "swappiness": {"type": "int"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("state", "present", ("size_mib", "swappiness"))],
        supports_check_mode=True,
    )
    wanted, host = module.params, Host()
    size = (wanted["size_mib"] or 0) << 20
    try:
        planned = change(host, wanted["state"], wanted["path"], size, wanted["swappiness"] or 0)
        if not module.check_mode:
            carry_out(host, planned)
        active = host.active()
    except (UserError, OSError) as error:
        module.fail_json(msg=host_text.printable(str(error)))
    ours = {path + end for path in planned.places for end in ("", BRIDGE)}
    steps = [str(step) for step in planned.steps]
    texts = {**planned.differences, "swap files": ("", "".join(f"{step}\n" for step in steps))}
    if planned.swappiness[0] != planned.swappiness[1]:
        texts["vm.swappiness"] = tuple(f"{value}\n" for value in planned.swappiness)
    module.exit_json(
        changed=planned.needed,
        steps=steps,
        foreign={host_text.printable(path): size >> 20 for path, (size, _) in active.items() if path not in ours},
        diff=[
            {
                "before_header": name,
                "after_header": name,
                "before": host_text.printable(before),
                "after": host_text.printable(after),
            }
            for name, (before, after) in texts.items()
            if before != after
        ],
    )


if __name__ == "__main__":
    main()
