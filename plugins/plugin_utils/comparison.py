"""Run a module by the module batch, which other tasks of a run use too: packing a module takes longer than running it."""

from __future__ import annotations

from ansible.plugins.action import ActionBase

from ..module_utils.batch import INTERNAL


def compare(action: ActionBase, module: str, arguments: dict, task_vars: dict) -> dict:
    """Return the result of the module's comparison with the host; see `compare` of module_utils.batch.

    It may have the keys `INTERNAL`; see `public`.
    """
    # The host's journal must not contain the arguments: keys are among them.
    quiet = {**task_vars, "ansible_no_target_syslog": True}
    steps = [{"name": module, "module": module, "options": arguments}]
    answer = action._execute_module("llm.server.batch", {"steps": steps}, task_vars=quiet)
    return answer["compared"][0] if "compared" in answer else answer


def public(result: dict) -> dict:
    """Return the result without the keys that are only for action plugins."""
    return {key: value for key, value in result.items() if key not in INTERNAL}
