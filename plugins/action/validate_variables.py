"""Validate all variables of a host's roles before anything is changed on any host."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import re
import threading

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.utils.vars import load_extra_vars

from ..module_utils.engines import engines
from ..module_utils.quiet_module import without_credentials
from ..module_utils.role_variables import RENAMED, SHARED, SHARED_RULES, kind_problems, typed
from ..plugin_utils.roles import KEY, RELEASED, SPECS, read

# Fact: fingerprints of the roles that were validated in this run, and the names of roles that were validated together.
VALIDATED = "llm_server_validated"
CONNECTING = 10  # seconds
KEPT = 200  # of these, since a cache of facts may keep them from run to run
SIMILARITY = 0.88  # an unknown name that is at least this similar counts as misspelt; the ratio of difflib, 0 to 1


class ActionModule(ActionBase):
    """Collects the problems of every role, then fails once with all of them."""

    def run(self, tmp: str | None = None, task_vars: dict | None = None) -> dict:
        """Return the result of the task: `problems`, warnings, and the engines of the host if requested."""
        super().run(tmp, task_vars)
        connecting = threading.Thread(target=self._connect, daemon=True)
        if self._task.args.get("connect"):
            connecting.start()
        result = self._validate(task_vars or {})
        if self._task.args.get("connect") and not result.get("failed"):
            connecting.join(CONNECTING)  # otherwise the next task would open a second one
        return result

    def _connect(self) -> None:
        """Open the connection that the next task uses."""
        with contextlib.suppress(AnsibleError):  # the next task says why the host cannot be reached
            self._connection.exec_command("true", sudoable=False)

    def _validate(self, task_vars: dict) -> dict:
        unknown = [role for role in self._task.args.get("roles", []) if role not in SPECS]
        if unknown:
            raise AnsibleError(f"There is no role {', '.join(unknown)}; use one of {', '.join(SPECS)}.")
        problems: list[str] = []
        valid_roles: set[str] = set()
        defaults: dict = {}
        values: dict = {}
        self.advice: list[str] = []
        self.valid: list[str] = []
        if self._validated_before(task_vars):
            return {"changed": False, "problems": []}
        if self._task.args.get("only") is None:
            found = self._option_problems(SHARED, SHARED_RULES, task_vars)
            problems += found
            # Reported once, not again for the variable of each role whose default it is.
            task_vars = {**task_vars, **dict.fromkeys(SHARED, "")} if found else task_vars
        resolved, found = self._engines(task_vars)
        problems += found
        if resolved and not found and not self._task.args.get("only"):
            # The playbook of the application has this variable too.
            task_vars = {"engines_table": engines.table(resolved), **task_vars}
        for role in self._task.args.get("roles", []):
            wrong = self._check_role(role, task_vars, defaults, values)
            problems += wrong
            valid_roles |= set() if wrong else {role}
        roles = [*self._task.args.get("roles", []), *sorted({engines.ROLES[one["kind"]] for one in resolved})]
        problems += self._misspelt(roles, task_vars)
        own = self._task.args.get("options", {}), self._task.args.get("rules", [])
        problems += self._option_problems(*own, task_vars)
        problems += self._port_problems(self._ports(values, resolved))
        if resolved and not found:
            asked = engines.asked(resolved, str(values.get("ai_server_vllm_base_url", "")))
            valid_roles |= {engines.ROLES[asked["kind"]]}
            defaults.update(read(engines.ROLES[asked["kind"]], "defaults/main.yml"))
            values.update(asked["settings"])
        between = [
            rule for rule in task_vars.get(self._task.args.get("between"), []) if valid_roles.issuperset(rule["roles"])
        ]
        problems += self._rule_violations(between, {**defaults, **task_vars, **values})
        problems = list(dict.fromkeys(without_credentials(text) for text in problems))
        result: dict = {"changed": False, "problems": problems}
        if self.advice:
            result["warnings"] = [without_credentials(text) for text in self.advice]
        if problems:
            numbered = [f"({n}) {text}" for n, text in enumerate(problems, 1)] if len(problems) > 1 else problems
            result.update(failed=True, msg=" ".join(numbered))
        else:
            before = task_vars.get("ansible_facts", {}).get(VALIDATED, [])
            result["ansible_facts"] = {VALIDATED: [*before, *self.valid, ",".join(roles)][-KEPT:]}
        if not problems and "engines" in self._task.args:
            # The settings contain API keys, so this result is never shown.
            present = [each for each in resolved if each["state"] == "present"]
            by_name = {each["name"]: each for each in resolved}
            result.update(engines=resolved, present=present, by_name=by_name, _ansible_no_log=True)
        return result

    def _validated_before(self, task_vars: dict) -> bool:
        """Return whether this run has validated the task's roles with the same variables, as site.yml does."""
        if set(self._task.args) != {"roles"}:
            return False
        roles = set(self._task.args["roles"])
        validated = task_vars.get("ansible_facts", {}).get(VALIDATED, [])
        # Ports and misspelt names of several roles are checked together.
        together = len(roles) == 1 or any(roles <= set(entry.split(",")) for entry in validated)
        return bool(roles) and together and all(self._fingerprint(role, task_vars) in validated for role in roles)

    def _fingerprint(self, role: str, task_vars: dict) -> str:
        """Return a value for a role's variables as they are written, and for the facts that its rules may look at.

        It is made with a key of this run, so it says nothing about a secret and is worth nothing in another run.
        """
        written = {**read(role, "defaults/main.yml"), **task_vars}
        variables = [(name, repr(written.get(name))) for name in sorted({*SPECS[role], *SHARED})]
        # The same text has another value in each item of a loop.
        item = repr(task_vars.get(task_vars.get("ansible_loop_var", "item")))
        facts = sorted(set(task_vars.get("ansible_facts", {})) - {VALIDATED})
        return hashlib.blake2b(repr((role, variables, item, facts)).encode(), key=KEY, digest_size=16).hexdigest()

    def _engines(self, task_vars: dict) -> tuple[list[dict], list[str]]:
        """Return ``(the engines of the host with all variables of their roles, problems)``; see the module's RETURN."""
        listed = self._task.args.get("engines") or []
        specs = {kind: SPECS[role] for kind, role in engines.ROLES.items()}
        problems = engines.list_problems(listed, specs, [*RELEASED, *(self._task.args.get("services") or [])])
        if problems:
            return [], problems
        groups = self._task.args.get("engine_groups") or {}
        problems += engines.group_problems(listed, groups)
        # Extra variables take precedence over the inventory.
        extra = load_extra_vars(self._loader)
        resolved = []
        for entry in listed:
            role = engines.ROLES[entry["kind"]]
            values: dict = {}
            own = {name: value for name, value in engines.overlay(entry).items() if name not in extra}
            own |= engines.by_group(entry, groups)
            found = self._check_role(role, {**task_vars, **own}, {}, values)
            single = listed == [engines.SINGLE]
            problems += found if single else [f"engines: {entry['name']}: {text}" for text in found]
            resolved.append(engines.resolved(entry, values) | {"single": single})
        return resolved, problems

    @staticmethod
    def _ports(values: dict, resolved: list[dict]) -> dict[str, int]:
        """Return ``{name for a sentence: TCP port}`` of the roles and the engines of the host."""
        ports = {name: port for name, port in values.items() if name.endswith("_port")}
        for one in resolved:
            for name, port in one["settings"].items():
                if name.endswith("_port"):
                    ports[name if one["single"] else f"engines: {one['name']}: {name}"] = port
        return ports

    @staticmethod
    def _port_problems(ports: dict[str, int]) -> list[str]:
        """Return a sentence for each port that is invalid or used twice; ``ports`` is ``{variable: port}``."""
        problems: list[str] = []
        taken: dict[int, str] = {}
        for name, port in ports.items():
            if not 0 < port < 65536:
                problems.append(f"{name} is {port}; a TCP port is 1 to 65535.")
            elif port in taken:
                problems.append(f"{name} and {taken[port]} are both {port}; give each a port of its own.")
            taken.setdefault(port, name)
        return problems

    def _misspelt(self, roles: list[str], task_vars: dict) -> list[str]:
        """Return a sentence for each unknown variable with almost the name of a role's: it would have no effect."""
        known = {name for options in SPECS.values() for name in options}
        own = tuple(f"{role}_" for role in roles)
        unknown = [str(name) for name in task_vars if name not in known]
        near = {
            name: difflib.get_close_matches(name, known if own and name.startswith(own) else SHARED, 1, SIMILARITY)
            for name in sorted(set(unknown) - SHARED.keys())
        }
        renamed = [
            f"{name} is now called {RENAMED[name]}; rename it." for name in sorted(RENAMED.keys() & set(unknown))
        ]
        return renamed + [
            f"Unknown variable {name}; did you mean {found[0]}? Correct the name or take it out."
            for name, found in near.items()
            if found and name not in RENAMED
        ]

    def _option_problems(self, options: dict, rules: list[dict], task_vars: dict) -> list[str]:
        """Return the problems of variables that belong to no role, by their options and the rules with a kind."""
        values, problems = self._typed(options, task_vars)
        rules = [rule for rule in rules if rule["variable"] in values]
        return problems + [text for found in self._kind_violations(rules, values).values() for text in found]

    def _check_role(self, role: str, task_vars: dict, all_defaults: dict, all_values: dict) -> list[str]:
        """Return the role's problems; add its defaults and its values of the right type to the given mappings."""
        # For a task that needs few variables: others may be missing; rules only for deployments become warnings.
        only = self._task.args.get("only")
        options = {name: spec for name, spec in SPECS[role].items() if only is None or name in only}
        private, defaults = (read(role, name) for name in ("vars/main.yml", "defaults/main.yml"))
        scope = {**defaults, **task_vars, **private}
        values, problems = self._typed(options, scope)
        rules = [rule for rule in private.get(f"__{role}_rules") or [] if rule["variable"] in options]
        with_kind = [rule for rule in rules if "kind" in rule and rule["variable"] in values]
        violations = self._kind_violations(with_kind, values)
        if not problems:  # rules about invalid values would only repeat the problem
            conditions = [rule for rule in rules if "that" in rule and rule["variable"] not in violations]
            # They see values in their declared types: a version such as 0.23 without quotes is text here.
            binding = [rule for rule in conditions if only is None or not rule.get("to_deploy")]
            problems = self._rule_violations(binding, {**scope, **values})
            advisory = [rule for rule in conditions if rule not in binding]
            self.advice += self._rule_violations(advisory, {**scope, **values})
        if only is None and not problems and not violations:
            self.valid.append(self._fingerprint(role, task_vars))
        all_defaults.update(defaults)
        all_values.update(values)
        return problems + [text for found in violations.values() for text in found]

    def _typed(self, options: dict[str, dict], scope: dict) -> tuple[dict, list[str]]:
        """Return ``(values converted to their declared types, problems of those that cannot be)``."""
        templar = self._templar.copy_with_new_env(available_variables=scope)
        values: dict = {}
        problems: list[str] = []
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
    def _kind_violations(rules: list[dict], values: dict) -> dict[str, list[str]]:
        """Return ``{variable: sentences}`` for the values that are not of their kind; see `role_variables`."""
        violations: dict[str, list[str]] = {}
        for rule in rules:
            name, key = rule["variable"], rule.get("each")
            inner = [(name, values[name])]
            if key:  # of each mapping in the list
                inner = [(f"{name}[{n}].{key}", one[key]) for n, one in enumerate(values[name]) if key in one]
            expected = (rule["kind"], rule.get("optional"), rule.get("places"))
            found = [text for at, one in inner for text in kind_problems(at, one, *expected)]
            if found:
                violations.setdefault(name, []).extend(found)
        return violations

    def _rule_violations(self, rules: list[dict], scope: dict) -> list[str]:
        """Return a sentence for each rule whose condition is false or cannot be evaluated with ``scope``."""
        templar = self._templar.copy_with_new_env(available_variables=scope)
        problems: list[str] = []
        for rule in rules:
            try:
                if not templar.template(rule["that"]):
                    problems.append(templar.template(rule["fail_msg"]).strip())
            except AnsibleError as error:
                sentence = self._sentence(error)
                named = sentence.startswith(rule["variable"])
                problems.append(sentence if named else f"{rule['variable']}: {sentence}")
        return problems

    @classmethod
    def _cause(cls, error: AnsibleError) -> str:
        """Return why a variable cannot be read and the cure, for a sentence that begins with its name."""
        text = cls._sentence(error)
        undefined = re.match(r"'(\w+)' is undefined", text)
        if undefined:
            return f"uses {undefined[1]}, which is undefined; define {undefined[1]} in the inventory."
        if "decrypt" in text.lower() or "vault secret" in text.lower():
            return "cannot be decrypted: give the vault's password with --ask-vault-pass or --vault-password-file."
        return f"cannot be read: {text}"

    @staticmethod
    def _sentence(error: AnsibleError) -> str:
        """Return an error's text as one sentence, with one full stop."""
        text = " ".join(str(error).split())
        return re.sub(r"^(Syntax error in template|The filter plugin '\w+' failed): ", "", text).rstrip(".") + "."
