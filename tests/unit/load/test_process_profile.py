"""How py-spy is called, and which units are refused before it is installed."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from plugins.module_utils.errors import UserError
from plugins.module_utils.load import process_profile
from plugins.module_utils.release import systemd_unit

SVG = "<svg><g><title>all (2,970 samples, 100%)</title></g></svg>"


@pytest.fixture
def unit(tmp_path, monkeypatch):
    """A fake unit and process; call it with systemd's answer and the running program."""

    def made(program: str = "/usr/bin/python3.11", maps: str = "", **live) -> Path:
        process = tmp_path / "812"
        process.mkdir()
        (process / "exe").symlink_to(program)
        (process / "maps").write_text(maps)
        shown = {"LoadState": "loaded", "ActiveState": "active", "MainPID": "812", **live}
        monkeypatch.setattr(systemd_unit, "show", lambda name: shown)
        return tmp_path

    return made


@pytest.mark.parametrize("program", ["/usr/bin/python3.11", "/app/venv/bin/python", "/usr/bin/python3.12 (deleted)"])
def test_a_unit_that_runs_python_is_taken(unit, program):
    assert process_profile.main_process("vllm.service", unit(program)) == 812


def test_a_program_with_python_built_in_is_taken(unit):
    proc = unit("/usr/sbin/uwsgi", "7f00-7f01 r-xp 0 08:01 1 /usr/lib/x86_64-linux-gnu/libpython3.11.so.1.0\n")
    assert process_profile.main_process("app.service", proc) == 812


@pytest.mark.parametrize(
    ("live", "program", "message"),
    [
        ({"LoadState": "not-found"}, "/usr/bin/python3", "vllm.service is not on this host"),
        (
            {"ActiveState": "failed", "MainPID": "0"},
            "/usr/bin/python3",
            "vllm.service is not running (failed); start it first.",
        ),
        (
            {},
            "/usr/local/bin/node_exporter",
            "vllm.service is not Python (node_exporter); py-spy can only profile Python.",
        ),
    ],
)
def test_what_cannot_be_recorded_is_refused(unit, live, program, message):
    with pytest.raises(UserError) as error:
        process_profile.main_process("vllm.service", unit(program, **live))
    assert message in str(error.value)


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_processes_are_not_stopped_and_children_are_recorded(tmp_path):
    output = tmp_path / "out.svg"
    tool = script(tmp_path / "py-spy", f'echo "$@" > {tmp_path}/asked; echo "{SVG}" > {output}')
    process_profile.record(tool, 812, 5, 100, output)
    arguments = (tmp_path / "asked").read_text().split()
    assert arguments[:3] == ["record", "--pid", "812"]
    assert {"--subprocesses", "--nonblocking"} <= set(arguments)
    assert arguments[arguments.index("--duration") + 1] == "5"
    assert process_profile.samples(output.read_text()) == 2970


def test_a_tool_that_fails_is_quoted(tmp_path):
    tool = script(
        tmp_path / "py-spy", "printf 'Error: Permission Denied\\n\\nStack backtrace:\\n 0: main\\n' >&2; exit 1"
    )
    with pytest.raises(
        UserError,
        match=r"^py-spy could not record process 812 \(exit status 1\): Error: Permission Denied$",
    ):
        process_profile.record(tool, 812, 5, 100, tmp_path / "out.svg")


def test_an_idle_process_has_no_graph_and_is_reported(tmp_path):
    message = (
        "[ERROR inferno::flamegraph] No stack counts found\\nError: Failed to write flamegraph: No stack counts found"
    )
    tool = script(tmp_path / "py-spy", f"printf '{message}' >&2; exit 1")
    with pytest.raises(UserError, match=r"^Process 812 was idle for all 5 s, .* profile_seconds"):
        process_profile.record(tool, 812, 5, 100, tmp_path / "out.svg")


def test_a_kernel_that_forbids_it_is_named(tmp_path, monkeypatch):
    (tmp_path / "scope").write_text("3\n")
    monkeypatch.setattr(process_profile, "RESTRICTED", tmp_path / "scope")
    with pytest.raises(UserError, match=r"kernel\.yama\.ptrace_scope is 3"):
        process_profile.record("py-spy", 812, 5, 100, tmp_path / "out.svg")
