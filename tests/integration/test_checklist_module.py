"""The checklist of roles and engines: one call measures all checks; some are measured from the controller."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OWN = [
    {"what": "own", "kind": "disk", "options": {"free_mib": 1}, "cure": ""},
    {
        "what": "own, from outside",
        "kind": "disk",
        "options": {"free_mib": 1 << 40},
        "cure": "Buy one.",
        "outside": True,
    },
]


def measure(tmp_path, variables: dict, **arguments) -> tuple[list[dict], str]:
    """Return the rows of a task on this machine, and the output of the run."""
    tasks = [
        {"name": "Measure", "llm.server.checklist": {"checks": OWN, **arguments}, "register": "found"},
        {
            "name": "Keep the rows",
            "ansible.builtin.copy": {"dest": f"{tmp_path}/rows.json", "content": "{{ found.rows | to_json }}"},
        },
    ]
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "become": False, "tasks": tasks}
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    argv = [
        str(Path(sys.executable).with_name("ansible-playbook")),
        "-vvv",
        "-i",
        "localhost,",
        str(tmp_path / "play.yml"),
    ]
    done = subprocess.run([*argv, "-e", json.dumps(variables)], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((tmp_path / "rows.json").read_text()), done.stdout


def test_the_rows_come_in_order_whoever_measures_them(tmp_path):
    rows, _ = measure(tmp_path, {"housekeeping_free_mib": 1 << 40}, roles=["housekeeping"])
    assert [row["what"] for row in rows] == ["own", "own, from outside", "free disk"]
    assert [row["ok"] for row in rows] == [True, False, False]
    assert rows[1]["cure"] == "Buy one."
    assert rows[2]["cure"].startswith("Run playbooks/housekeeping.yml")


def test_a_role_that_is_to_be_absent_has_no_rows(tmp_path):
    rows, _ = measure(tmp_path, {"housekeeping_state": "absent"}, roles=["housekeeping"])
    assert [row["what"] for row in rows] == ["own", "own, from outside"]


def test_a_check_whose_condition_is_false_is_left_out(tmp_path):
    rows, _ = measure(tmp_path, {"backup_repository": ""}, roles=["backup"])
    assert [row["what"] for row in rows] == ["own", "own, from outside"]


def test_engines_come_first_with_their_own_variables_and_no_key_is_shown(tmp_path):
    settings = {"llama_cpp_port": 1, "llama_cpp_host": "127.0.0.1", "llama_cpp_api_key": "canary-key-0123456789"}
    settings |= {"llama_cpp_alias": "code", "llama_cpp_metrics": False}
    engine = {"name": "small", "kind": "llama_cpp", "settings": settings}
    rows, shown = measure(tmp_path, {}, engines=[engine])
    assert [row["what"] for row in rows[-2:]] == ["own", "own, from outside"]
    assert all(row["what"].startswith("llama.cpp small: ") for row in rows[:-2])
    assert "llama.cpp small: code answers" in [row["what"] for row in rows]
    assert not any(row["what"].endswith("/metrics") for row in rows)
    assert "canary" not in json.dumps(rows) + shown
