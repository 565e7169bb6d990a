"""Collect the checks of a host's roles and engines, and measure them all by one call."""

from __future__ import annotations

import concurrent.futures

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase

from ..module_utils.engines import engines
from ..module_utils.release import checklist
from ..plugin_utils import roles
from ..plugin_utils.comparison import ask_batch

FACTS = ["!all", "!min", "distribution", "platform", "interfaces"]
OUTSIDE = ("what", "kind", "options", "cure")


class ActionModule(ActionBase):
    """Templates the checks on the controller, and measures from there those from outside."""

    def run(self, tmp: str | None = None, task_vars: dict | None = None) -> dict:
        """Return the rows of all checks, in order: engines, the task's own, roles."""
        super().run(tmp, task_vars)
        task_vars = self._with_facts(task_vars or {})
        args = self._task.args
        checks: list[dict] = []
        for engine in args.get("engines") or []:
            role = engines.ROLES[engine["kind"]]
            checks += self._checks(role, {**task_vars, **engine["settings"], f"{role}_name": engine["name"]})
        checks += args.get("checks") or []
        for role in args.get("roles") or []:
            checks += self._checks(role, task_vars)
        outside = [check for check in checks if check.get("outside")]
        inside = [
            {key: check[key] for key in check if key != "outside"} for check in checks if not check.get("outside")
        ]
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            seen = pool.submit(checklist.rows, [{key: check.get(key, "") for key in OUTSIDE} for check in outside])
            result = ask_batch(self, "checklist", {"checks": inside}, task_vars)
            if "rows" not in result:
                return result
            rows = {True: iter(seen.result()), False: iter(result["rows"])}
        return {**result, "rows": [next(rows[bool(check.get("outside"))]) for check in checks]}

    def _with_facts(self, task_vars: dict) -> dict:
        """Return the variables with the facts that addresses depend on; they are gathered if no task has done it."""
        facts = task_vars.get("ansible_facts", {})
        if {"architecture", "distribution", "interfaces"} <= facts.keys():
            return task_vars
        gathered = self._execute_module(
            module_name="ansible.builtin.setup", module_args={"gather_subset": FACTS}, task_vars=task_vars
        )
        if gathered.get("failed"):
            raise AnsibleError(gathered.get("msg") or "The facts of the host could not be gathered.")
        own = {name.removeprefix("ansible_"): value for name, value in gathered.get("ansible_facts", {}).items()}
        return {**task_vars, "ansible_facts": {**facts, **own}}

    def _checks(self, role: str, task_vars: dict) -> list[dict]:
        """Return the checks of a role, ``__ROLE_checks`` in its ``vars/checklist.yml``; none if it is to be absent.

        Some entries are lists of checks. A check whose ``when`` is false is left out.
        """
        variables = roles.scope(role, task_vars) | roles.read(role, "vars/checklist.yml")
        templar = self._templar.copy_with_new_env(available_variables=variables)
        if templar.template(variables.get(f"{role}_state", "present")) == "absent":
            return []
        found: list[dict] = []
        for entry in variables[f"__{role}_checks"]:
            if isinstance(entry, dict):
                if not templar.template(entry.get("when", True)):
                    continue
                entry = {key: value for key, value in entry.items() if key != "when"}
            checks = templar.template(entry)
            found += checks if isinstance(checks, list) else [checks]
        return found
