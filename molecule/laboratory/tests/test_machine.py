"""A machine lacks what a role must install itself, as real hosts' images do."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    "program", ["cc", "gcc", "g++", "c++", "clang", "ld", "as", "make", "cmake", "ninja", "nvcc", "go", "curl", "pip3"]
)
def test_nothing_to_build_or_fetch_with(host, program):
    assert not host.exists(program)


@pytest.mark.parametrize("header", ["stdio.h", "types.h", "Python.h"])
def test_no_header_of_c_the_kernel_or_the_distribution_s_python(host, header):
    assert host.check_output("find /usr/include -name %s", header) == ""


def test_no_cuda_toolkit(host):
    assert host.check_output("find / -xdev '(' -name 'cuda*' -o -name 'nvcc*' ')'") == ""


def test_the_distribution_s_python_makes_no_environment(host):
    assert host.run("/usr/bin/python3 -c 'import ensurepip'").rc == 1


def test_roles_are_given_an_interpreter_that_is_there(host, inventory):
    output = host.check_output("%s -c 'import sys; print(sys.version_info[:2] >= (3, 10))'", inventory["vllm_python"])
    assert output == "True"
    assert inventory["ansible_python_interpreter"] == inventory["ai_server_python"] == inventory["vllm_python"]
