"""No run shows the environment variables of an installer, at any verbosity."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CANARY = "canary-16180339"
ENVIRONMENT = {
    "PIP_INDEX_URL": f"https://someone:{CANARY}@index.example/simple",
    "UV_INDEX_OWN_TOKEN": CANARY,
    "SOME_SETTING": f"plain-{CANARY}",
    "UV_LINK_MODE": "symlink",
}
# Prints its environment to standard error, as an installer does when it fails.
LEAKING_PROGRAM = '#!/bin/sh\necho "cannot read $PIP_INDEX_URL with $UV_INDEX_OWN_TOKEN by symlink 1" >&2\nexit 1\n'


def play(tmp_path: Path, module: str, arguments: dict, *words: str) -> subprocess.CompletedProcess:
    """Run one task with -vvv and --diff; the values come from the inventory."""
    task = {"name": "Install", f"llm.server.{module}": {name: "{{ given." + name + " }}" for name in arguments}}
    task["vars"] = {"ansible_no_target_syslog": True}
    book = {"name": "Install", "hosts": "localhost", "connection": "local", "gather_facts": False, "become": False}
    (tmp_path / "book.yml").write_text(json.dumps([{**book, "tasks": [task]}], indent=1))
    variables = {"given": arguments, "ansible_python_interpreter": sys.executable}
    (tmp_path / "variables.json").write_text(json.dumps(variables))
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    argv = [program, "-i", "localhost,", "-vvv", "--diff", *words, "-e", f"@{tmp_path}/variables.json"]
    return subprocess.run([*argv, str(tmp_path / "book.yml")], capture_output=True, text=True, cwd=ROOT, check=False)


def arguments_of(tmp_path: Path) -> dict[str, dict]:
    program = tmp_path / "program"
    program.write_text(LEAKING_PROGRAM)
    program.chmod(0o755)
    commit = "0" * 40
    return {
        "model_files": {
            "model": "owner/model", "revision": commit, "cache": str(tmp_path), "python": str(program),
        },
        "python_environment": {"root": str(tmp_path / "environments"), "requirements": "a==1\n", "uv": str(program)},
        "application_source": {
            "root": str(tmp_path / "releases"), "url": f"http://u:{CANARY}@127.0.0.1:9/x", "checksum": "sha256:0",
        },
        "go_program": {
            "name": "tool", "version": "v1", "source": str(tmp_path / "absent"), "commit": commit, "go": "/absent",
            "go_version": "1", "root": str(tmp_path / "opt"),
        },
        "released_program": {
            "name": "tool", "version": "1", "root": str(tmp_path / "opt"), "checksum": f"sha256:{'0' * 64}",
            "url": f"http://someone:{CANARY}@127.0.0.1:9/tool.tar.gz",
        },
    }  # fmt: skip


def shown(done: subprocess.CompletedProcess) -> str:
    output = done.stdout + done.stderr
    assert "module_args:" in output, output
    return output


@pytest.mark.parametrize(
    "module", ["model_files", "python_environment", "application_source", "go_program", "released_program"]
)
def test_a_module_that_fails_shows_no_value(tmp_path, module):
    arguments = arguments_of(tmp_path)[module]
    if module != "released_program":
        arguments["environment"] = ENVIRONMENT
    done = play(tmp_path, module, arguments)
    output = shown(done)
    assert done.returncode != 0
    assert CANARY not in output
    if module in ("model_files", "python_environment"):
        result = " ".join(output.split())
        assert "cannot read https://index.example/simple with ******** by symlink 1" in result, "only what is secret"


def test_a_module_that_succeeds_shows_none_either(tmp_path):
    arguments = {**arguments_of(tmp_path)["python_environment"], "environment": ENVIRONMENT}
    done = play(tmp_path, "python_environment", arguments, "--check")
    output = shown(done)
    assert done.returncode == 0 and "UV_LINK_MODE: '********'" in output, output
    assert CANARY not in output


def test_a_call_that_is_wrong_shows_none_either(tmp_path):
    arguments = {"environment": ENVIRONMENT, "root": str(tmp_path), "requirements": "", "needed_mib": "many"}
    done = play(tmp_path, "python_environment", arguments)
    output = shown(done)
    assert done.returncode != 0 and "needed_mib" in output
    assert CANARY not in output
