"""Compare several steps with the host in one call, and run those that differ, each by its own module."""

from __future__ import annotations

from itertools import takewhile

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils.batch import MODULES, differs, options
from ..module_utils.errors import UserError
from ..plugin_utils import roles
from .application_source import with_digest

display = Display()

# What an action plugin of the controller adds to the options of its module.
ADDED = {"application_source": with_digest}
STEP = {"name", "module", "options"}
# Of a result: what Ansible shows or hides, and what is between a module and its action plugin.
OWN = {"invocation", "diff", "warnings", "deprecations", "exception", "pending", "await", "out"}


class ActionModule(ActionBase):
    """Runs the module, which compares, and then the modules of the steps from the first that differs."""

    def run(self, tmp: str | None = None, task_vars: dict | None = None) -> dict:
        """Return the result of the task; see the module's RETURN."""
        super().run(tmp, task_vars)
        # The host's journal must not have the arguments: they contain passwords of proxies and tokens of indexes.
        task_vars = {**(task_vars or {}), "ansible_no_target_syslog": True}
        if self._task.args.get("compare") is not None:
            return self._same(self._task.args["compare"], task_vars)
        steps: list[dict] = []
        for entry in self._task.args["steps"]:
            steps += self._steps_of(entry["role"], task_vars) if "role" in entry else _wanted([entry])
        results, answer = self._compare(steps, task_vars)
        if not results and steps:
            return answer
        results = [found for found in results if found]
        if not self._task.check_mode:
            same = list(takewhile(lambda found: not differs(found), results))
            results = self._run_after(same, steps, task_vars)
        return {**self._result(steps, results), "warnings": _warnings(answer, results)}

    def _same(self, names: list[str], task_vars: dict) -> dict:
        """Return a result with the roles of which a run would have nothing to do, in their order."""
        unknown = [name for name in names if not (roles.ROLES / name).is_dir()]
        if unknown:
            raise AnsibleActionFail(f"compare has {', '.join(unknown)}; it takes names of roles.")
        steps: list[dict] = []
        differing = set()
        for role in names:
            try:
                steps += [{**step, "group": role} for step in self._steps_of(role, task_vars)]
            except AnsibleError:
                # A run of the role validates its variables and says what is wrong.
                differing.add(role)
        results, answer = self._compare(steps, task_vars)
        if not results and steps:
            return answer
        by_role = [(step["group"], found) for step, found in zip(steps, results, strict=True) if found]
        differing |= {role for role, found in by_role if differs(found)}
        # The other roles run, and warn themselves.
        told = _warnings(answer, [found for role, found in by_role if role not in differing])
        return {"changed": False, "same": [role for role in names if role not in differing], "warnings": told}

    def _compare(self, steps: list[dict], task_vars: dict) -> tuple[list, dict]:
        """Return ``(the result of each step, that of the module)``; see `compare` of module_utils.batch.

        There are no results of steps if the module failed.
        """
        asked = [{**step, "options": ADDED.get(step["module"], dict)(step["options"])} for step in steps]
        answer = self._execute_module("llm.server.batch", {"steps": asked}, task_vars=task_vars)
        return answer.get("compared") or [], answer

    def _steps_of(self, role: str, task_vars: dict) -> list[dict]:
        """Return the steps of a role, with its variables as its own tasks see them."""
        scope = roles.scope(role, task_vars, self._loader)
        return _wanted(self._templar.copy_with_new_env(available_variables=scope).template(scope[f"__{role}_steps"]))

    def _run_after(self, same: list[dict], steps: list[dict], task_vars: dict) -> list[dict]:
        """Run the steps after those that are the ``same``; return the results of all up to the first that fails."""
        results = list(same)
        for step in steps[len(same) :]:
            display.display(f"  {task_vars['inventory_hostname']}: {step['name']}", color="cyan")
            results.append(self._run_step(step, _registered(steps, results), task_vars))
            if results[-1].get("failed"):
                break
        return results

    def _run_step(self, step: dict, registered: dict[str, dict], task_vars: dict) -> dict:
        """Run a step by its module, or by the action plugin of that name if there is one."""
        name = f"llm.server.{step['module']}"
        try:
            arguments = options(step, registered)
        except UserError as error:
            return {"failed": True, "changed": False, "msg": str(error)}
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
        action.compared = True
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
        }
        last = results[-1] if results else {}
        return {**last, **result, "step": steps[len(results) - 1]["name"]} if last.get("failed") else result


def _wanted(steps: list[dict]) -> list[dict]:
    """Return the steps whose ``when`` is not false."""
    if any(not step.keys() >= STEP for step in steps):
        raise AnsibleActionFail("Each entry of steps needs name, module and options, or a role alone.")
    # Here, since a module that refuses its parameters shows them all.
    unknown = [str(step["module"]) for step in steps if step["module"] not in MODULES]
    if unknown:
        raise AnsibleActionFail(f"A batch cannot run {', '.join(unknown)}; use one of {', '.join(MODULES)}.")
    return [{key: step[key] for key in step if key != "when"} for step in steps if step.get("when", True)]


def _registered(steps: list[dict], results: list[dict]) -> dict[str, dict]:
    """Return the results by the steps' ``register``; ``results`` may be fewer than ``steps``.

    Without what Ansible itself hides or shows of a result: its arguments, for one, may contain keys.
    """
    pairs = zip(steps, results, strict=False)
    return {
        step["register"]: {key: value for key, value in found.items() if key not in OWN}
        for step, found in pairs
        if step.get("register")
    }


def _warnings(answer: dict, results: list[dict]) -> list:
    """Return the warnings of the comparison and of the steps."""
    return [each for found in (answer, *results) for each in found.get("warnings") or []]


def _listed(diff: dict | list | None) -> list[dict]:
    return diff if isinstance(diff, list) else [diff or {}]
