"""The tables of causes and phases against journals of real starts."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
STARTS = yaml.safe_load((ROOT / "tests/data/journal/starts.yml").read_text())
CAUSES = yaml.safe_load((ROOT / "data/journal/causes.yml").read_text())
PHASES = yaml.safe_load((ROOT / "data/journal/phases.yml").read_text())
ROLES = {path.parent.parent.name for path in ROOT.glob("roles/*/meta/argument_specs.yml")}
VARIABLES = {
    name
    for role in ROLES
    for name in yaml.safe_load((ROOT / f"roles/{role}/meta/argument_specs.yml").read_text())["argument_specs"]["main"][
        "options"
    ]
}


@pytest.fixture(scope="module")
def action():
    """The action plugin, which reads the tables."""
    spec = importlib.util.spec_from_file_location("release_action", ROOT / "plugins/action/service_release.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("start", STARTS, ids=lambda start: start["name"])
def test_a_journal_is_explained(action, start):
    found = action.known("causes", start["service"], start["journal"])
    assert (found and found["id"]) == start["cause"]
    if start["cause"]:
        assert start["says"] in found["says"]
        assert "\\" not in found["says"] + found["cure"]


@pytest.mark.parametrize("start", [start for start in STARTS if "phase" in start], ids=lambda start: start["name"])
def test_a_start_is_told_by_its_last_phase(action, start):
    assert action.known("phases", start["service"], start["journal"])["id"] == start["phase"]


def test_each_row_is_whole():
    names = [row["id"] for row in [*CAUSES, *PHASES]]
    assert len(set(names)) == len(names)
    for row in [*CAUSES, *PHASES]:
        groups = re.compile(row["matches"]).groups
        for text in (row["says"], row.get("cure", "")):
            assert all(int(number) <= groups for number in re.findall(r"\\(\d)", text)), row["id"]


@pytest.mark.parametrize("row", CAUSES, ids=lambda row: row["id"])
def test_a_cure_names_variables_that_exist_and_only_of_its_services(row):
    named = {word for word in re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", row["cure"]) if word.split("_")[0] in PREFIXES}
    assert named <= VARIABLES
    if named:
        assert row.get("services"), "a row that names a role's variables is about that role's service"


PREFIXES = {name.split("_")[0] for name in VARIABLES}


def test_the_message_ends_once_and_says_how_things_stand(action):
    journal = ["ValueError: LoRA rank 256 is greater than max_lora_rank 16"]
    result = {"release": "abc", "why": "its process left (exit-code, status 1)", "journal": journal, "elapsed": 19.0}
    told = action.failure("vllm", result, "release def serves again")
    assert told["msg"] == (
        "vllm: release abc does not serve: an adapter has rank 256, the engine allows 16. Raise vllm_max_lora_rank. "
        "Now release def serves again."
    )
    assert told["failed"] is True
    unknown = action.failure("vllm", {**result, "journal": ["Stopped."]}, "it is stopped")
    assert unknown["msg"] == (
        "vllm: release abc does not serve: its process left (exit-code, status 1). Now it is stopped."
    )


class Watched:
    """Stands in for the plugin's phases on the machine: ready, or dead, after so many seconds of its own clock."""

    def __init__(self, action, ready_after):
        self.clock, self.ready_after, self.slices = 0.0, ready_after, []
        self.plugin = action.ActionModule.__new__(action.ActionModule)
        self.plugin._task = type("Task", (), {"args": {"name": "vllm", "start_timeout": 12}})()
        self.plugin._phase = self.phase

    def phase(self, phase, task_vars, seconds, release, start_timeout):
        self.slices.append(seconds)
        self.clock += seconds
        ready = self.clock >= self.ready_after
        why = None if ready else "connection refused"
        return {"ready": ready, "dead": False, "why": why, "elapsed": self.clock, "journal": ["Starting to load model"]}


def test_a_wait_ends_at_its_limit(action):
    watched = Watched(action, ready_after=999)
    seen = watched.plugin._wait("vllm", "machine", "abc", {})
    assert watched.slices == [5.0, 5.0, 2.0]
    assert seen["why"] == "not ready after 12 s: connection refused"


def test_a_wait_ends_when_it_is_ready(action):
    watched = Watched(action, ready_after=7)
    assert watched.plugin._wait("vllm", "machine", "abc", {})["ready"] is True
    assert watched.slices == [5.0, 5.0]
