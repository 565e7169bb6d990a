"""What the diagnosis finds on a machine, and its report."""

from __future__ import annotations

import socket
import time
from pathlib import Path

import pytest

from plugins.module_utils.diagnosis import causes, host, judge, report
from plugins.module_utils.gpu.memory import checks

TABLE = causes.load()
NOBODY = 65534


def evidence(*lines, states=(), failing=True, running=False, host_states=(), host_lines=(), problems=()):
    """Return the evidence that `look` returns, of one service named vllm."""
    unit = {
        "unit": "vllm.service",
        "running": running,
        "failing": failing,
        "begun": 0,
        "lines": [host._line(text, "vllm") for text in lines],
        "states": list(states),
    }
    own = {"lines": [host._line(text, "kernel") for text in host_lines], "states": list(host_states)}
    return {"services": {"vllm": unit}, "host": own, "problems": list(problems), "seconds": 1.0}


# -- units --


@pytest.mark.parametrize(
    ("load", "active", "result", "code", "status", "cause"),
    [
        ("not-found", "inactive", "success", 0, 0, "systemd_unit_missing"),
        ("masked", "inactive", "success", 0, 0, "systemd_unit_masked"),
        ("bad-setting", "inactive", "success", 0, 0, "systemd_unit_invalid"),
        ("loaded", "failed", "exit-code", 1, 203, "systemd_exec_203"),
        ("loaded", "failed", "exit-code", 1, 201, "systemd_exec_setup"),
        ("loaded", "failed", "oom-kill", 2, 9, "host_ram_oom_killed"),
        ("loaded", "failed", "timeout", 2, 15, "systemd_start_timeout"),
        ("loaded", "failed", "signal", 3, 31, "systemd_seccomp"),
        ("loaded", "failed", "core-dump", 3, 11, "systemd_killed"),
        ("loaded", "active", "success", 0, 0, None),
        ("loaded", "inactive", "success", 1, 0, None),
    ],
)
def test_the_state_of_a_unit_is_given_in_words_of_the_table(load, active, result, code, status, cause):
    shown = {"LoadState": load, "ActiveState": active, "Result": result}
    outcome = host.ending("vllm.service", {**shown, "ExecMainCode": str(code), "ExecMainStatus": str(status)})
    found = judge.judge([judge.Line(**host._line(text, "systemd")) for text in outcome], TABLE).cause
    assert (found and found.cause.id) == cause


def test_a_unit_that_systemd_is_about_to_start_again_has_failed():
    shown = {"LoadState": "loaded", "ActiveState": "activating", "SubState": "auto-restart", "Result": "exit-code"}
    result = host.ending("a.service", {**shown, "ExecMainCode": "1", "ExecMainStatus": "217"})
    assert result == [
        "a.service: Main process exited, code=exited, status=217/USER",
        "a.service: Failed with result 'exit-code'.",
    ]


def test_files_and_directories_of_a_unit_that_are_not_there_are_named(tmp_path):
    there, missing = tmp_path / "there", tmp_path / "gone file"
    there.touch()
    files = "".join(f"EnvironmentFiles={path} (ignore_errors=no)\n" for path in (there, missing))
    shown = host.properties(
        f"WorkingDirectory={missing}\n{files}EnvironmentFiles={tmp_path}/other (ignore_errors=yes)\n"
    )
    assert [(each["says"], each["agrees"]) for each in host.missing_paths("vllm.service", shown)] == [
        (f"vllm.service has EnvironmentFile={missing}, which does not exist.", ["systemd_env_file"]),
        (f"vllm.service has WorkingDirectory={missing}, which does not exist.", ["systemd_chdir_200"]),
    ]
    assert (
        host.missing_paths("vllm.service", host.properties(f"WorkingDirectory=!/home\nEnvironmentFiles={there} (x)"))
        == []
    )


def test_a_pattern_of_environment_files_is_missing_only_where_nothing_fits(tmp_path):
    shown = {"EnvironmentFiles": f"{tmp_path}/*.env (ignore_errors=no)"}
    assert len(host.missing_paths("vllm.service", shown)) == 1
    (tmp_path / "a.env").touch()
    assert host.missing_paths("vllm.service", shown) == []


def test_what_keeps_a_user_from_a_program_is_found_along_its_links(tmp_path):
    tmp_path.chmod(0o755)
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    python = home / "python"
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)
    link = tmp_path / "link"
    link.symlink_to(python)
    tool = tmp_path / "tool"
    tool.write_text(f"#!{link} -E\n")
    tool.chmod(0o755)
    for parent in tmp_path.parents:
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o001)
    assert host.obstacle(str(tool), NOBODY, {NOBODY}) == f"{home} is closed to its user"
    assert host.obstacle(str(tool), 0, {0}) is None
    home.chmod(0o755)
    assert host.obstacle(str(tool), NOBODY, {NOBODY}) is None
    python.chmod(0o644)
    assert host.obstacle(str(tool), NOBODY, {NOBODY}) == f"{python} is not executable for its user"
    assert host.obstacle(str(tool), 0, {0}) == f"{python} is not executable for its user"
    python.unlink()
    assert host.obstacle(str(tool), NOBODY, {NOBODY}) == f"{python} does not exist"
    link.unlink()
    link.symlink_to(link)
    assert host.obstacle(str(tool), NOBODY, {NOBODY}) == f"{link} is a link to itself"


def test_an_engines_model_and_adapters_are_checked(tmp_path, monkeypatch):
    model = tmp_path / "model"
    adapters = f"""- '{{"name": "a", "path": "{tmp_path}/a"}}'\n- b={tmp_path}/b"""
    config = f'"model": "{model}"\nmax-lora-rank: 16\nlora-modules:\n{adapters}\nport: 1\n'
    (missing,) = host.model_files(config)
    assert str(model) in missing["says"] and missing["wrong"] and "model_not_found" in missing["agrees"]
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert host.model_files(config)
    monkeypatch.setattr(checks, "check_model", lambda directory: [])
    messages = [each["says"] for each in host.model_files(config)]
    assert len(messages) == 2 and f"{tmp_path}/a" in messages[0] and f"{tmp_path}/b" in messages[1]
    assert host.model_files("model: owner/name\n") == []


# -- looks --


def test_a_check_that_fails_or_hangs_ends_alone():
    def broken():
        raise RuntimeError("no such command")

    found, problems = host.side_by_side({"a": lambda: 1, "b": broken, "c": lambda: time.sleep(1.5)}, 0.3)
    assert found == {"a": 1}
    assert problems == ["b: no such command", "c: no end within 0.3 s"]


def test_a_host_without_systemd_journal_and_gpu_can_be_read(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(host.store, "STORE", tmp_path)
    begun = time.monotonic()
    seen = host.look([{"name": "vllm"}], gpu=False)
    assert time.monotonic() - begun < host.LOOK_LIMIT
    assert any(problem.startswith("the unit of vllm: ") for problem in seen["problems"])
    assert "in what could be looked at" in report.of_host({**seen, "host": {"lines": [], "states": []}})["report"][0]


def test_obstacles_to_an_upstream():
    assert host.reach("http://nosuch.invalid/x").startswith("the name nosuch.invalid is not known")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        assert host.reach(f"http://127.0.0.1:{port}/") == f"127.0.0.1:{port} does not answer (Connection refused)"
        closed.listen()
        assert host.reach(f"http://127.0.0.1:{port}/") is None


def test_an_upstream_that_refuses_the_key_is_reported(server):
    server.pages["/v1"] = (401, "no")
    assert host.reach(f"{server.url}/v1", "key") == "it answers 401 to its key"
    assert host.reach(f"{server.url}/v1") is None


def test_memory_that_the_kernel_wanted_counts_for_the_service_that_it_killed():
    killed = judge.Line("Out of memory: Killed process 7 (python) total-vm:1kB", None, "kernel")
    texts = {
        "a.service": "OSError: [Errno 98] Address already in use",
        "b.service": "b.service: Main process exited, code=killed, status=9/KILL",
    }
    other, victim = (
        {"lines": [host._line(text, "x")], "failing": True, "begun": 0, "unit": unit} for unit, text in texts.items()
    )
    host._add_kernel_lines({"a": other, "b": victim}, [(1000.0, killed)])
    assert len(other["lines"]) == 1
    assert victim["lines"][0]["text"].startswith("Out of memory")


# -- the report --


def test_a_healthy_host_has_one_line():
    result = report.of_host(
        evidence(failing=False, running=True, states=[host.state("vllm.service is changed by x.")]), TABLE
    )
    assert (result["healthy"], result["report"], result["causes"]) == (True, ["Nothing is wrong here (vllm)."], [])


def test_a_cause_comes_first_with_its_evidence():
    line = "OSError: [Errno 98] error while attempting to bind: address already in use"
    result = report.of_host(
        evidence(line, states=[host.state("port 8001 is held by python3 (pid 7).", "port_in_use")],
                 host_states=[host.state("/ has 0 inodes left.", "disk_full", wrong=True)]),
        TABLE,
    )  # fmt: skip
    assert result["healthy"] is False
    assert result["report"][:4] == [
        "vllm: its port is taken.",
        "  cause  port_in_use (unit)",
        f"  proof  {line}",
        "         port 8001 is held by python3 (pid 7).",
    ]
    assert result["report"][-2:] == ["host, also seen:", "    - / has 0 inodes left."]
    assert result["causes"][0]["service"] == "vllm"


def test_a_fault_of_the_host_without_a_log_line_is_shown_alone():
    result = report.of_host(
        evidence(failing=False, running=True, host_states=[host.state("/ is full.", wrong=True)]), TABLE
    )
    assert (result["healthy"], result["causes"]) == (False, [])
    assert result["report"] == ["host, also seen:", "    - / is full."]


def test_an_unknown_failure_shows_its_deepest_exception():
    result = report.of_host(
        evidence("ValueError: the moon is full", "RuntimeError: Engine core initialization failed."), TABLE
    )
    assert result["report"][:2] == [
        "vllm: it failed, and no known cause explains it.",
        "  deepest exception  ValueError: the moon is full",
    ]


def test_no_key_is_shown():
    line = "OSError: [Errno 98] address already in use {'api_key': ['abc']}"
    line += " Authorization: Bearer abcdefghijkl http://u:p@h hf_abcdefghij"
    text = "\n".join(report.of_host(evidence(line), TABLE)["report"])
    assert not any(secret in text for secret in ("abc", "u:p"))


def test_facts_of_this_machine_can_be_read():
    for check in (host._disks, host._memory, host._changes):
        assert isinstance(check(), list)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h100.xml", []),
        ("h100_held.xml", ["GPU 0: 3599 of 81559 MiB are in use by python3 (pid 744, 3590 MiB)."]),
    ],
)
def test_a_held_card_is_a_fact_of_the_host(monkeypatch, tmp_path, name, message):
    """As read from an H100, idle and with a process that holds memory."""
    text = (Path(__file__).parent.parent / "data/nvidia_smi" / name).read_text()
    read = host.nvidia_smi.read
    monkeypatch.setattr(
        host.nvidia_smi, "read", lambda limit: read(limit, proc=str(tmp_path), run=lambda timeout: text)
    )
    found = host._gpu()
    assert found["lines"] == []
    # A machine with a driver may add a finding about its own library.
    assert [each["says"] for each in found["states"] if "MiB" in each["says"]] == message
