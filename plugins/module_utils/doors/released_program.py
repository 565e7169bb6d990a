"""The module released_program; its options and results are documented with it."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..errors import UserError
from ..install.program import provide
from ..quiet_module import QuietModule
from ..unprivileged import ANYONE


def main() -> None:
    module = QuietModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "version": {"type": "str"},
            "url": {"type": "str"},
            "checksum": {"type": "str"},
            "member": {"type": "str"},
            "root": {"type": "path", "default": "/opt"},
            "runs_as": {"type": "str", "default": ANYONE},
            "ca_path": {"type": "path"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        required_if=[("state", "present", ("version", "url", "checksum"))],
        supports_check_mode=True,
    )
    wanted = module.params
    home = Path(wanted["root"]) / wanted["name"]
    if wanted["state"] == "absent":
        existed = home.exists()
        if existed and not module.check_mode:
            shutil.rmtree(home)
        module.exit_json(changed=existed)
    try:
        # The service's user may be created only later, so any other user is checked by default.
        result = provide(module, wanted, Path(wanted["root"]), wanted["runs_as"] or None)
    except UserError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)
