"""When a machine counts as idle."""

import importlib.util
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
SPEC = importlib.util.spec_from_file_location("idle_stop", ROOT / "roles/idle_stop/files/idle_stop.py")
idle_stop = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(idle_stop)

SETTINGS = {
    "minutes": 10,
    "interval": 60,
    "sources": [
        {"url": "http://one/metrics", "counters": ["vllm:prompt_tokens_total"], "gauges": ["vllm:num_requests_running"]}
    ],
    "sessions": True,
}


def metrics(tokens, running=0):
    return (
        "# HELP vllm:prompt_tokens_total Number of prefill tokens.\n"
        f'vllm:prompt_tokens_total{{model_name="a"}} {tokens}\n'
        f'vllm:prompt_tokens_total{{model_name="b"}} 1.0\n'
        f'vllm:prompt_tokens_total_other{{model_name="b"}} 99.0\n'
        f"vllm:num_requests_running {running}\n"
    )


def looks(*seen, sessions=0, minutes=None):
    """Return the idle seconds after one look per minute, or at `minutes`; each of `seen` is a text or an exception."""
    state, idle = None, []
    for number, one in zip(minutes or range(len(seen)), seen, strict=True):

        def fetch(url, one=one):
            if isinstance(one, Exception):
                raise one
            return one

        state, seconds = idle_stop.decide(SETTINGS, state, 1000 + number * 60, fetch, sessions)
        idle.append(seconds)
    return idle


def test_idle_time_grows_without_requests():
    assert looks(metrics(5), metrics(5), metrics(5)) == [0, 60, 120]


def test_a_request_begins_it_anew():
    assert looks(metrics(5), metrics(5), metrics(6), metrics(6)) == [0, 60, 0, 60]


def test_a_request_in_progress_is_not_idle():
    assert looks(metrics(5), metrics(5, running=1), metrics(5)) == [0, 0, 60]


def test_a_service_that_does_not_answer_is_idle_and_its_return_with_the_same_numbers_too():
    assert looks(metrics(5), OSError("refused"), metrics(5)) == [0, 60, 120]


def test_a_restarted_service_has_been_used():
    assert looks(metrics(5), OSError("refused"), metrics(0)) == [0, 60, 0]


@pytest.mark.parametrize(("minute", "idle"), [(4, [0, 60, 240]), (6, [0, 60, 0]), (90, [0, 60, 0])])
def test_missed_intervals_start_the_count_again(minute, idle):
    assert looks(metrics(5), metrics(5), metrics(5), minutes=[0, 1, minute]) == idle


def test_a_state_without_a_time_is_old():
    state = {"since": 0, "counters": [{"vllm:prompt_tokens_total": 6.0}]}
    assert idle_stop.decide(SETTINGS, state, 7200, lambda url: metrics(5), 0)[1] == 0


def test_removal_takes_the_state_along():
    tasks = yaml.safe_load((ROOT / "roles/idle_stop/tasks/remove.yml").read_text())
    assert "/run/idle-stop" in tasks[-1]["loop"]


def test_somebody_logged_in_keeps_the_machine_up():
    assert looks(metrics(5), metrics(5), sessions=1) == [0, 0]


def test_series_are_summed_over_labels_and_never_matched_by_prefix():
    assert idle_stop.read_metrics(metrics(5), ["vllm:prompt_tokens_total"]) == {"vllm:prompt_tokens_total": 6.0}


@pytest.mark.parametrize("line", ['x{model="a\u2028b\x85c"} 2.0', 'x{model="a} b"} 2 1700000000000', "x 2"])
def test_a_series_is_read_whatever_its_labels_hold(line):
    assert idle_stop.read_metrics(f"{line}\n", ["x"]) == {"x": 2.0}


@pytest.mark.parametrize("minutes_idle", [9, 11])
def test_the_command_runs_after_the_time(tmp_path, monkeypatch, minutes_idle):
    done = tmp_path / "done"
    settings = tmp_path / "settings.json"
    now = idle_stop.time.monotonic()
    state = {"since": now - minutes_idle * 60, "looked": now - 60, "counters": [{"vllm:prompt_tokens_total": 6.0}]}
    (tmp_path / "state.json").write_text(idle_stop.json.dumps(state), encoding="utf-8")
    settings.write_text(
        idle_stop.json.dumps({**SETTINGS, "sessions": False, "command": ["touch", str(done)]}), encoding="utf-8"
    )
    monkeypatch.setenv("RUNTIME_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(idle_stop, "fetch", lambda url: metrics(5))
    monkeypatch.setattr(idle_stop, "logged_in", lambda: 0)
    monkeypatch.setattr(idle_stop.sys, "argv", ["idle_stop.py", str(settings)])
    idle_stop.main()
    assert done.exists() == (minutes_idle >= 10)


def test_people_with_any_bytes_in_their_names_are_counted(tmp_path, monkeypatch):
    program = tmp_path / "loginctl"
    program.write_bytes(b"#!/bin/sh\nprintf ' 1 1000 caf\\351 seat0\\n 2 1000 caf\\351 - manager\\n'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert idle_stop.logged_in() == 1


def test_metrics_that_require_a_key_get_it(tmp_path):
    """Of all secrets in a file of variables, only the key is sent."""
    (tmp_path / "secrets.env").write_text("LLAMA_API_KEY=a,a\nAPI_KEY=the-key\n")
    assert idle_stop.key_in(tmp_path / "secrets.env") == "the-key"
    assert idle_stop.key_in(tmp_path / "absent") == ""
    requests = []
    source = {**SETTINGS["sources"][0], "bearer_file": "/etc/code/secrets.env"}
    idle_stop.look(source, lambda *how: requests.append(how) or metrics(1))
    idle_stop.look(SETTINGS["sources"][0], lambda *how: requests.append(how) or metrics(1))
    assert requests == [("http://one/metrics", "/etc/code/secrets.env"), ("http://one/metrics",)]
