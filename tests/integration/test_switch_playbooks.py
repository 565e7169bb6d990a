"""What the playbooks for engines that take turns refuse before they connect to a host."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab import playbook

ROOT = Path(__file__).resolve().parents[2]
DEAD = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_ssh_retries": 0}
ENGINES = [
    {"name": "chat", "kind": "vllm", "group": "evaluation"},
    {"name": "feedback", "kind": "vllm", "port": 8002, "group": "evaluation"},
    {"name": "code", "kind": "vllm", "port": 8004},
]
NO_GROUP = "No engine of this inventory has a group; write group: NAME to those in engines that take turns."


@pytest.fixture
def run(tmp_path):
    """Run a playbook on two unreachable hosts, of which one has the engines."""

    def run(name, engines=ENGINES, **given):
        inventory = tmp_path / "hosts.json"
        hosts = {"dead": {**DEAD, **({"engines": engines} if engines else {})}}
        inventory.write_text(json.dumps({"engines": {"hosts": hosts}, "watch": {"hosts": {"other": DEAD}}}))
        outcome = playbook.run(playbook.command(inventory, f"playbooks/{name}.yml", given), ROOT)
        assert outcome.code == 2
        assert "UNREACHABLE" not in outcome.text and 'unreachable":1' not in outcome.text
        return outcome.message

    return run


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "to is missing; give one of chat (evaluation), feedback (evaluation), such as -e to=chat."),
        ({"to": "nobody"}, "to is nobody, which is no engine of this inventory; give one of chat (evaluation)"),
        ({"to": "code"}, "to is code, which has no group, so it always serves; give one of chat (evaluation)"),
        ({"to": "vllm", "engines": []}, NO_GROUP),
    ],
)
def test_an_engine_that_cannot_be_switched_to_is_refused(run, given, message):
    assert message in run("switch", **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"command": "true"}, "group is missing; give one of evaluation, such as -e group=evaluation."),
        (
            {"command": "true", "group": "x"},
            "group is x, which no engine of this inventory has; give one of evaluation",
        ),
        ({"group": "evaluation"}, 'command is ""; give a program with its arguments'),
        ({"group": "evaluation", "command": "echo 'a"}, 'command is "echo \'a"; give a program with its arguments'),
        (
            {"group": "evaluation", "command": "true", "run_on": "moon"},
            'run_on is "moon"; it must be one of controller, host.',
        ),
        ({"group": "evaluation", "command": "true", "run_timeout": 0}, "run_timeout is 0"),
        ({"group": "x", "command": "true", "engines": []}, NO_GROUP),
    ],
)
def test_a_run_with_bad_input_is_refused(run, given, message):
    assert message in run("one_after_another", **given)


def test_words_that_ansible_would_lose_are_refused(tmp_path):
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps({"engines": {"hosts": {"dead": {**DEAD, "engines": ENGINES}}}}))
    words = ["--extra-vars", "command=python3 evaluate.py"]
    given = playbook.command(inventory, "playbooks/one_after_another.yml", {"group": "evaluation"}, *words)
    assert 'command is "python3"; give a program with its arguments, in quotes' in playbook.run(given, ROOT).message
