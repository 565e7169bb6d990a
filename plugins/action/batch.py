"""Compare several steps with the host in one call, and run those that differ, each by its own module."""

from __future__ import annotations

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils.batch import options
from ..plugin_utils import roles
from .application_source import with_digest

display = Display()

# What an action plugin of the controller adds to the options of its module.
ADDED = {"application_source": with_digest}


class ActionModule(ActionBase):
    """Runs the module, which compares, and then the modules of the steps from the first that differs."""

    def run(self, tmp: str | None = None, task_vars: dict | None = None) -> dict:
        """Return the result of the task: ``steps``, the result of each step that has a ``register``."""
        super().run(tmp, task_vars)
        # The host's journal must not have the arguments: they contain passwords of proxies and tokens of indexes.
        task_vars = {**(task_vars or {}), "ansible_no_target_syslog": True}
        steps = [step for step in self._steps(task_vars) if step.pop("when", True)]
        asked = [{**step, "options": ADDED.get(step["module"], dict)(step["options"])} for step in steps]
        compared = self._execute_module("llm.server.batch", {"steps": asked}, task_vars=task_vars)
        if "compared" not in compared:
            return compared
        results = compared["compared"]
        if not self._task.check_mode:
            same = next((n for n, found in enumerate(results) if found.get("failed") or found["changed"]), len(results))
            results = self._run_from(same, steps, results[:same], task_vars)
        return self._result(steps, results)

    def _steps(self, task_vars: dict) -> list[dict]:
        """Return the steps of the task; an entry with ``role`` stands for the steps of that role."""
        found: list[dict] = []
        for entry in self._task.args.get("steps") or []:
            if "role" not in entry:
                found.append(dict(entry))
                continue
            role = entry["role"]
            scope = roles.scope(role, task_vars, self._loader) | roles.read(role, "vars/steps.yml", self._loader)
            templar = self._templar.copy_with_new_env(available_variables=scope)
            found += templar.template(scope[f"__{role}_steps"])
        unnamed = [step for step in found if not {"name", "module", "options"} <= step.keys()]
        if unnamed:
            raise AnsibleActionFail("Each entry of steps needs name, module and options, or role alone.")
        return found

    def _run_from(self, first: int, steps: list[dict], results: list[dict], task_vars: dict) -> list[dict]:
        """Run the steps from number ``first`` on; return the results of all up to the first that fails."""
        results = list(results)
        for step in steps[first:]:
            display.display(f"  {task_vars['inventory_hostname']}: {step['name']}", color="cyan")
            results.append(self._run_step(step, _registered(steps, results), task_vars))
            if results[-1].get("failed"):
                break
        return results

    def _run_step(self, step: dict, registered: dict[str, dict], task_vars: dict) -> dict:
        name = f"llm.server.{step['module']}"
        arguments = options(step, registered)
        if not self._shared_loader_obj.action_loader.has_plugin(name):
            return self._execute_module(name, arguments, task_vars=task_vars)
        task = self._task.copy()
        task.args = arguments
        action = self._shared_loader_obj.action_loader.get(
            name,
            task=task,
            connection=self._connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=self._templar,
            shared_loader_obj=self._shared_loader_obj,
        )
        return action.run(task_vars=task_vars)

    @staticmethod
    def _result(steps: list[dict], results: list[dict]) -> dict:
        """Return the result of the task; a failed step's is its own, with the name of the step."""
        changed = [step["name"] for step, found in zip(steps, results, strict=False) if found.get("changed")]
        result = {
            "changed": bool(changed),
            "changed_steps": changed,
            "steps": _registered(steps, results),
            "diff": [each for found in results for each in _listed(found.get("diff")) if each],
            "warnings": [each for found in results for each in found.get("warnings") or []],
        }
        last = results[-1] if results else {}
        return {**last, **result, "step": steps[len(results) - 1]["name"]} if last.get("failed") else result


def _registered(steps: list[dict], results: list[dict]) -> dict[str, dict]:
    pairs = zip(steps, results, strict=False)
    return {step["register"]: found for step, found in pairs if step.get("register")}


def _listed(diff: dict | list | None) -> list[dict]:
    return diff if isinstance(diff, list) else [diff or {}]
