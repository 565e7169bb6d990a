"""Compare several steps with the host in one call, and run those from the first that differs."""

from __future__ import annotations

from itertools import takewhile

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

from ..module_utils.batch import INTERNAL, MODULES, differs, options
from ..module_utils.errors import UserError
from ..plugin_utils import roles
from ..plugin_utils.comparison import SHOWN, compare_steps, shown
from .application_source import with_digest

display = Display()

# Options that a module's action plugin adds on the controller.
WITH_CONTROLLER_OPTIONS = {"application_source": with_digest}
REQUIRED = {"name", "module", "options"}
OPTIONAL = {"options_from", "register", "when"}
# Keys of a result that Ansible treats itself; those of a step are part of the task's.
NOT_REGISTERED = {"invocation", "diff", "exception", "ansible_facts", *SHOWN, *INTERNAL}


class ActionModule(ActionBase):
    """Runs the module, which compares, and then the modules of the steps from the first that differs."""

    def run(self, tmp: str | None = None, task_vars: dict | None = None) -> dict:
        """Return the result of the task; see the module's RETURN."""
        super().run(tmp, task_vars)
        # The host's journal must not contain the arguments: passwords of proxies and tokens of indexes are among them.
        task_vars = {**(task_vars or {}), "ansible_no_target_syslog": True}
        args = self._task.args
        given = [name for name in ("steps", "compare") if isinstance(args.get(name), list)]
        if len(given) != 1:
            raise AnsibleActionFail("A batch needs a list of steps, or a list of roles to compare.")
        if given == ["compare"]:
            return self._same(args["compare"], task_vars)
        steps = self._expanded(args["steps"], task_vars)
        results, answer = self._compare(steps, task_vars)
        if answer.get("failed"):
            return answer
        results = [found for found in results if found]
        if not self._task.check_mode:
            same = list(takewhile(lambda found: not differs(found), results))
            results = self._run_after(same, steps, task_vars)
        return {**self._result(steps, results), **shown(answer, results)}

    def _same(self, names: list[str], task_vars: dict) -> dict:
        """Return a result that lists the roles that need no run, in their order."""
        steps: list[dict] = []
        differing = set()
        for role in names:
            self._scope(role, task_vars)
            try:
                steps += [{**step, "group": role} for step in self._steps_of(role, task_vars)]
            except AnsibleError:
                # A run of the role validates its variables and says what is wrong.
                differing.add(role)
        results, answer = self._compare(steps, task_vars)
        if answer.get("failed"):
            return answer
        by_role = [(step["group"], found) for step, found in zip(steps, results, strict=True) if found]
        differing |= {role for role, found in by_role if differs(found)}
        # The other roles run, and show their own warnings.
        warnings = shown(answer, [found for role, found in by_role if role not in differing])
        same = [role for role in names if role not in differing]
        return {"changed": False, "compared": names, "same": same, **warnings}

    def _compare(self, steps: list[dict], task_vars: dict) -> tuple[list, dict]:
        """Return ``(the result of each step, that of the module)``; see `compare` of module_utils.batch."""
        asked = [
            {**step, "options": WITH_CONTROLLER_OPTIONS.get(step["module"], dict)(step["options"])} for step in steps
        ]
        return compare_steps(self, asked, task_vars)

    def _expanded(self, entries: list[dict], task_vars: dict) -> list[dict]:
        """Return the steps; for an entry that names a role, those of the role."""
        steps: list[dict] = []
        for entry in entries:
            if entry.keys() - {"vars"} == {"role"}:
                steps += self._steps_of(entry["role"], {**task_vars, **entry.get("vars", {})})
            else:
                steps += _wanted([entry])
        return steps

    def _steps_of(self, role: str, task_vars: dict) -> list[dict]:
        """Return the steps of a role, with its variables as its own tasks see them."""
        scope = self._scope(role, task_vars)
        steps = self._templar.copy_with_new_env(available_variables=scope).template(scope[f"__{role}_steps"])
        return self._expanded(steps, task_vars)

    def _scope(self, role: str, task_vars: dict) -> dict:
        """Return the variables of a role. Raises AnsibleActionFail if there is no such role, or if it has no steps."""
        scope = roles.scope(role, task_vars)
        if f"__{role}_steps" not in scope:
            raise AnsibleActionFail(f"There is no role {role} with steps; it would have __{role}_steps in its vars.")
        return scope

    def _run_after(self, same: list[dict], steps: list[dict], task_vars: dict) -> list[dict]:
        """Run the steps that follow ``same``; return the results of all steps up to the first failure."""
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
        if hasattr(action, "compared"):
            action.compared = True
        return action.run(task_vars=task_vars)

    @staticmethod
    def _result(steps: list[dict], results: list[dict]) -> dict:
        """Return the result of the task; if a step failed, its result with the name of the step."""
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
    """Return the steps whose ``when`` is not false. Raises AnsibleActionFail for an entry that is no step.

    Checked here: a module that refuses its parameters shows all of them.
    """
    if any(not REQUIRED <= step.keys() <= REQUIRED | OPTIONAL for step in steps):
        raise AnsibleActionFail(
            "Each entry of steps needs name, module and options, and may have options_from, register and when; or it "
            "is a role, with or without vars."
        )
    unknown = [str(step["module"]) for step in steps if step["module"] not in MODULES]
    if unknown:
        raise AnsibleActionFail(f"A batch cannot run {', '.join(unknown)}; use one of {', '.join(MODULES)}.")
    return [{key: step[key] for key in step if key != "when"} for step in steps if step.get("when", True)]


def _registered(steps: list[dict], results: list[dict]) -> dict[str, dict]:
    """Return the results by the steps' ``register``; ``results`` may be fewer than ``steps``.

    The arguments are left out: they may contain keys, and callbacks do not hide them there.
    """
    pairs = zip(steps, results, strict=False)
    return {
        step["register"]: {key: value for key, value in found.items() if key not in NOT_REGISTERED}
        for step, found in pairs
        if step.get("register")
    }


def _listed(diff: dict | list | None) -> list[dict]:
    return diff if isinstance(diff, list) else [diff or {}]
