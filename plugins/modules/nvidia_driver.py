#!/usr/bin/python
"""Thin module over module_utils.gpu.nvidia_driver."""

from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_driver
short_description: Check that the NVIDIA driver answers and that its parts have the same version
description:
  - Fails if the running kernel module and the library on disk have different versions, or if the driver does not
    answer. The error names the cause and the cure. Changes nothing.
  - Warns if the kernel of the next boot has no NVIDIA module.
  - "Sources: C(/sys/module/nvidia/version), C(ldconfig -p), C(nvidia-smi -q -x), C(/boot), C(/lib/modules)."
author: The llm-server maintainers (@llm-server)
options: {}
attributes:
  check_mode: {description: It changes nothing in any mode., support: full}
"""

EXAMPLES = r"""
- name: Check the NVIDIA driver
  llm.server.nvidia_driver:
"""

RETURN = r"""
driver_version: {description: Version that the driver reports., type: str, returned: success, sample: 580.95.05}
library_version:
  description: Version of the libcuda that the loader finds; empty if its name does not contain the version.
  type: str
  returned: success
  sample: 580.95.05
kind:
  description: "Kind of the failure: C(library_mismatch), C(no_driver), C(no_gpu) and the like."
  type: str
  returned: failure
  sample: library_mismatch
"""

from ..module_utils.gpu.nvidia_driver import read
from ..module_utils.gpu.nvidia_smi import GpuError
from ..module_utils.host_module import HostModule


def main() -> None:
    module = HostModule(argument_spec={}, supports_check_mode=True)
    try:
        found = read()
    except GpuError as error:
        module.fail_json(msg=str(error), kind=error.kind)
    for warning in found.pop("warnings"):
        module.warn(warning)
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
