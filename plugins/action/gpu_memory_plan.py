"""Plans on the controller if the GPU is given, otherwise on the host, and prints the plan.

With a given GPU and a task on this machine nothing has to be measured, so the module is not started, which would take
most of the time. The action plugin prints the table, since a result is printed as YAML.
"""

from __future__ import annotations

import json

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase

from ..module_utils.gpu.memory.errors import PlanError
from ..module_utils.gpu.memory.question import OPTIONS, ask, refusal


class ActionModule(ActionBase):
    """Plan here or by the module, then show the plan."""

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        here = arguments.get("gpu") and not arguments.get("compare") and self._connection.transport == "local"
        result.update(self._answer(arguments) if here else self._execute_module(task_vars=task_vars))
        show = arguments.get("show", "nothing")
        if show != "nothing" and result.get("rendered") and not result.get("failed"):
            self._display.display(result["rendered"] if show == "table" else json.dumps(result["plan"], indent=4))
        return result

    def _answer(self, arguments: dict) -> dict:
        """Return the module's result."""
        checked = ArgumentSpecValidator(OPTIONS).validate(arguments)
        if checked.error_messages:
            return {"failed": True, "msg": "; ".join(checked.error_messages), "kind": "input"}
        params = checked.validated_parameters
        try:
            found, answer = ask(params, params["gpu"])
        except PlanError as error:
            return {"failed": True, "msg": str(error), "kind": "input"}
        if params["refuse"] and refusal(found):
            return {"failed": True, "msg": refusal(found), "kind": "refused", **answer}
        return {"changed": False, **answer}
