"""Looks for nvcc as FlashInfer does; the stand-in compiles nothing with it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

DEFAULT = "/usr/local/cuda"


class Sampler:
    """The module that would be compiled."""

    def build_and_load(self) -> None:
        """Raise RuntimeError with FlashInfer's message if there is no CUDA toolkit."""
        cuda_home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        if not (cuda_home or shutil.which("nvcc") or Path(DEFAULT).exists()):
            raise RuntimeError(f"Could not find nvcc and default cuda_home='{DEFAULT}' doesn't exist")


def gen_sampling_module() -> Sampler:
    """Return the module that would be compiled."""
    return Sampler()
