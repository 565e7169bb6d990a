#!/usr/bin/python
"""Reads GPUs and their memory; checks requirements; waits until memory is free."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_vram
short_description: Read GPUs, check their memory, wait until it is free
description:
  - Reads every NVIDIA GPU of the host with its memory and processes from C(nvidia-smi -q -x).
  - Fails if a requirement about count, name or memory is not met, and reports the wanted and the actual value.
  - With O(wait_timeout) it waits for requirements about memory, so that one model can leave before the next is loaded.
  - Changes nothing.
options:
  index:
    description: Check only this GPU, counted from 0 in the order of nvidia-smi. All GPUs by default.
    type: int
  count:
    description: Number of GPUs that the host must have.
    type: int
  name:
    description: Part of the name that each GPU must have, such as C(L4). Case does not matter.
    type: str
  minimum_total_mib:
    description: Minimum total memory of each GPU, in MiB as nvidia-smi shows it.
    type: int
  minimum_free_mib:
    description: Minimum free memory of each GPU, in MiB.
    type: int
  maximum_used_mib:
    description: Maximum used memory of each GPU, in MiB.
    type: int
  wait_timeout:
    description: Seconds to wait for the memory requirements. With 0, and in check mode, the GPUs are read once.
    type: int
    default: 0
  wait_interval:
    description: Seconds between two readings.
    type: int
    default: 5
  command_timeout:
    description: Seconds after which a driver that does not answer counts as hanging.
    type: int
    default: 20
notes:
  - A host without GPU or driver, a driver that hangs, a library mismatch, a GPU that fell off the bus, MIG and C(N/A)
    fields each have their own error message; RV(kind) distinguishes them.
attributes:
  check_mode: {description: It changes nothing in any mode; in check mode it reads the GPUs once., support: full}
author: The llm-server maintainers (@llm-server)
"""

EXAMPLES = r"""
- name: Read the GPUs
  llm.server.gpu_vram:
  register: gpu

- name: Wait until the last model has left the GPU
  llm.server.gpu_vram:
    maximum_used_mib: 1024
    wait_timeout: 120

- name: Check that the machine has the expected GPU
  llm.server.gpu_vram:
    count: 1
    name: L4
    minimum_total_mib: 23000
"""

RETURN = r"""
gpus:
  description: The GPUs, each with index, minor, uuid, name, total_mib, used_mib, free_mib, reserved_mib, mig, lost and
    processes (pid, name, used_mib, unit). A size is null if the driver reports N/A.
  returned: when nvidia-smi answered
  type: list
  elements: dict
  sample: [{index: 0, minor: 0, uuid: GPU-1, name: NVIDIA L4, total_mib: 23034, used_mib: 3, free_mib: 22566,
    reserved_mib: 464, mig: false, lost: false, processes: []}]
driver_version:
  description: Version of the driver.
  returned: when nvidia-smi answered
  type: str
  sample: 580.95.05
cuda_version:
  description: Newest CUDA version that the driver supports.
  returned: when nvidia-smi answered
  type: str
  sample: "13.0"
notes:
  description: Remarks needed to understand the figures, such as MIG or fields that are N/A; also shown as warnings.
  returned: when nvidia-smi answered
  type: list
  elements: str
waited_s:
  description: Seconds that the module waited.
  returned: when nvidia-smi answered
  type: int
kind:
  description: Why there are no figures (no_nvidia_smi, no_driver, no_gpu, library_mismatch, hang, gpu_lost, mig,
    not_available, permissions, nvml, unreadable, failed), or C(unmet) if a requirement is not met.
  returned: on failure
  type: str
unmet:
  description: The requirements that are not met.
  returned: on failure
  type: list
  elements: str
"""

import time

from ..module_utils.gpu import nvidia_smi
from ..module_utils.host_module import HostModule

WISHES = ("count", "name", "minimum_total_mib", "minimum_free_mib", "maximum_used_mib")


def main() -> None:
    module = HostModule(
        argument_spec={
            "index": {"type": "int"},
            "count": {"type": "int"},
            "name": {"type": "str"},
            "minimum_total_mib": {"type": "int"},
            "minimum_free_mib": {"type": "int"},
            "maximum_used_mib": {"type": "int"},
            "wait_timeout": {"type": "int", "default": 0},
            "wait_interval": {"type": "int", "default": 5},
            "command_timeout": {"type": "int", "default": 20},
        },
        supports_check_mode=True,
    )
    wanted = {key: module.params[key] for key in WISHES}
    patience = 0 if module.check_mode else module.params["wait_timeout"]
    start = time.monotonic()
    try:
        while True:
            found = nvidia_smi.read(module.params["command_timeout"])
            gpus = found["gpus"]
            if module.params["index"] is not None:
                gpus = [nvidia_smi.choose(gpus, module.params["index"])]
            notes = nvidia_smi.notes(gpus)
            problems = nvidia_smi.unmet(gpus, wanted)
            waited = int(time.monotonic() - start)
            # Only memory can change while waiting: a missing GPU or a wrong name is reported at once.
            if not problems or waited >= patience or nvidia_smi.unmet(gpus, {k: wanted[k] for k in WISHES[:3]}):
                break
            time.sleep(min(module.params["wait_interval"], max(1, patience - waited)))
    except nvidia_smi.GpuError as error:
        module.fail_json(msg=str(error), kind=error.kind)
    result = {
        "gpus": gpus,
        "driver_version": found["driver_version"],
        "cuda_version": found["cuda_version"],
        "waited_s": waited,
        "notes": notes,
    }
    for note in notes:
        module.warn(note)
    if problems:
        text = nvidia_smi.shortfall(gpus, wanted)
        text += f" after {waited} s" if patience else ""
        module.fail_json(msg=text + ".", kind="unmet", unmet=problems, **result)
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
