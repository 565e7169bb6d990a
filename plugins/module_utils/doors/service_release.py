"""The module service_release; its options and results are documented with it."""

from __future__ import annotations

from functools import partial

from ..quiet_module import QuietModule
from ..release import arguments, deploy, door, removal, secret_files
from ..release.store import Service

ARGUMENTS = {
    **arguments.NAME,
    **arguments.START,
    **arguments.ACCOUNT,
    **arguments.PROGRAM,
    **arguments.CONTENTS,
    **arguments.ROTATION,
    "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    "purge": {"type": "bool", "default": False},
    "compare_only": {"type": "bool", "default": False},
}


def preview(service: Service, wanted: dict) -> dict:
    if wanted["state"] == "absent":
        return {"changed": removal.removable(service, wanted["purge"])}
    return deploy.deploy(service, wanted, check_mode=True)


def change(service: Service, wanted: dict) -> dict:
    if wanted["state"] == "absent":
        if wanted.get("compare_only") and removal.removable(service, wanted["purge"]):
            return {"changed": True}
        # An earlier run may have been interrupted after it created the user and before it wrote a release.
        return {"changed": removal.remove(service, wanted["purge"])}
    secret_files.clean(service, {secret["path"]: secret["plain"] for secret in wanted["secrets"]})
    return deploy.deploy(service, wanted, check_mode=False)


def main() -> None:
    module = QuietModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    door.run(module, preview, change, before=partial(deploy.settle, module))
