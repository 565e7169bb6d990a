"""A role is validated once in a run, unless one of its variables changes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VALIDATE = {"name": "Validate", "llm.server.validate_variables": {"roles": ["housekeeping"]}}


def run(tmp_path, *tasks: dict) -> tuple[int, str, int]:
    """Return the exit code and the output of the tasks, and how often a variable of the role was read."""
    note = tmp_path / "read"
    counted = {"housekeeping_age_hours": f"{{{{ lookup('ansible.builtin.pipe', 'echo 24 | tee -a {note}') | int }}}}"}
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": counted, "tasks": [*tasks]}
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    argv = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", str(tmp_path / "play.yml")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr, len(note.read_text().splitlines())


def test_the_same_variables_are_read_once(tmp_path):
    code, output, once = run(tmp_path, VALIDATE)
    assert (code, once > 0) == (0, True), output
    (tmp_path / "read").unlink()
    code, output, twice = run(tmp_path, VALIDATE, VALIDATE)
    assert (code, twice) == (0, once), output


def test_a_changed_variable_is_validated(tmp_path):
    other = {**VALIDATE, "vars": {"housekeeping_free_mib": "many"}}
    code, output, _ = run(tmp_path, VALIDATE, other)
    assert code == 2
    assert "housekeeping_free_mib" in output


def test_facts_that_were_gathered_later_are_considered(tmp_path):
    setup = {"name": "Gather", "ansible.builtin.setup": {"gather_subset": ["!all", "!min", "platform"]}}
    (tmp_path / "read").write_text("")
    _, _, once = run(tmp_path, VALIDATE)
    (tmp_path / "read").write_text("")
    _, _, again = run(tmp_path, VALIDATE, setup, VALIDATE)
    assert again == 2 * once


def test_each_item_of_a_loop_is_validated(tmp_path):
    """A role that is included for each item has the same text in its variables every time."""
    (tmp_path / "each.yml").write_text(json.dumps([VALIDATE]))
    one = {"ansible.builtin.include_tasks": f"{tmp_path}/each.yml", "vars": {"housekeeping_free_mib": "{{ item }}"}}
    code, output, _ = run(tmp_path, {"name": "Each", "loop": ["1", "2"], **one})
    assert code == 0, output
    code, output, _ = run(tmp_path, {"name": "Each", "loop": ["1", "many"], **one})
    assert code == 2
    assert "housekeeping_free_mib" in output


def together(*roles: str, **variables) -> dict:
    return {"name": "Validate", "llm.server.validate_variables": {"roles": list(roles)}, "vars": variables}


def test_several_roles_are_validated_again_unless_they_were_together(tmp_path):
    both = ("housekeeping", "watchdog")
    (tmp_path / "read").write_text("")
    _, _, once = run(tmp_path, VALIDATE)
    for tasks, times in (
        ((together(*both), together(*both)), 1),
        ((together(*both, "node_exporter"), together(*both)), 1),
        # Their ports were not compared with each other.
        ((VALIDATE, together("watchdog"), together(*both)), 2),
    ):
        (tmp_path / "read").write_text("")
        code, output, again = run(tmp_path, *tasks)
        assert (code, again) == (0, times * once), output


def test_ports_of_roles_that_were_validated_alone_are_compared(tmp_path):
    ports = {"node_exporter_port": 9999, "victoria_metrics_port": 9999}
    alone = [together(role, **ports) for role in ("node_exporter", "victoria_metrics")]
    code, output, _ = run(tmp_path, VALIDATE, *alone)
    assert code == 0, output
    code, output, _ = run(tmp_path, VALIDATE, *alone, together("node_exporter", "victoria_metrics", **ports))
    assert code == 2 and "are both 9999" in output


def test_variables_of_all_roles_are_validated_without_a_role(tmp_path):
    code, output, _ = run(tmp_path, VALIDATE, together(download_mirror=7))
    assert code == 2 and "download_mirror" in output


def test_an_unknown_role_is_named(tmp_path):
    code, output, _ = run(tmp_path, VALIDATE, together("node_exporter", "promtial"))
    assert code == 2 and "There is no role promtial; use one of" in output
