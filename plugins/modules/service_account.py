#!/usr/bin/python
"""Thin module over module_utils.release.account."""

from __future__ import annotations

DOCUMENTATION = r"""
module: service_account
short_description: Create the user and the directories of a service before its release
description:
  - Creates what must exist before the release of a service can be built, such as the user who builds its environment.
    M(llm.server.service_release) takes the same options and changes nothing in what was created here.
  - The release store records what was created, and M(llm.server.service_release) removes it with the service.
author: The llm-server maintainers (@llm-server)
extends_documentation_fragment:
  - llm.server.service
  - llm.server.service.account
attributes:
  check_mode: {description: Reports whether something is missing; creates nothing., support: full}
"""

EXAMPLES = r"""
- name: Create the service's user and directories
  llm.server.service_account:
    name: vllm
    user: vllm
    directories:
      - {path: /opt/vllm/environments, owner: vllm, group: vllm}
"""

RETURN = ""

from ..module_utils.host_module import HostModule
from ..module_utils.release import account, arguments, door
from ..module_utils.release.store import Service


def preview(service: Service, wanted: dict) -> dict:
    account.settle_groups(service, wanted)
    return {"changed": account.missing_user(wanted["user"]) or bool(account.wrong_directories(wanted["directories"]))}


def change(service: Service, wanted: dict) -> dict:
    account.settle_groups(service, wanted)
    new_user, directories = account.missing_user(wanted["user"]), account.wrong_directories(wanted["directories"])
    account.prepare(service, wanted, new_user, directories)
    return {"changed": bool(new_user or directories)}


def main() -> None:
    module = HostModule(argument_spec={**arguments.NAME, **arguments.ACCOUNT}, supports_check_mode=True)
    door.run(module, preview, change)


if __name__ == "__main__":
    main()
