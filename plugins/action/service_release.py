"""Deploy a release of a service, show its progress while it starts, and roll back if it fails."""

from __future__ import annotations

from ..module_utils.batch import differs
from ..plugin_utils.service import ServiceStart

NOT_PREVIEWED = ("name", "drain_command", "restore_command")
INTERNAL = ("await", "out", "may_roll_back", "new_secrets")


class ActionModule(ServiceStart):
    """Runs the module service_release and waits for the start."""

    MODULE = "service_release"
    compared = False  # whether the action batch has compared this release with the host

    def run(self, tmp: str | None = None, task_vars: dict | None = None) -> dict:
        """Return the result of the task. Without differences it is that of the comparison."""
        task_vars = task_vars or {}
        if not (self.compared or self._task.check_mode or self._task.args.get("state") == "absent"):
            # By the module batch, which a run sends for other tasks too: to build a module takes longer than to run it.
            step = {"name": "", "module": self.MODULE, "options": self._task.args}
            result = self._quietly("batch", {"steps": [step]}, task_vars)
            found = result["compared"][0] if "compared" in result else result
            if not differs(found):
                return {key: value for key, value in found.items() if key not in INTERNAL}
        return super().run(tmp, task_vars)

    def to_preview(self) -> dict:
        """Return the arguments of the step ``preview``: those that describe the release."""
        return {name: value for name, value in self._task.args.items() if name not in NOT_PREVIEWED}
