"""Deploy a release of a service, show its progress while it starts, and roll back if it fails."""

from __future__ import annotations

from ..plugin_utils.service import ServiceStart

NOT_PREVIEWED = ("name", "drain_command", "restore_command")


class ActionModule(ServiceStart):
    """Runs the module service_release and waits for the start."""

    MODULE = "service_release"

    def to_preview(self) -> dict:
        """Return the arguments of the step ``preview``: those that describe the release."""
        return {name: value for name, value in self._task.args.items() if name not in NOT_PREVIEWED}
