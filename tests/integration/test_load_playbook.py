"""The load check refuses to run on hosts that the user did not name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lab import playbook

ROOT = Path(__file__).resolve().parents[2]
DEAD = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_ssh_retries": 0}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "load_host is missing; name the host to put under load, such as -e load_host=dead."),
        ({"load_host": ""}, "load_host is missing;"),
        ({"load_host": "nobody"}, "load_host is nobody, which is not in the inventory;"),
    ],
)
def test_without_a_host_of_the_inventory_no_host_is_contacted(tmp_path, given, message):
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps({"vllm": {"hosts": {"dead": DEAD}}}))
    outcome = playbook.run(playbook.command(inventory, "playbooks/load.yml", given), ROOT)
    assert outcome.code == 2 and message in outcome.message
    assert "UNREACHABLE" not in outcome.text and 'unreachable":1' not in outcome.text
