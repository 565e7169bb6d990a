#!/usr/bin/python
"""Thin module over module_utils.backup."""

from __future__ import annotations

DOCUMENTATION = r"""
module: backup
short_description: Take a backup of this host, or prepare its repository
description:
  - Calls the program that the role P(llm.server.backup#role) installs. On a host without a repository it does nothing
    and reports that.
author: The llm-server maintainers (@llm-server)
options:
  state:
    description:
      - V(taken) takes a snapshot. V(ready) checks that the password opens the repository, and creates the repository if
        it never existed.
    type: str
    choices: [taken, ready]
    default: taken
  reason:
    description: Tag of the snapshot, such as C(by-hand).
    type: str
    default: by-hand
attributes:
  check_mode: {description: Checks whether the repository answers; creates nothing and takes no backup., support: full}
"""

EXAMPLES = r"""
- name: Take a backup
  llm.server.backup:
    reason: before-rollback
  register: __backup
"""

RETURN = r"""
configured: {description: Whether this host has a repository., type: bool, returned: always}
taken: {description: Whether there is a backup of this host., type: bool, returned: with O(state=ready)}
rows:
  description: Snapshot, files, MiB added and seconds as checklist rows, or a row that says why there is no snapshot.
  type: list
  elements: dict
  returned: with O(state=taken)
report: {description: The result in one line., type: str, returned: with O(state=taken)}
"""

import json
import platform
import re

from ..module_utils import backup
from ..module_utils.errors import UserError
from ..module_utils.host_module import HostModule


def main() -> None:
    module = HostModule(
        argument_spec={
            "state": {"type": "str", "choices": ["taken", "ready"], "default": "taken"},
            "reason": {"type": "str", "default": "by-hand"},
        },
        supports_check_mode=True,
    )
    state, reason = module.params["state"], module.params["reason"]
    if not re.fullmatch(r"[a-z][a-z-]*", reason):
        module.fail_json(msg=f"reason is {reason}; use only lower-case letters and dashes, such as by-hand.")
    if not backup.configured():
        rows = [backup.row("backup", backup.NONE, None)]
        module.exit_json(changed=False, configured=False, rows=rows, report=backup.NONE)
    try:
        if state == "ready" or module.check_mode:
            told = backup.ask("look" if module.check_mode else "prepare")
            changed = told["made"] or state == "taken"
            rows = [backup.row("backup", "would be taken", None)]
            module.exit_json(
                changed=changed, configured=True, taken=told.get("taken", False), rows=rows, report="would be taken"
            )
        told = backup.ask("take", reason)
    except (UserError, OSError) as error:
        module.fail_json(msg=f"No complete backup was taken: {error}.", configured=True)
    settings = json.loads(backup.SETTINGS.read_text(encoding="utf-8"))
    module.exit_json(
        changed=True,
        configured=True,
        rows=backup.taken_rows(settings.get("host") or platform.node(), told),
        report=f"snapshot {told['snapshot']}: {told['files']} files, {backup.mib(told['added'])} added "
        f"in {told['seconds']:.0f} s",
    )


if __name__ == "__main__":
    main()
