"""Check that the running NVIDIA driver, its libraries on disk and the kernel of the next boot match.

Plain Python; changes nothing.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from . import nvidia_smi

LOADED = Path("/sys/module/nvidia/version")
LDCONFIG = "/sbin/ldconfig"
BOOT = Path("/boot")
MODULES = Path("/lib/modules")
DEVICES = Path("/dev")


def loaded_version(path: Path = LOADED) -> str | None:
    """Return the version of the loaded kernel module, such as ``580.95.05``; None if none is loaded."""
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def library_version(cache: str) -> str | None:
    """Return the version of the libcuda that the loader finds, from the output of ``ldconfig -p``; None if none.

    The driver installs ``libcuda.so.1`` as a link to ``libcuda.so.<version>``.
    """
    for line in cache.splitlines():
        name, _, path = line.strip().partition(" => ")
        if name.startswith("libcuda.so.1 ") and "x86-64" in name:
            found = re.search(r"\.so\.(\d+\.\d[\d.]*)$", str(Path(path).resolve()))
            return found[1] if found else None
    return None


def linker_cache() -> str:
    """Return the output of ``ldconfig -p``."""
    return subprocess.run([LDCONFIG, "-p"], capture_output=True, text=True, errors="replace", check=False).stdout


def mismatch(loaded: str | None, library: str | None) -> str | None:
    """Return the sentence for a driver and a library of different versions, None if they match or one is unknown."""
    if not loaded or not library or loaded == library:
        return None
    return (
        f"The NVIDIA driver that runs is {loaded}, its library on disk is {library} (an upgrade without a reboot): "
        "reboot this host."
    )


def next_kernel(boot: Path = BOOT, modules: Path = MODULES) -> tuple[str, bool]:
    """Return the newest installed kernel, which the next boot starts, and whether it has an NVIDIA module.

    Returns ``("", True)`` if no kernel is installed, as in a container.
    """
    kernels = [path.name.removeprefix("vmlinuz-") for path in boot.glob("vmlinuz-*")]
    if not kernels:
        return "", True
    newest = max(kernels, key=lambda name: [int(part) if part.isdigit() else -1 for part in re.split(r"[.-]", name)])
    return newest, any((modules / newest).rglob("nvidia.ko*"))


def unready_kernel(kernel: str, has_module: bool) -> str | None:
    """Return the sentence for a next kernel without a module of the driver."""
    if has_module:
        return None
    return (
        f"Kernel {kernel}, which the next boot starts, has no NVIDIA module: install the module for it "
        f"(dkms autoinstall -k {kernel}, or the package linux-modules-nvidia-<branch>-{kernel}) before a reboot."
    )


def missing_nodes(count: int, devices: Path = DEVICES) -> list[str]:
    """Return which device nodes of ``count`` GPUs and of CUDA's unified memory are missing."""
    names = ["nvidiactl", "nvidia-uvm", *(f"nvidia{number}" for number in range(count))]
    return [f"/dev/{name}" for name in names if not (devices / name).is_char_device()]


def read() -> dict:
    """Return ``driver_version``, ``library_version`` ("" if unknown) and ``warnings``.

    Raises `nvidia_smi.GpuError` if the driver and its library differ or the driver does not answer.
    """
    loaded, library = loaded_version(), library_version(linker_cache())
    sentence = mismatch(loaded, library)
    if sentence:
        raise nvidia_smi.GpuError("library_mismatch", sentence)
    answered = nvidia_smi.read()["driver_version"]
    warning = unready_kernel(*next_kernel())
    return {"driver_version": answered, "library_version": library or "", "warnings": [warning] if warning else []}
