"""Compile what the installed engine compiles at run time; print in one sentence what is missing.

    check_toolchain.py [triton] [inductor] [flashinfer_sampler]

Run it with the engine's interpreter, as its user and in its sandbox. It compiles every part again, so an old cache
hides no error. Sources: triton/runtime/build.py and triton/backends/nvidia/driver.py (3.6.0),
torch/_inductor/cpp_builder.py (2.11.0), flashinfer/jit/cpp_ext.py (0.6.12).
"""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
# Pattern in the tools' output, what is missing; the first match is used.
MISSING = (
    (r"Failed to find C compiler", "there is no C compiler: install gcc"),
    (r"fatal error: Python\.h", f"the headers of Python {PYTHON} are missing: install libpython{PYTHON}-dev"),
    (r"InvalidCxxCompiler|cannot execute .*cc1plus", "there is no C++ compiler: install g++"),
    (r"Could not find nvcc", "there is no nvcc: install a CUDA toolkit, or set VLLM_USE_FLASHINFER_SAMPLER to 0"),
    (r"No such file or directory: 'ninja'", "ninja is not on the PATH: add the environment's bin to it"),
    (r"fatal error: \w[\w/.-]*: No such file", "the headers of the C library are missing: install libc6-dev"),
    (
        r"libcuda\.so cannot found|cannot find -l:?(lib)?cuda\b",
        "ldconfig does not know libcuda.so.1: install the driver's libraries (libnvidia-compute), then run ldconfig",
    ),
    (
        r"CUDA compiler and CUDA toolkit headers are incompatible",
        "nvcc and the CUDA headers are of different versions: point CUDA_HOME at one toolkit",
    ),
    (
        r"failed to map segment from shared object",
        "compiled code cannot be loaded from the cache: mount its file system without noexec",
    ),
    (
        r"\[Errno (?:13|30)\][^']*'(?P<path>[^']*)'",
        r"the compile cache cannot be written (\g<path>): give it a place below the engine's home",
    ),
)


def triton() -> None:
    """Compile and load the helper that Triton needs before its first kernel."""
    cache = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="check-", dir=cache) as folder:
        os.environ["TRITON_CACHE_DIR"] = folder
        from triton.backends.nvidia.driver import CudaUtils

        CudaUtils()


def inductor() -> None:
    """Compile and load a library with the C++ compiler that torch.compile would choose."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    cache = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="check-", dir=cache) as folder:
        source, library = Path(folder) / "check.cpp", Path(folder) / "check.so"
        source.write_text('#include <vector>\nextern "C" int check() { return std::vector<int>(1).size(); }\n')
        subprocess.run([get_cpp_compiler(), "-shared", "-fPIC", "-o", str(library), str(source)], check=True)
        ctypes.CDLL(str(library)).check()


def flashinfer_sampler() -> None:
    """Compile FlashInfer's sampler into its own cache, as the profiling run does; takes minutes the first time."""
    from flashinfer.jit.sampling import gen_sampling_module

    gen_sampling_module().build_and_load()


PARTS = {function.__name__: function for function in (triton, inductor, flashinfer_sampler)}


def missing(output: str) -> str:
    """Return the sentence for the tools' output, or else its last line."""
    for pattern, sentence in MISSING:
        match = re.search(pattern, output)
        if match:
            return match.expand(sentence) if match.groupdict() else sentence
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1] if lines else "it ended without a word"


def main() -> None:
    if sys.argv[1] == "--compile":
        PARTS[sys.argv[2]]()
        return
    for name in sys.argv[1:]:
        command = [sys.executable, __file__, "--compile", name]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
        if done.returncode:
            sys.exit(f"{name} cannot be compiled: {missing(done.stdout)}.")


if __name__ == "__main__":
    main()
