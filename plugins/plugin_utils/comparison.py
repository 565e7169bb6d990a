"""Compare with the host by the module batch.

Most tasks of a run without changes use that one module, because packing another one takes longer than running it.
"""

from __future__ import annotations

from ansible.plugins.action import ActionBase

from ..module_utils.batch import INTERNAL

# Keys of a result that Ansible shows.
SHOWN = ("warnings", "deprecations")


def compare_steps(action: ActionBase, steps: list[dict], task_vars: dict) -> tuple[list, dict]:
    """Return ``(the result of each step, that of the module)``; see `compare` of module_utils.batch."""
    # The host's journal must not contain the arguments: keys and passwords of proxies are among them.
    quiet = {**task_vars, "ansible_no_target_syslog": True}
    answer = action._execute_module("llm.server.batch", {"steps": steps}, task_vars=quiet)
    answer.pop("invocation", None)
    return answer.pop("compared", []), answer


def ask_batch(action: ActionBase, module: str, arguments: dict, task_vars: dict) -> dict:
    """Return what one module answers through the module batch: in check mode, a service with compare_only.

    It may have keys that are only for action plugins; see `public`.
    """
    found, answer = compare_steps(action, [{"name": module, "module": module, "options": arguments}], task_vars)
    return {**found[0], **shown(answer, found)} if found else answer


def public(result: dict) -> dict:
    """Return the result without the keys that are only for action plugins."""
    return {key: value for key, value in result.items() if key not in INTERNAL}


def shown(answer: dict, results: list[dict]) -> dict:
    """Return the warnings of the module and of the steps, and what Ansible found out about the host."""
    lists = {name: [each for result in (answer, *results) for each in result.get(name) or []] for name in SHOWN}
    return {name: each for name, each in {**lists, "ansible_facts": answer.get("ansible_facts")}.items() if each}
