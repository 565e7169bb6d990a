"""Check all variables of a host's roles before anything is changed anywhere."""

from __future__ import annotations

from pathlib import Path

from ansible.errors import AnsibleError
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible.plugins.action import ActionBase

ROLES = Path(__file__).resolve().parents[2] / "roles"


class ActionModule(ActionBase):
    """Collect the problems of every role, then fail once with all of them."""

    def run(self, tmp=None, task_vars=None):
        result = super().run(tmp, task_vars)
        problems, ports = [], {}
        for role in self._task.args["roles"]:
            problems += self._problems_of(role, task_vars, ports)
        problems = list(dict.fromkeys(problems + self._clashes(ports)))
        result.update(changed=False, problems=problems)
        if problems:
            result.update(failed=True, msg=" ".join(f"({n}) {text}" for n, text in enumerate(problems, 1)))
        return result

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

    def _problems_of(self, role, task_vars, ports):
        home = ROLES / role
        specs = self._read(home / "meta/argument_specs.yml").get("argument_specs", {})
        options = specs.get("main", {}).get("options") or {}
        private = self._read(home / "vars/main.yml")
        scope = {**self._read(home / "defaults/main.yml"), **task_vars, **private, "role_path": str(home)}
        templar = self._templar.copy_with_new_env(available_variables=scope)
        values, problems = {}, []
        for name in options:
            if name not in scope:
                continue
            try:
                values[name] = templar.template(scope[name])
            except AnsibleError as error:
                problems.append(f"{name} {self._cause(error)}.")
        checked = ArgumentSpecValidator(self._required_known(options, problems)).validate(values)
        problems += [self._sentence(message) for message in checked.error_messages]
        if problems:
            return problems  # rules over values that are wrong would only repeat it
        # Rules see values in their declared types: 0.23 written without quotes is a version all the same.
        typed = {name: checked.validated_parameters[name] for name in values}
        templar = self._templar.copy_with_new_env(available_variables={**scope, **typed})
        ports.update({name: port for name, port in typed.items() if name.endswith("_port")})
        for rule in private.get(f"__{role}_rules") or []:
            problems += self._broken(rule, templar)
        return problems

    @staticmethod
    def _broken(rule, templar):
        try:
            return [] if templar.template(rule["that"]) else [templar.template(rule["fail_msg"]).strip()]
        except AnsibleError as error:
            return [f"{rule['variable']}: {error.message}"]

    @staticmethod
    def _required_known(options, problems):
        """Return ``options`` without the demand for variables whose value was already found to be unreadable."""
        named = {problem.split()[0] for problem in problems}
        return {
            name: {**spec, "required": bool(spec.get("required")) and name not in named}
            for name, spec in options.items()
        }

    @staticmethod
    def _sentence(message):
        if message.startswith("missing required arguments: "):
            names = message.removeprefix("missing required arguments: ")
            return f"{names} must be set in the inventory."
        return message if message.endswith(".") else f"{message}."

    @staticmethod
    def _cause(error):
        text = " ".join(str(error).split())
        if "vault" in text.lower() or "decrypt" in text.lower():
            return "cannot be decrypted: give the vault's password with --ask-vault-pass or --vault-password-file"
        return f"cannot be read: {text}"

    def _read(self, path):
        if not path.exists():
            return {}
        return self._loader.load_from_file(str(path), trusted_as_template=True) or {}
