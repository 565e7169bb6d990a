"""What a run of a playbook changed: the names of tasks, and of a batch's steps."""

from __future__ import annotations

import json

from lab import playbook


def test_a_batch_is_named_by_the_steps_that_changed():
    assert playbook.steps_changed("vllm : Run vLLM", {"changed": True}) == []
    batch = {"changed": True, "changed_steps": ["Install the packages", "Build: once"]}
    assert playbook.steps_changed("vllm : Install", batch) == ["vllm : Install the packages", "vllm : Build: once"]
    assert playbook.steps_changed("vllm : Install: all", batch)[0] == "vllm : Install the packages"
    assert playbook.steps_changed("Install", batch) == ["Install the packages", "Build: once"]


def test_an_unchanged_step_or_task_is_not_named():
    def event(name: str, outcome: str = "ok", **result) -> str:
        task = {"name": f"{playbook.COLLECTION}{name}"}
        return json.dumps({"_event": f"v2_runner_on_{outcome}", "task": task, "hosts": {"gpu-1": result}})

    text = "\n".join(
        [
            event("uv : Install uv", changed=False, changed_steps=[]),
            event("vllm : Install", changed=True, changed_steps=["Build"]),
            "  gpu-1: Build",
            event("vllm : Run vLLM", changed=True),
            event("ai_server : Run", "failed", changed=True, changed_steps=["Stage"], msg="no space"),
        ]
    )
    assert playbook.read(2, text).changed == ["vllm : Build", "vllm : Run vLLM", "ai_server : Stage"]
