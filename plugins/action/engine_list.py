"""Compare the engines of a host with its list; run the module only if the list must be written."""

from __future__ import annotations

from ansible.plugins.action import ActionBase

from ..module_utils.batch import differs
from ..plugin_utils.comparison import ask_batch, public


class ActionModule(ActionBase):
    """Runs the module engine_list."""

    def run(self, tmp: str | None = None, task_vars: dict | None = None) -> dict:
        """Return the result of the task; see the module's RETURN."""
        super().run(tmp, task_vars)
        found = ask_batch(self, "engine_list", self._task.args, task_vars or {})
        if self._task.check_mode or not differs(found):
            return public(found)
        return self._execute_module("llm.server.engine_list", self._task.args, task_vars=task_vars)
