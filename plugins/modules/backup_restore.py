#!/usr/bin/python
"""Thin module over module_utils.backup."""

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_restore
short_description: Restore the data of a backup to this host
description:
  - Finds the snapshot, checks that there is room, and fetches the data next to the current data, checked and with this
    host's owners. Only then do the services stop, for a few renames.
  - The previous data comes back if a service does not answer afterwards.
  - Settings, keys and release records are also in a snapshot but not restored, since C(site.yml) writes them from the
    inventory.
author: The llm-server maintainers (@llm-server)
options:
  snapshot:
    description: The snapshot, given by the start of its ID, or V(latest).
    type: str
    default: latest
  of:
    description: Host whose backup is restored, by its name in the repository; this host if empty.
    type: str
    default: ""
attributes:
  check_mode: {description: Finds the snapshot and checks that there is room; restores nothing., support: full}
"""

EXAMPLES = r"""
- name: Restore the data of another host
  llm.server.backup_restore:
    of: ai-server-l4
"""

RETURN = r"""
rows:
  description: The snapshot and what was restored, as checklist rows.
  type: list
  elements: dict
  returned: success
"""

import json

from ..module_utils import backup
from ..module_utils.errors import UserError
from ..module_utils.host_module import HostModule


def main() -> None:
    module = HostModule(
        argument_spec={
            "snapshot": {"type": "str", "default": "latest"},
            "of": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    if not backup.configured():
        module.fail_json(
            msg="Nothing was restored: this host has no repository; set backup_repository and backup_password, add the "
            "host to the group backup, and run site.yml first."
        )
    settings = json.loads(backup.SETTINGS.read_text(encoding="utf-8"))
    try:
        found = backup.ask("find", module.params["of"] or settings["host"], module.params["snapshot"])
        rows = backup.restore(found, settings, module.check_mode)
    except (UserError, OSError) as error:
        module.fail_json(msg=f"Nothing was restored: {error}.")
    module.exit_json(changed=True, rows=rows)


if __name__ == "__main__":
    main()
