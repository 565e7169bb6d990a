"""Compiles, links and loads a helper as Triton does: with the same compiler, headers, library and cache."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

SOURCE = """
#include <stdlib.h>
#include <Python.h>
extern int cuInit(unsigned int);
static PyObject *initialize(PyObject *self, PyObject *none) { return PyLong_FromLong(cuInit(0)); }
static PyMethodDef methods[] = {{"initialize", initialize, METH_NOARGS, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "cuda_utils", NULL, -1, methods};
PyMODINIT_FUNC PyInit_cuda_utils(void) { return PyModule_Create(&module); }
"""


def libcuda_folder() -> str:
    """Return the folder of libcuda.so.1 from the loader's cache; raise AssertionError if it is not there."""
    cache = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    found = [line.split()[-1] for line in cache.splitlines() if "libcuda.so.1" in line]
    assert found, "libcuda.so cannot found!\n"
    return str(Path(found[0]).parent)


def compiler() -> str:
    """Return the C compiler; raise RuntimeError if there is none."""
    found = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    if not found:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")
    return found


class CudaUtils:
    """The helper, compiled if it is not in the cache."""

    def __init__(self) -> None:
        cache = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
        target = cache / f"cuda_utils{sysconfig.get_config_var('EXT_SUFFIX')}"
        if not target.exists():
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory() as folder:
                source, made = Path(folder) / "cuda_utils.c", Path(folder) / target.name
                source.write_text(SOURCE)
                headers = sysconfig.get_paths(scheme="posix_prefix")["include"]
                link = ["-l:libcuda.so.1", f"-L{libcuda_folder()}", f"-I{headers}"]
                subprocess.check_call([compiler(), str(source), "-O3", "-shared", "-fPIC", "-o", str(made), *link])
                shutil.copy(made, target)
        spec = importlib.util.spec_from_file_location("cuda_utils", target)
        helper = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(helper)
        self.initialize = helper.initialize
