"""How the toolchain check interprets the messages of compilers and libraries."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).resolve().parents[3] / "roles/vllm/files/check_toolchain.py"
HEADERS = f"libpython3.{sys.version_info.minor}-dev"


@pytest.fixture(scope="module")
def check():
    spec = importlib.util.spec_from_file_location("check_toolchain", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Seen on a machine without compilers with the wheels of vLLM 0.23.0.
@pytest.mark.parametrize(
    "output, cure",
    [
        ("RuntimeError: Failed to find C compiler. Please specify via CC environment variable", "install gcc"),
        ("/tmp/x/cuda_utils.c:7:10: fatal error: Python.h: No such file or directory", f"install {HEADERS}"),
        ("/tmp/x/cuda.h:54:10: fatal error: stdlib.h: No such file or directory", "install libc6-dev"),
        ("AssertionError: libcuda.so cannot found!\nPlease make sure GPU is set up", "run ldconfig"),
        ("/usr/bin/ld: cannot find -l:libcuda.so.1: No such file or directory", "run ldconfig"),
        ("torch._inductor.exc.InvalidCxxCompiler: No working C++ compiler found", "install g++"),
        ("gcc: fatal error: cannot execute 'cc1plus': posix_spawnp: No such file or directory", "install g++"),
        ("RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist", "CUDA toolkit"),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'ninja'", "PATH"),
        ('#error "CUDA compiler and CUDA toolkit headers are incompatible"', "CUDA_HOME"),
        ("ImportError: /h/.triton/c.so: failed to map segment from shared object", "without noexec"),
        ("OSError: [Errno 30] Read-only file system: '/srv/cache'", "(/srv/cache)"),
        ("PermissionError: [Errno 13] Permission denied: '/home/x/.triton'", "(/home/x/.triton)"),
    ],
)
def test_what_is_missing_is_named(check, output, cure):
    assert cure in check.missing(f"Traceback (most recent call last):\n{output}\n")


def test_an_unknown_error_is_the_tools_last_line(check):
    assert check.missing("Traceback:\n  somewhere\nValueError: something new\n\n") == "ValueError: something new"
    assert check.missing("\n") == "it ended without a word"


def test_each_part_of_the_table_of_versions_can_be_compiled(check):
    import yaml

    table = yaml.safe_load((PATH.parents[3] / "data/vllm/versions.yml").read_text())
    assert {row["id"] for row in table["compiled"]} == set(check.PARTS)
