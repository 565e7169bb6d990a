"""Recover a service: wait for its start, judge the evidence, and roll back, on the controller.

The module of the same name decides on the machine and restarts; service_rollback does the rollback.
"""

from __future__ import annotations

from ..module_utils.diagnosis import report
from ..module_utils.incident import summary
from ..plugin_utils.service import ServiceSteps


class ActionModule(ServiceSteps):
    """Runs the module, waits for the start, and rolls back if the newest release is to blame."""

    MODULE = "service_recovery"

    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        name, host = self._task.args["name"], task_vars["inventory_hostname"]
        seen = self.apply(task_vars)
        if "recovery" not in seen:
            why = " ".join(str(seen.get("msg") or "no answer").split())
            row = summary.row(name, f"nothing was done: {why}", False, "run step=recover again when that is over")
            return {"changed": False, "serves": False, "restarted": False, "rows": [row]}
        told = dict(seen["recovery"])
        result = {"changed": told["changed"], "serves": told["serves"], "restarted": told["changed"]}
        if not told["await"]:
            return {**result, "rows": [recovered(name, host, told, told["found"])]}
        ready = self.wait(name, host, told["release"], task_vars, told["start_timeout"])
        if ready.get("ready"):
            self.confirm(told["release"], task_vars)
            told["serves"] = True
            row = recovered(name, host, told, f"{told['found']} → it serves after {ready['elapsed']} s")
            return {**result, "serves": True, "rows": [row]}
        why = ready.get("why") or ready.get("msg") or "no answer"
        if told.get("watch"):
            told["next"] = f"{summary.RECOVER} -l {host}, which restarts it now that its start is over"
        rows = [recovered(name, host, told, f"{told['found']} → it does not serve: {why}")]
        causes = self._causes(name, task_vars)
        rows += [summary.row(f"{name}: cause", each["says"], False, each["cure"]) for each in causes[:1]]
        blame = self.step("blame", task_vars, release=told["release"], causes=causes)
        if not blame.get("target"):
            return {**result, "rows": rows}
        back = self._go_back(name, blame["target"], task_vars)
        good = not back.get("failed")
        measured = f"{blame['why']} → back to {blame['target']}"
        measured += "; it serves" if good else f"; {back.get('msg')}"
        after = "correct the inventory, then run site.yml" if good else f"{summary.ESCALATE} -l {host}"
        rows.append(summary.row(f"{name}: release", measured, good, after))
        return {"changed": True, "serves": good, "restarted": True, "rows": rows}

    def _causes(self, name: str, task_vars: dict) -> list[dict]:
        """Return the causes that the diagnosis found for a service, the most likely first."""
        services = [{"name": name, "kind": self._task.args.get("kind"), "metrics": self._task.args.get("metrics")}]
        evidence = self._quietly("diagnose", {"services": services}, task_vars).get("evidence")
        found = report.of_host(evidence)["causes"] if evidence else []
        return [each for each in found if each["service"] == name]

    def _go_back(self, name: str, target: str, task_vars: dict) -> dict:
        """Return the result of service_rollback, which also takes the host out of rotation and puts it back."""
        given = {key: self._task.args.get(key) or [] for key in ("drain_command", "restore_command")}
        given["kind"] = self._task.args.get("kind")
        task = self._task.copy()
        task.args = {"name": name, "release": target, "start_timeout": 600, **given}
        action = self._shared_loader_obj.action_loader.get(
            "llm.server.service_rollback", task=task, connection=self._connection, play_context=self._play_context,
            loader=self._loader, templar=self._templar, shared_loader_obj=self._shared_loader_obj,
        )  # fmt: skip
        return action.run(task_vars=task_vars)


def recovered(name: str, host: str, told: dict, measured: str) -> dict:
    """Return the row of a service: what was found, what was done, and the next step if it does not serve."""
    following = told["next"] or (f"{summary.ESCALATE} -l {host}" if told["serves"] is False else "")
    did = "" if told["did"] == "nothing" and told["serves"] is not False else f"{told['did']}: "
    return summary.row(name, f"{did}{measured}", told["serves"], following)
