"""The engine that production installs, up to the missing device."""

from __future__ import annotations

import json

import pytest

ENVIRONMENTS = "/app/vllm-server/environments"
HEADERS = "/usr/include/python3.*/Python.h"


@pytest.fixture(scope="module")
def started(converge):
    """The run that starts the engine: all is accepted, and the engine finds no device."""
    return converge(playbook="serve.yml")


def test_the_environment_is_the_one_of_the_lock(host):
    (environment,) = host.file(ENVIRONMENTS).listdir()
    python = f"{ENVIRONMENTS}/{environment}/bin/python"
    command = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    assert json.loads(host.check_output("%s -c %s vllm torch triton", python, command)) == {
        "vllm": "0.23.0", "torch": "2.11.0", "triton": "3.6.0",
    }  # fmt: skip


@pytest.mark.parametrize(
    "path, cure",
    [("/usr/bin/gcc", "install gcc"), (HEADERS, "install libpython3."), ("/usr/include/stdlib.h", "install libc6-dev")],
    ids=["compiler", "python-headers", "c-headers"],
)
def test_without_a_part_of_the_toolchain_it_is_refused_by_name(host, converge, hide_files, path, cure):
    hide_files(path)
    outcome = converge(playbook="serve.yml")
    assert outcome.code != 0
    assert "triton cannot be compiled" in outcome.message and cure in outcome.message, outcome.text
    assert not host.file("/etc/systemd/system/vllm.service").exists


def test_a_wrong_argument_is_refused_by_its_own_parser_without_a_gpu(host, converge):
    outcome = converge({"vllm_engine_arguments": {"max-loraz": 1}}, playbook="serve.yml")
    assert outcome.code != 0
    assert "unrecognized arguments: --max-loraz" in outcome.message, outcome.text
    assert not host.file("/etc/systemd/system/vllm.service").exists


def test_all_is_accepted_and_only_the_device_is_missing(host, started):
    assert started.code != 0
    assert "no GPU answers" in started.message, started.text
    config = host.file("/etc/vllm/config.yaml").content_string
    for line in ("dtype: bfloat16", "enable-lora: true", "enforce-eager: true", "gpu-memory-utilization: 0.85"):
        assert line in config.splitlines(), config


def test_the_helper_was_compiled_and_loaded_in_the_units_own_sandbox(host, started):
    journal = host.check_output("journalctl --unit vllm-trial --no-pager --output cat")
    assert "Finished vllm-trial.service" in journal.splitlines()[-1], journal
