"""What a run of a playbook changed: the names of tasks, and of a batch's steps."""

from __future__ import annotations

import json

from lab import playbook


def test_a_task_is_named_itself_and_a_batch_by_the_steps_that_changed():
    assert playbook.changes("vllm : Run vLLM", {"changed": True}) == ["vllm : Run vLLM"]
    batch = {"changed": True, "changed_steps": ["Install the packages", "Build: once"]}
    assert playbook.changes("vllm : Install", batch) == ["vllm : Install the packages", "vllm : Build: once"]
    assert playbook.changes("vllm : Install: all", batch)[0] == "vllm : Install the packages"
    assert playbook.changes("Install", batch) == ["Install the packages", "Build: once"]


def test_an_unchanged_step_or_task_is_not_named():
    def event(name: str, **result) -> str:
        task = {"name": f"{playbook.COLLECTION}{name}"}
        return json.dumps({"_event": "v2_runner_on_ok", "task": task, "hosts": {"gpu-1": result}})

    text = "\n".join(
        [
            event("uv : Install uv", changed=False, changed_steps=[]),
            event("vllm : Install", changed=True, changed_steps=["Build"]),
            "  gpu-1: Build",
            event("vllm : Run vLLM", changed=True),
        ]
    )
    assert playbook.read(0, text).changed == ["vllm : Build", "vllm : Run vLLM"]
