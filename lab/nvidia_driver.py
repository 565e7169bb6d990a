"""Stand-ins for what NVIDIA's driver packages install: a library that finds no device, and the two programs.

The platform `bare` adds them to its userland; the sources are in `lab/stand_ins`.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from lab import host

STAND_INS = Path(__file__).with_name("stand_ins")
LIBRARY, MODPROBE, SMI = (STAND_INS / name for name in ("libcuda.c", "nvidia-modprobe.c", "nvidia-smi"))
PROGRAMS = {"gcc": "gcc", "/usr/include/stdio.h": "libc6-dev"}
COMPILE = ("gcc", "-O1", "-Wall", "-Wextra", "-Werror")


def recipe() -> str:
    """Return a digest of the stand-ins' sources."""
    return host.digest([path.read_text() for path in (LIBRARY, MODPROBE, SMI)])


def copy_into(root: Path) -> None:
    """Install the stand-ins into a machine's root file system."""
    host.ensure_packages(PROGRAMS)
    libraries, programs = root / "usr/lib/x86_64-linux-gnu", root / "usr/bin"
    for folder in (libraries, programs):
        folder.mkdir(parents=True, exist_ok=True)
    library = libraries / "libcuda.so.1"
    host.run([*COMPILE, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library), str(LIBRARY)])
    # Static, so that it runs with any C library of the machine.
    modprobe = programs / "nvidia-modprobe"
    host.run([*COMPILE, "-static", "-o", str(modprobe), str(MODPROBE)])
    modprobe.chmod(0o4755)
    shutil.copy(SMI, programs / "nvidia-smi")
    (programs / "nvidia-smi").chmod(0o755)
