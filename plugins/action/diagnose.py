"""Judge on the controller, which has the table of causes, what the module found on the machine."""

from __future__ import annotations

from ansible.plugins.action import ActionBase

from ..module_utils.diagnosis import report


class ActionModule(ActionBase):
    """Run the module; return the verdicts instead of the evidence."""

    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        # The target's log would reveal the login in an address.
        quiet = {**(task_vars or {}), "ansible_no_target_syslog": True}
        seen = self._execute_module(module_name="llm.server.diagnose", module_args=self._task.args, task_vars=quiet)
        evidence = seen.pop("evidence", None)
        return seen if evidence is None else {**seen, **report.of_host(evidence)}
