"""Plans on the controller where the GPU is given by hand, on the host otherwise, and prints the plan as it is.

With the GPU given and the task on this machine nothing has to be asked: the module is not sent anywhere, which is most
of what such a question took. The table is printed by the action, since a result is printed as YAML.
"""

from __future__ import annotations

import json

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase

from ..module_utils.gpu.memory.errors import PlanError
from ..module_utils.gpu.memory.question import OPTIONS, ask, refusal


class ActionModule(ActionBase):
    """Answer here or by the module, then show the answer."""

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
        """What the module would return."""
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
