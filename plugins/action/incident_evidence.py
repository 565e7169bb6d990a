"""Judge on the controller what the module collected on the machine, and store it there in one archive."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ansible.errors import AnsibleConnectionFailure, AnsibleUndefinedVariable
from ansible.plugins.action import ActionBase

from ..module_utils.diagnosis import report
from ..module_utils.incident import archive, summary
from ..module_utils.redaction import Redaction
from ..module_utils.role_variables import marked, secrets
from ..plugin_utils.roles import SPECS


class ActionModule(ActionBase):
    """Run the module; write the archive; return rows instead of the evidence."""

    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        host, args = task_vars["inventory_hostname"], dict(self._task.args)
        directory = args.pop("directory", None)
        private = [*self._of_roles(task_vars), *(str(each) for each in args.pop("secrets", None) or [] if each)]
        if not directory:
            return {"failed": True, "msg": "directory must be given: where the archives go on the controller."}
        # The target's log would reveal the login in an address.
        quiet = {**task_vars, "ansible_no_target_syslog": True}
        try:
            seen = self._execute_module(module_name="llm.server.incident_evidence", module_args=args, task_vars=quiet)
        except AnsibleConnectionFailure as error:
            seen = {"msg": str(error)}
        told = made(host, seen)
        hide = Redaction(private)
        result = {
            "changed": False,
            "archive": None,
            "healthy": all(row["ok"] is not False for row in told["rows"]),
            "rows": [{key: hide(text) if isinstance(text, str) else text for key, text in row.items()}
                     for row in told["rows"]],
            "summary": hide(told["files"]["summary.txt"]),
        }  # fmt: skip
        if "gathered" in seen:
            result["seconds"] = seen["gathered"]["seconds"]
        if self._task.check_mode:
            return result
        try:
            path = archive.write(Path(directory).expanduser().resolve(), host, told["files"], private)
        except OSError as error:
            told = f"incident_directory is {directory}, where no archive can be written: {error}"
            return {**result, "failed": True, "msg": told}
        kept = summary.row("archive", f"{path} ({len(told['files'])} files)")
        return {**result, "archive": str(path), "rows": [*result["rows"], kept]}

    def _of_roles(self, task_vars) -> list[str]:
        """Return the host's values of all variables that an argument spec of a role marks with no_log."""
        options = {name: spec for role in SPECS.values() for name, spec in role.items() if name in task_vars}
        found: list[str] = []
        for name in filter(lambda name: marked(options[name]), options):
            # A variable of all hosts may refer to one that only the hosts of its role have.
            with contextlib.suppress(AnsibleUndefinedVariable):
                found += secrets(options[name], self._templar.template(task_vars[name]))
        return [value for value in found if value]


def made(host: str, seen: dict) -> dict:
    """Return ``rows`` and ``files`` of an archive, from the module's result or the reason why it could not run."""
    gathered = seen.get("gathered")
    if not gathered:
        why = Redaction()(" ".join(str(seen.get("msg") or seen.get("module_stderr") or "no answer").split()))
        rows = summary.unreachable(host, why)
        more = Redaction()(f"{seen.get('module_stdout') or ''}\n{seen.get('module_stderr') or ''}").strip()
        files = {"module.txt": more} if more else {}
        return {"rows": rows, "files": {**files, "summary.txt": summary.text(host, rows, None)}}
    weighed = report.of_host(gathered["diagnosis"]) if gathered["diagnosis"] else None
    rows = summary.found(host, gathered, weighed)
    files = dict(gathered["files"])
    files["diagnosis.txt"] = "\n".join(weighed["report"]) if weighed else "the diagnosis did not end\n"
    return {"rows": rows, "files": {**files, "summary.txt": summary.text(host, rows, weighed)}}
