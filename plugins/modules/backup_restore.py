#!/usr/bin/python
"""Door to ansible.module_utils.backup."""

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_restore
short_description: Put the data of a backup on this host
description:
  - Finds the snapshot, sees that there is room, and brings the data beside what stands there, whole and with the owners
    that it has on this host. Only then the services stop, for a few renames.
  - What stood there before comes back where a service does not answer after it.
  - Settings, keys and notes are in a snapshot too and stay there, since a run of C(site.yml) writes those of the
    inventory.
author: The llm-server maintainers
options:
  snapshot:
    description: The snapshot, by the beginning of its id; V(latest) for the newest one.
    type: str
    default: latest
  of:
    description: Host whose backup it is, by its name in the repository; this host when empty.
    type: str
    default: ""
attributes:
  check_mode: {description: Finds the snapshot and sees that there is room; places nothing., support: full}
"""

EXAMPLES = r"""
- name: Restore what another host had
  backup_restore:
    of: ai-server-l4
"""

RETURN = r"""
rows:
  description: What was found and done, as rows of the checklist.
  type: list
  elements: dict
  returned: success
"""

import json

from ansible.module_utils import backup
from ansible.module_utils.host_module import HostModule
from ansible.module_utils.service_release import Refused
from ansible.module_utils.systemd_unit import SystemdError


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
            msg="Nothing was restored: this host has no repository; set backup_repository and backup_password, put it "
            "into the group backup, and run site.yml first."
        )
    settings = json.loads(backup.SETTINGS.read_text(encoding="utf-8"))
    try:
        found = backup.ask("find", module.params["of"] or settings["host"], module.params["snapshot"])
        rows = backup.restore(found, settings, module.check_mode)
    except (backup.BackupError, Refused, SystemdError, OSError) as error:
        module.fail_json(msg=f"Nothing was restored: {error}.")
    module.exit_json(changed=True, rows=rows)


if __name__ == "__main__":
    main()
