"""Check all variables of a host's roles before anything is changed anywhere."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.vars import load_extra_vars

from ..module_utils.engines import engines
from ..module_utils.quiet_module import without_credentials
from ..module_utils.role_variables import kind_problems, typed

ROLES = Path(__file__).resolve().parents[2] / "roles"
NEARLY = 0.88  # how alike two names must be for one to be taken for the other, mistyped


class ActionModule(ActionBase):
    """Collect the problems of every role, then fail once with all of them."""

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        problems, sound, defaults, values = [], set(), {}, {}
        self.advice = []
        resolved, found = self._engines(task_vars)
        problems += found
        if resolved and not found and not self._task.args.get("only"):
            # As the playbook of the application has it.
            task_vars = {"engines_table": engines.table(resolved), **task_vars}
        for role in self._task.args.get("roles", []):
            wrong = self._examine(role, task_vars, defaults, values)
            problems += wrong
            sound |= set() if wrong else {role}
        roles = [*self._task.args.get("roles", []), *sorted({engines.ROLES[one["kind"]] for one in resolved})]
        problems += self._misspelt(roles, task_vars)
        problems += self._examine_own(task_vars)
        problems += self._clashes(self._ports(values, resolved))
        if resolved and not found:
            asked = engines.asked(resolved, str(values.get("ai_server_vllm_base_url", "")))
            sound |= {engines.ROLES[asked["kind"]]}
            defaults.update(self._read(ROLES / engines.ROLES[asked["kind"]] / "defaults/main.yml"))
            values.update(asked["settings"])
        between = [
            rule for rule in task_vars.get(self._task.args.get("between"), []) if sound.issuperset(rule["roles"])
        ]
        problems += self._broken(between, {**defaults, **task_vars, **values})
        problems = list(dict.fromkeys(without_credentials(text) for text in problems))
        result.update(changed=False, problems=problems)
        if self.advice:
            result["warnings"] = [without_credentials(text) for text in self.advice]
        if problems:
            numbered = [f"({n}) {text}" for n, text in enumerate(problems, 1)] if len(problems) > 1 else problems
            result.update(failed=True, msg=" ".join(numbered))
        elif "engines" in self._task.args:
            # The settings have keys, so nothing shows this result.
            result.update(engines=resolved, _ansible_no_log=True)
        return result

    def _engines(self, task_vars):
        """Return ``(the engines of the host with all variables of their roles, problems)``; see the module's RETURN."""
        listed = self._task.args.get("engines") or []
        specs = {kind: self._declared(role) for kind, role in engines.ROLES.items()}
        problems = engines.list_problems(listed, specs, self._task.args.get("services") or [])
        if problems:
            return [], problems
        groups = self._task.args.get("engine_groups") or {}
        problems += engines.group_problems(listed, groups)
        # As everywhere, -e goes before the inventory.
        extra = load_extra_vars(self._loader)
        resolved = []
        for entry in listed:
            role, values = engines.ROLES[entry["kind"]], {}
            own = {name: value for name, value in engines.overlay(entry).items() if name not in extra}
            own |= engines.by_group(entry, groups)
            found = self._examine(role, {**task_vars, **own}, {}, values)
            single = listed == [engines.SINGLE]
            problems += found if single else [f"engines: {entry['name']}: {text}" for text in found]
            resolved.append(engines.resolved(entry, values) | {"single": single})
        return resolved, problems

    @staticmethod
    def _ports(values, resolved):
        """Return ``{what a person calls it: TCP port}`` of the roles and the engines of the host."""
        ports = {name: port for name, port in values.items() if name.endswith("_port")}
        for one in resolved:
            for name, port in one["settings"].items():
                if name.endswith("_port"):
                    ports[name if one["single"] else f"engines: {one['name']}: {name}"] = port
        return ports

    def _declared(self, role):
        """Return the options of a role's argument specs."""
        specs = self._read(ROLES / role / "meta/argument_specs.yml").get("argument_specs", {})
        return specs.get("main", {}).get("options") or {}

    @staticmethod
    def _clashes(ports):
        """Return what is wrong with the ports of all roles of the host together; ``ports`` is ``{variable: port}``."""
        problems, taken = [], {}
        for name, port in ports.items():
            if not 0 < port < 65536:
                problems.append(f"{name} is {port}; a TCP port is 1 to 65535.")
            elif port in taken:
                problems.append(f"{name} and {taken[port]} are both {port}; give each a port of its own.")
            taken.setdefault(port, name)
        return problems

    def _misspelt(self, roles, task_vars):
        """Return the variables that are almost one of the roles' own: a limit or a pin that would be passed over."""
        specs = [self._read(path).get("argument_specs", {}) for path in ROLES.glob("*/meta/argument_specs.yml")]
        known = {name for spec in specs for name in spec.get("main", {}).get("options") or {}}
        own = tuple(f"{role}_" for role in roles)
        unknown = [name for name in task_vars if own and str(name).startswith(own) and name not in known]
        near = {name: difflib.get_close_matches(name, known, 1, NEARLY) for name in sorted(unknown)}
        return [
            f"{name} is no variable of a role, {found[0]} is; correct the name or take it out."
            for name, found in near.items()
            if found
        ]

    def _examine_own(self, task_vars):
        """Return the problems of variables that no role has: those that the task itself declares."""
        values, problems = self._typed(self._task.args.get("options", {}), task_vars)
        rules = [rule for rule in self._task.args.get("rules", []) if rule["variable"] in values]
        return problems + [text for found in self._unkind(rules, values).values() for text in found]

    def _examine(self, role, task_vars, all_defaults, all_values):
        """Return the role's problems; add its defaults, and the values of right type in that type, to those given."""
        home = ROLES / role
        # For a task that needs but a few variables: others may be missing; what only a deployment must have is said.
        only = self._task.args.get("only")
        options = {name: spec for name, spec in self._declared(role).items() if only is None or name in only}
        private, defaults = self._read(home / "vars/main.yml"), self._read(home / "defaults/main.yml")
        scope = {**defaults, **task_vars, **private}
        values, problems = self._typed(options, scope)
        rules = [rule for rule in private.get(f"__{role}_rules") or [] if rule["variable"] in options]
        unkind = self._unkind([rule for rule in rules if "kind" in rule and rule["variable"] in values], values)
        if not problems:  # rules over values that are wrong would only repeat it
            rest = [rule for rule in rules if "that" in rule and rule["variable"] not in unkind]
            # They see values in their declared types: 0.23 written without quotes is a version all the same.
            firm = [rule for rule in rest if only is None or not rule.get("to_deploy")]
            problems = self._broken(firm, {**scope, **values})
            self.advice += self._broken([rule for rule in rest if rule not in firm], {**scope, **values})
        all_defaults.update(defaults)
        all_values.update(values)
        return problems + [text for found in unkind.values() for text in found]

    def _typed(self, options, scope):
        """Return ``(values of the right type in that type, problems of the others)``."""
        templar = self._templar.copy_with_new_env(available_variables=scope)
        values, problems = {}, []
        for name, spec in options.items():
            if name not in scope:
                problems += [f"{name} must be set in the inventory."] if spec.get("required") else []
                continue
            try:
                value, found = typed(name, spec, templar.template(scope[name]))
            except AnsibleError as error:
                found = [f"{name} {self._cause(error)}"]
            if found:
                problems += found
            else:
                values[name] = value
        return values, problems

    @staticmethod
    def _unkind(rules, values):
        """Return ``{variable: sentences}`` for the values that are not of their kind."""
        unkind = {}
        for rule in rules:
            name, key = rule["variable"], rule.get("each")
            inner = [(name, values[name])]
            if key:  # of each mapping in the list
                inner = [(f"{name}[{n}].{key}", one[key]) for n, one in enumerate(values[name]) if key in one]
            told = (rule["kind"], rule.get("optional"), rule.get("places"))
            found = [text for at, one in inner for text in kind_problems(at, one, *told)]
            if found:
                unkind.setdefault(name, []).extend(found)
        return unkind

    def _broken(self, rules, scope):
        """Return the sentences of ``rules`` that do not hold, and of those that cannot be asked."""
        templar, problems = self._templar.copy_with_new_env(available_variables=scope), []
        for rule in rules:
            try:
                if not templar.template(rule["that"]):
                    problems.append(templar.template(rule["fail_msg"]).strip())
            except AnsibleError as error:
                said = self._said(error)
                named = said.startswith(rule["variable"])
                problems.append(said if named else f"{rule['variable']}: {said}")
        return problems

    @classmethod
    def _cause(cls, error):
        """Return what follows the name of a variable whose value cannot be had."""
        text = cls._said(error)
        undefined = re.match(r"'(\w+)' is undefined", text)
        if undefined:
            return f"uses {undefined[1]}, which is undefined; define {undefined[1]} in the inventory."
        if "decrypt" in text.lower() or "vault secret" in text.lower():
            return "cannot be decrypted: give the vault's password with --ask-vault-pass or --vault-password-file."
        return f"cannot be read: {text}"

    @staticmethod
    def _said(error):
        """Return an error's text as one sentence, with one full stop."""
        text = " ".join(str(error).split())
        return re.sub(r"^(Syntax error in template|The filter plugin '\w+' failed): ", "", text).rstrip(".") + "."

    def _read(self, path):
        if not path.exists():
            return {}
        return self._loader.load_from_file(str(path), trusted_as_template=True) or {}
