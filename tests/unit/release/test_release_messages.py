"""What the action plugins of a service print while it starts, and if it fails."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def action():
    module = importlib.import_module("plugins.plugin_utils.service")
    return module


def test_the_message_has_one_full_stop_and_the_state(action):
    journal = ["ValueError: LoRA rank 256 is greater than max_lora_rank 16"]
    result = {"release": "abc", "why": "its process left (exit-code, status 1)", "journal": journal, "elapsed": 19.0}
    told = action.failure("vllm", result, "release def serves again")
    assert told["msg"] == (
        "vllm: release abc does not serve: an adapter has rank 256, the engine allows 16. Raise vllm_max_lora_rank. "
        "Now release def serves again."
    )
    assert told["failed"] is True
    assert told["cause"]["id"] == "lora_rank_too_large"
    unknown = action.failure("vllm", {**result, "journal": ["Stopped."]}, "it is stopped")
    assert unknown["msg"] == (
        "vllm: release abc does not serve: its process left (exit-code, status 1). Now it is stopped."
    )
    strange = action.failure("vllm", {**result, "journal": ["ValueError: the moon is full"]}, "it is stopped")
    assert strange["msg"] == (
        "vllm: release abc does not serve: its process left (exit-code, status 1); ValueError: the moon is full. "
        "Now it is stopped."
    )


class Watched:
    """Replaces the plugin's steps on the machine: ready after so many seconds of its own clock."""

    def __init__(self, action, ready_after):
        self.clock, self.ready_after, self.slices = 0.0, ready_after, []
        self.plugin = action.ServiceStart.__new__(action.ServiceStart)
        self.plugin._task = type("Task", (), {"args": {"name": "vllm", "start_timeout": 12}})()
        self.plugin.step = self.step

    def step(self, step, task_vars, seconds, release, start_timeout):
        self.slices.append(seconds)
        self.clock += seconds
        ready = self.clock >= self.ready_after
        why = None if ready else "connection refused"
        return {"ready": ready, "dead": False, "why": why, "elapsed": self.clock, "journal": ["Starting to load model"]}


def test_a_wait_ends_at_its_limit(action):
    watched = Watched(action, ready_after=999)
    seen = watched.plugin.wait("vllm", "machine", "abc", {})
    assert watched.slices == [5.0, 5.0, 2.0]
    assert seen["why"] == "not ready after 12 s: connection refused"


def test_a_wait_ends_when_it_is_ready(action):
    watched = Watched(action, ready_after=7)
    assert watched.plugin.wait("vllm", "machine", "abc", {})["ready"] is True
    assert watched.slices == [5.0, 5.0]
