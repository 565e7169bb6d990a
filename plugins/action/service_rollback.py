"""Go back to an earlier release of a service, show its progress while it starts, and return if it fails."""

from __future__ import annotations

from ..plugin_utils.service import ServiceStart


class ActionModule(ServiceStart):
    """Runs the module service_rollback and waits for the start."""

    MODULE = "service_rollback"

    def to_preview(self) -> dict:
        """Return the arguments of the step ``preview``: a rollback to the task's release."""
        return {"state": "previous", "release": self._task.args.get("release")}
