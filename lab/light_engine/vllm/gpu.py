"""What an engine for GPUs does before it loads a model: it looks for devices and compiles. Both may fail.

A host has a GPU if the loader finds the driver's library; CUDA_VISIBLE_DEVICES="" hides it.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from flashinfer.jit.sampling import gen_sampling_module
from triton.backends.nvidia.driver import CudaUtils

from vllm import __version__

NODES = ("nvidiactl", "nvidia0", "nvidia-uvm")


def expected() -> bool:
    """Return whether this host should have a GPU."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return False
    return "libcuda.so.1" in subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True).stdout


def seen() -> bool:
    """Return whether the expected devices exist."""
    return not expected() or all(Path("/dev", name).is_char_device() for name in NODES)


def prepare() -> None:
    """Find the devices and compile; raise RuntimeError or CalledProcessError with the real programs' messages."""
    if not expected():
        return
    if not seen():
        raise RuntimeError("No CUDA GPUs are available")
    # On by default since some version after 0.20.
    if os.environ.get("VLLM_USE_FLASHINFER_SAMPLER", str(int(release() > (0, 20)))) == "1":
        gen_sampling_module().build_and_load()
    CudaUtils()


def release() -> tuple[int, int]:
    """Return the first two numbers of the version."""
    major, minor, *_ = __version__.split(".")
    return int(major), int(minor)
