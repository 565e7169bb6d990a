"""Tests only for the newest controller; tests/newest_controller.py runs this file with it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import yaml
from ansible.release import __version__ as core

from tests import newest_controller

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOKS = [ROOT / "site.yml", *sorted((ROOT / "playbooks").glob("*.yml"))]


def playbook(*words: str, **options) -> subprocess.CompletedProcess:
    program = Path(sys.executable).with_name("ansible-playbook")
    argv = [str(program), "-i", "inventories/production", *words]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, **options)


def test_the_readme_names_the_versions_that_run_here():
    text = re.sub(r"\s+", " ", (ROOT / "README.md").read_text())
    pair = f"ansible-core {core.rpartition('.')[0]} on Python {sys.version_info.major}.{sys.version_info.minor}"
    assert pair in text


def test_every_playbook_is_read_in_one_run():
    done = playbook("--syntax-check", *map(str, PLAYBOOKS))
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("playbook: ") == len(PLAYBOOKS)


def test_the_memory_plan_of_the_production_example_is_made():
    gpu = '{"gpu_memory_plan_gpu": {"name": "L4", "total_mib": 23034}}'
    config = f"gpu_memory_plan_config={ROOT / 'data/gpu_memory/exaone-3.5-2.4b-instruct.json'}"
    done = playbook("playbooks/plan.yml", "-e", gpu, "-e", config)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict: fits" in done.stdout


def test_a_deprecation_warning_is_found_in_the_log(tmp_path, monkeypatch):
    task = {"name": "Say something", "ansible.builtin.debug": {"msg": "said"}, "when": "{{ true }}"}
    written = tmp_path / "deprecated.yml"
    written.write_text(yaml.safe_dump([{"hosts": "localhost", "gather_facts": False, "tasks": [task]}]))
    log = tmp_path / "ansible.log"
    monkeypatch.setenv("ANSIBLE_LOG_PATH", str(log))
    done = playbook(str(written))
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = newest_controller.deprecations(log)
    assert "Conditionals should not be surrounded by templating delimiters" in found
