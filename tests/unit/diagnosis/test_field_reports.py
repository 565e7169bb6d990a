"""Cases from public reports (docs/field-reports.md) that no other test of the diagnosis contains."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest
import yaml

from plugins.module_utils.errors import UserError
from plugins.module_utils.host.swap_file import fstab_with
from plugins.module_utils.install import python_environment

ROOT = Path(__file__).resolve().parents[3]
UV = ROOT / ".venv/bin/uv"


def test_ai_server_keeps_idle_connections_longer_than_load_balancers_do():
    defaults = yaml.safe_load((ROOT / "roles/ai_server/defaults/main.yml").read_text())
    argv = yaml.safe_load((ROOT / "roles/ai_server/vars/main.yml").read_text())["__ai_server_argv"]
    assert defaults["ai_server_keep_alive"] > 600
    assert argv[argv.index("--timeout-keep-alive") + 1] == "{{ ai_server_keep_alive }}"


def test_another_swap_file_keeps_its_line():
    one, two = (f"/root/swapfile{number} none swap sw 0 0\n" for number in (1, 2))
    assert fstab_with(one, {"/root/swapfile2"}, "/root/swapfile2") == one + two
    assert fstab_with(one + two, {"/root/swapfile2"}, None) == one


@pytest.mark.skipif(os.geteuid() != 0 or not UV.is_file(), reason="only root can build as another user, with uv")
def test_an_interpreter_that_only_root_reaches_makes_no_environment(tmp_path, monkeypatch):
    private = tmp_path / "root"
    private.mkdir(mode=0o700)
    (private / "python3").symlink_to(os.path.realpath("/usr/bin/python3"))
    monkeypatch.setattr(python_environment, "LOCKS", tmp_path)
    inputs = {"requirements": "", "overrides": "", "constraints": "", "hashes": False, "imports": []}
    with tempfile.TemporaryDirectory() as open_to_all:
        Path(open_to_all).chmod(0o755)
        directory = Path(open_to_all) / "environment"
        builder = python_environment.Builder("uv", str(UV), str(private / "python3"), "daemon", {})
        with pytest.raises(UserError, match="Permission denied"):
            builder.build(directory, inputs, 1)
        assert not directory.exists()
