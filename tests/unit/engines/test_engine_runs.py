"""A command against an engine: its input, what is kept of it, and its result."""

from __future__ import annotations

import json
import stat
import sys

import pytest

from plugins.action import engine_command
from plugins.filter import engine_states as filters
from plugins.module_utils.engines import engine_runs

KEY = "canary-key-31415926"
SHOW = "import json, os, sys; print(json.dumps([sys.argv[1:], {k: v for k, v in os.environ.items() if 'ENGINE' in k}]))"


def run(*argv, timeout=20):
    return engine_runs.run(list(argv), "chat", "http://127.0.0.1:8001", "lab/chat", KEY, timeout)


def test_the_engine_gets_its_key_by_the_environment():
    result = run(sys.executable, "-c", SHOW, "$HOME", "a b")
    words, found = json.loads(result["stdout"])
    assert words == ["$HOME", "a b"]
    assert found == {
        "ENGINE_NAME": "chat",
        "ENGINE_URL": "http://127.0.0.1:8001/v1",
        "ENGINE_MODEL": "lab/chat",
        "ENGINE_API_KEY": engine_runs.HIDDEN,  # as it is stored
    }
    assert result["rc"] == 0 and KEY not in json.dumps(result)


def test_a_command_has_the_key_itself():
    assert run(sys.executable, "-c", f"import os; assert os.environ['ENGINE_API_KEY'] == '{KEY}'")["rc"] == 0


def test_a_failure_is_reported_with_its_last_line():
    result = run(sys.executable, "-c", "import sys; print('out'); sys.exit('one\\ntwo')")
    assert engine_runs.sentence(result, 20) == f"exit code 1 after {result['seconds']:.0f} s: two"


def test_a_command_that_exceeds_its_timeout_is_ended_with_its_children():
    result = run("/bin/sh", "-c", "echo begun; sleep 60 & wait", timeout=1)
    assert result["rc"] == engine_runs.OUT_OF_TIME and result["stdout"] == "begun\n" and result["seconds"] < 20
    assert engine_runs.sentence(result, 1) == "ended after 1 s, which run_timeout allows"


def test_a_missing_program_is_reported():
    result = run("/nowhere/program")
    assert (result["rc"], result["stderr"]) == (
        engine_runs.NOT_STARTED,
        "/nowhere/program: No such file or directory\n",
    )


def test_the_log_has_all_of_it_and_only_its_owner_can_read_it(tmp_path):
    values = {"rc": 3, "seconds": 1.5, "stdout": "a\n", "stderr": "b\n"}
    path = tmp_path / "runs/gpu1/chat.log"
    engine_command.write(path, engine_runs.log_of(values, ["evaluate", "--all"], "chat", "lab/chat"))
    assert path.read_text() == (
        'engine: "chat"\nmodel: "lab/chat"\ncommand: ["evaluate", "--all"]\nrc: 3\nseconds: 1.5\n'
        "\n--- stdout\na\n\n--- stderr\nb\n"
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600 and stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [each.name for each in path.parent.iterdir()] == ["chat.log"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("python3 a.py 'b c' $HOME | x", ["python3", "a.py", "b c", "$HOME", "|", "x"]),
        (["a", 1], ["a", "1"]),
        ("", []),
        ("echo 'a", []),
        (None, []),
    ],
)
def test_the_words_of_a_command_are_read_without_a_shell(command, words):
    assert filters.command_words(command) == words


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"msg": "chat: it left."}, "it left"),
        ({"results": [{"msg": "x"}, {"failed": True, "msg": "chat: no."}], "msg": "One or more items failed"}, "no"),
        ({}, "it failed"),
    ],
)
def test_the_reason_of_a_failure(result, reason):
    assert filters.reason_of(result, "chat") == reason


@pytest.mark.parametrize(
    ("result", "ok", "message"),
    [
        ({"rc": 0, "says": "done after 1 s", "seconds": 1.0, "log": "/x"}, True, "chat: done after 1 s"),
        ({"rc": 2, "says": "exit code 2 after 1 s"}, False, "chat: exit code 2 after 1 s"),
        ({"failed": True, "msg": "chat does not serve: no."}, False, "chat does not serve: no"),
        ({"skipped": True}, None, "chat: nothing is run in check mode"),
    ],
)
def test_a_turn_is_green_only_where_its_command_was(result, ok, message):
    turn = filters.turn_of(result, "chat")
    assert (turn["ok"], turn["told"]) == (ok, message)
    (row,) = filters.turn_rows([turn])
    assert row["ok"] is ok and row["what"] == "chat"


def test_a_list_that_was_not_validated_yet_has_names_all_the_same():
    assert filters.engine_names(["x", {"name": "chat", "group": "g", "api_key": KEY}, {}]) == [
        {"name": "chat", "group": "g"},
        {"name": "None", "group": ""},
    ]
