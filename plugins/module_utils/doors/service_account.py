"""The module service_account; its options and results are documented with it."""

from __future__ import annotations

from ..host_module import HostModule
from ..release import account, arguments, door
from ..release.store import Service


def preview(service: Service, wanted: dict) -> dict:
    account.settle_groups(service, wanted)
    missing = account.missing_user(wanted["user"]) or bool(account.wrong_directories(wanted["directories"]))
    return {"changed": missing, "pending": not account.recorded(service, wanted["user"], wanted["directories"])}


def change(service: Service, wanted: dict) -> dict:
    account.settle_groups(service, wanted)
    new_user, directories = account.missing_user(wanted["user"]), account.wrong_directories(wanted["directories"])
    account.prepare(service, wanted, new_user, directories)
    return {"changed": bool(new_user or directories)}


def main() -> None:
    module = HostModule(argument_spec={**arguments.NAME, **arguments.ACCOUNT}, supports_check_mode=True)
    door.run(module, preview, change)
