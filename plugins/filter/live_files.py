"""Filter for files on the controller that a service reads again while it runs; see `live` of service_release."""

from __future__ import annotations

import json
from pathlib import Path

from ansible.errors import AnsibleFilterError

from ..module_utils.errors import UserError
from ..module_utils.watch import alert_rules


def json_files(patterns: list, directory: str, group: str, variable: str) -> list:
    """Return the JSON files that match ``patterns`` on the controller as live files of ``directory`` on the host.

    ``variable`` is the variable with the patterns, for error messages.
    """
    try:
        return [
            {"path": f"{directory}/{path.name}", "content": _checked(path, variable), "group": group}
            | {"mode": "0640", "live": True}
            for path in alert_rules.found(patterns, variable)
        ]
    except UserError as error:
        raise AnsibleFilterError(str(error)) from None


def _checked(path: Path, variable: str) -> str:
    text = path.read_text(encoding="utf-8")
    try:
        json.loads(text)
    except ValueError as error:
        raise AnsibleFilterError(f"{variable}: {path} is no JSON: {error}; correct it.") from None
    return text


class FilterModule:
    def filters(self):
        return {"json_files": json_files}
