"""Deploy a release of a service, show its progress while it starts, and roll back if it fails."""

from __future__ import annotations

from ..module_utils.batch import differs
from ..plugin_utils.comparison import ask_batch, public
from ..plugin_utils.service import ServiceStart

NOT_PREVIEWED = ("name", "drain_command", "restore_command")


class ActionModule(ServiceStart):
    """Compares the release with the host; if it differs, runs the module service_release and waits for the start."""

    MODULE = "service_release"
    compared = False  # whether the action batch has done the comparison

    def run(self, tmp: str | None = None, task_vars: dict | None = None) -> dict:
        """Return the result of the task."""
        same = self.same(task_vars or {})
        return super().run(tmp, task_vars) if same is None else same

    def same(self, task_vars: dict) -> dict | None:
        """Return the result of the task if a run would do nothing; otherwise None."""
        if self.compared or self._task.check_mode or self._task.args.get("state") == "absent":
            return None
        found = ask_batch(self, self.MODULE, self._task.args, task_vars)
        return None if differs(found) else public(found)

    def to_preview(self) -> dict:
        """Return the arguments of the step ``preview``: those that describe the release."""
        return {name: value for name, value in self._task.args.items() if name not in NOT_PREVIEWED}
