"""What `make gpu-check` writes before it touches a host."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def gpu_check(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location("gpu_check", ROOT / "tests/gpu_check.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "FOLDER", tmp_path / "gpu_check")
    return module


@pytest.mark.parametrize(
    "host, reached",
    [
        ("ubuntu@203.0.113.7", {"user": "ubuntu", "address": "203.0.113.7", "port": 22}),
        ("gpu.example.com:2222", {"user": None, "address": "gpu.example.com", "port": 2222}),
    ],
)
def test_a_host_is_read(gpu_check, host, reached):
    assert gpu_check.reach(host) == reached


@pytest.mark.parametrize("host", ["", "a b", "u@h:port", "-oProxyCommand=x y"])
def test_an_invalid_host_is_refused_by_name(gpu_check, host):
    with pytest.raises(SystemExit, match="HOST is"):
        gpu_check.reach(host)


def test_keys_are_created_again_and_only_their_owner_reads_them(gpu_check, tmp_path):
    own = tmp_path / "own.yml"
    own.write_text("vllm_max_model_len: 4096\n")
    first, second = gpu_check.variables(str(own)), gpu_check.variables(None)
    assert first["vllm_max_model_len"] == 4096
    assert first["vault_vllm_api_key"] != second["vault_vllm_api_key"]
    gpu_check.prepare(gpu_check.reach("ubuntu@203.0.113.7"), first)
    for name in ("inventory/machine.yml", "variables.yml", "ssh_config"):
        assert (gpu_check.FOLDER / name).stat().st_mode & 0o077 == 0, name
    every = yaml.safe_load((gpu_check.FOLDER / "inventory/machine.yml").read_text())["all"]
    machine = every["hosts"]["machine"]
    assert (machine["ansible_user"], list(every["children"])) == ("ubuntu", ["gpu", "vllm"])
    assert Path(machine["gpu_host_variables"]).is_file()
