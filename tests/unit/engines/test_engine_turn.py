"""An engine waits for the engines before it, but only for a limited time."""

import json

import pytest

from plugins.module_utils.engines import engine_turn


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    """A clock that only advances when code waits; return the list of waiting times in seconds."""
    now = [0.0]
    monkeypatch.setattr(engine_turn.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(engine_turn.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + seconds))
    return now


def serving_after(monkeypatch, seconds, clock):
    monkeypatch.setattr(engine_turn, "serves", lambda url: clock[0] >= seconds)


def test_one_that_serves_is_not_waited_for(monkeypatch, clock):
    serving_after(monkeypatch, 0, clock)
    assert engine_turn.await_engine("a.service", "http://x", 60) == ""
    assert clock[0] == 0


def test_one_that_starts_is_waited_for_until_it_serves(monkeypatch, clock):
    serving_after(monkeypatch, 20, clock)
    monkeypatch.setattr(engine_turn, "coming", lambda unit: True)
    assert engine_turn.await_engine("a.service", "http://x", 60) == ""
    assert clock[0] == 20


def test_one_that_does_not_run_is_not_waited_for(monkeypatch, clock):
    serving_after(monkeypatch, 999, clock)
    monkeypatch.setattr(engine_turn, "coming", lambda unit: False)
    assert "a.service does not run" in engine_turn.await_engine("a.service", "http://x", 60)
    assert clock[0] == 0


def test_one_that_never_serves_is_waited_for_its_time_alone(monkeypatch, clock):
    serving_after(monkeypatch, 999, clock)
    monkeypatch.setattr(engine_turn, "coming", lambda unit: True)
    assert "does not serve after 60 s" in engine_turn.await_engine("a.service", "http://x", 60)
    assert clock[0] == 60


def test_the_gpu_is_waited_for_until_it_has_what_the_plan_needs(monkeypatch, clock):
    monkeypatch.setattr(engine_turn, "free_mib", lambda gpus: 500 if clock[0] < 7 else 9000)
    assert engine_turn.await_gpu(8000, 1) == ""
    assert clock[0] == 7
    assert "9000 MiB are free on the GPU after 60 s, and the plan needs 9001 MiB" in engine_turn.await_gpu(9001, 1)


def test_a_gpu_that_does_not_answer_keeps_no_engine_down(monkeypatch):
    def silent(gpus):
        raise ValueError("no devices")

    monkeypatch.setattr(engine_turn, "free_mib", silent)
    assert "no devices" in engine_turn.await_gpu(1, 1)


def put(folder, name, script):
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


@pytest.mark.parametrize(
    ("output", "is_coming"),
    [
        ("ActiveState=active\nJob=0", True),
        ("ActiveState=activating\nJob=12", True),
        ("ActiveState=inactive\nJob=12", True),  # queued after a boot
        ("ActiveState=inactive\nJob=0", False),
        ("ActiveState=inactive", False),
        ("ActiveState=failed\nJob=0", False),
    ],
)
def test_systemd_lists_who_is_to_start(monkeypatch, tmp_path, output, is_coming):
    put(tmp_path, "systemctl", f"printf '{output}\\n'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert engine_turn.coming("a.service") is is_coming


def test_the_fullest_of_the_gpus_counts(monkeypatch, tmp_path):
    put(tmp_path, "nvidia-smi", "printf '21000\\n400\\n3\\n'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert engine_turn.free_mib(1) == 21000
    assert engine_turn.free_mib(2) == 400


@pytest.mark.parametrize(
    ("output", "booting"),
    [("starting", True), ("initializing", True), ("running", False), ("degraded", False), ("", False)],
)
def test_systemd_reports_whether_the_host_boots(monkeypatch, tmp_path, output, booting):
    put(tmp_path, "systemctl", f"echo {output}; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert engine_turn.boots() is booting


@pytest.mark.parametrize(("booting", "seconds"), [(True, [600.0, 600.0]), (False, [120.0, 0.0])])
def test_on_a_host_that_is_up_the_wait_is_short_in_all(monkeypatch, tmp_path, clock, booting, seconds):
    waits = []

    def wait(unit, url, most):
        waits.append(most)
        clock[0] += most
        return ""

    monkeypatch.setattr(engine_turn, "await_engine", wait)
    monkeypatch.setattr(engine_turn, "boots", lambda: booting)
    turn = {"earlier": [{"unit": f"{name}.service", "url": "http://x", "seconds": 600} for name in "ab"], "gpu": {}}
    (tmp_path / "turn.json").write_text(json.dumps(turn))
    engine_turn.main(str(tmp_path / "turn.json"))
    assert waits == seconds


def test_the_turn_is_read_from_its_file(monkeypatch, tmp_path, capsys):
    waits = []
    monkeypatch.setattr(engine_turn, "boots", lambda: True)
    monkeypatch.setattr(engine_turn, "await_engine", lambda *args: waits.append(args) or "")
    monkeypatch.setattr(engine_turn, "await_gpu", lambda mib, gpus: f"{mib} MiB on {gpus}")
    turn = {"earlier": [{"unit": "a.service", "url": "http://x", "seconds": 5}], "gpu": {"mib": 10, "gpus": 1}}
    (tmp_path / "turn.json").write_text(json.dumps(turn))
    engine_turn.main(str(tmp_path / "turn.json"))
    assert waits == [("a.service", "http://x", 5.0)]
    assert capsys.readouterr().out == "10 MiB on 1\n"


def test_without_its_file_there_is_nothing_to_wait_for(tmp_path):
    engine_turn.main(str(tmp_path / "turn.json"))
