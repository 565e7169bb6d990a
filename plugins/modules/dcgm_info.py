#!/usr/bin/python
"""Thin module over module_utils.gpu.dcgm: returns the DCGM versions of this host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: dcgm_info
short_description: Read which DCGM is installed and which one runs
description:
  - Asks the installed client and the running host engine for their versions. Changes nothing.
  - "Sources: C(dcgmi -v), C(nvidia-smi -q -x)."
author: The llm-server maintainers (@llm-server)
options:
  gpu_required: {description: Fail if the host has no GPU that answers., type: bool, default: false}
attributes:
  check_mode: {description: It changes nothing in any mode., support: full}
"""

EXAMPLES = r"""
- name: Read DCGM's versions
  llm.server.dcgm_info:
  register: dcgm
"""

RETURN = r"""
client: {description: Version of the installed client; empty if there is none., type: str, returned: always}
engine: {description: Version of the running engine; empty if none answers., type: str, returned: always}
promised:
  description: Major version that a run installs here because a role needs it, whatever is installed now; empty if no
    role does.
  type: str
  returned: always
trouble: {description: Why dcgmi could not be asked; empty if it could., type: str, returned: always}
"""

from ..module_utils.gpu import dcgm
from ..module_utils.gpu.nvidia_smi import GpuError, read
from ..module_utils.host_module import HostModule


def main() -> None:
    module = HostModule(argument_spec={"gpu_required": {"type": "bool", "default": False}}, supports_check_mode=True)
    if module.params["gpu_required"]:
        try:
            read()
        except GpuError as error:
            module.fail_json(msg=f"DCGM needs a GPU. {error}", kind=error.kind)
    result = {"trouble": "", "promised": dcgm.promised(), **dcgm.ask()}
    module.exit_json(changed=False, **{name: seen or "" for name, seen in result.items()})


if __name__ == "__main__":
    main()
