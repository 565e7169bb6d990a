"""Take a host out of rotation by a command on the controller, even if the host does not answer."""

from __future__ import annotations

from ansible.errors import AnsibleConnectionFailure

from ..plugin_utils.service import ServiceSteps, command, display


class ActionModule(ServiceSteps):
    """Records on the host that it is out, and runs the command."""

    MODULE = "service_drain"

    def run(self, tmp: str | None = None, task_vars: dict | None = None) -> dict:
        """Return ``rotation``, and ``unnoted`` if nothing could be recorded on the host."""
        super().run(tmp, task_vars)
        task_vars, drain = task_vars or {}, self._task.args.get("drain_command")
        if not drain:
            return {
                "failed": True,
                "msg": "drain_command must be given: the command that takes the host out of rotation.",
            }
        try:
            noted = self.apply(task_vars)
            lost = noted.get("msg") if noted.get("failed") else None
        except AnsibleConnectionFailure as error:
            noted, lost = {"changed": True}, str(error)
        if self._task.check_mode:
            return {"changed": bool(lost or noted["changed"]), "rotation": "would leave"}
        if not lost and not noted["changed"]:
            return {**noted, "rotation": "out"}
        service = self._task.args["name"]
        problem = command(drain)
        if problem:
            if not lost:
                self.step("restore", task_vars)
            said = f"drain_command failed: {problem}"
            return {"failed": True, "msg": f"{service}: {said}. Correct it and run again."}
        display.display(f"  {task_vars['inventory_hostname']}: out of rotation", color="cyan")
        unnoted = {"unnoted": f"nothing could be noted on the host: {lost}"} if lost else {}
        return {"changed": True, "rotation": "out", **unnoted}
