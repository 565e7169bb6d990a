"""The module python_environment; its options and results are documented with it."""

from __future__ import annotations

from pathlib import Path

from .. import atomic_file
from ..errors import UserError
from ..install.python_environment import Builder, complete, digest
from ..quiet_module import QuietModule


def main() -> None:
    module = QuietModule(
        argument_spec={
            "root": {"type": "path", "required": True},
            "requirements": {"type": "str", "required": True},
            "overrides": {"type": "str"},
            "constraints": {"type": "str"},
            "hashes": {"type": "bool", "default": False},
            "imports": {"type": "list", "elements": "str", "default": []},
            "installer": {"type": "str", "choices": ["uv", "pip"], "default": "uv"},
            "uv": {"type": "path", "default": "/opt/uv/current/bin/uv"},
            "python": {"type": "str", "default": "/usr/bin/python3"},
            "user": {"type": "str"},
            "runs_as": {"type": "str"},
            "environment": {"type": "dict", "default": {}},
            "link": {"type": "path"},
            "needed_mib": {"type": "int", "default": 200},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    inputs = {
        key: wanted[key]
        for key in ("requirements", "overrides", "constraints", "hashes", "imports", "installer", "python")
    }
    directory = Path(wanted["root"]) / digest(inputs)
    runs_as = wanted["runs_as"] or wanted["user"]
    link = Path(wanted["link"]) if wanted["link"] else None
    missing = not complete(directory, runs_as)
    misplaced = link is not None and atomic_file.leads_to(link) != str(directory)
    if missing and not module.check_mode:
        variables = {key: str(value) for key, value in wanted["environment"].items()}
        builder = Builder(wanted["installer"], wanted["uv"], wanted["python"], wanted["user"], variables, runs_as)
        try:
            builder.build(directory, inputs, wanted["needed_mib"])
        except (UserError, OSError) as error:
            module.fail_json(msg=f"{directory}: {error}")
    if misplaced and not module.check_mode:
        try:
            atomic_file.link(link, directory)
        except OSError as error:
            module.fail_json(msg=f"{link} does not lead to {directory}: {error}")
    diff = {"before": "", "after": f"{directory}\n{wanted['requirements'][:2000]}"} if missing else {}
    module.exit_json(changed=missing or misplaced, path=str(directory), python=f"{directory}/bin/python", diff=diff)
