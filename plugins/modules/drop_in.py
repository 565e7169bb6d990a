#!/usr/bin/python
"""Thin module over module_utils.release.drop_in."""

from __future__ import annotations

DOCUMENTATION = r"""
module: drop_in
short_description: Manage drop-in files of systemd's programs, and restart the services that read them
description:
  - Writes or removes each file, and restarts its service if it has not read the file since.
author: The llm-server maintainers (@llm-server)
options:
  files:
    description: The files.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {description: "The file, in the program's C(.conf.d).", type: path, required: true}
      content: {description: Its full text., type: str, required: true}
      unit: {description: Service that reads it when it starts., type: str, default: ""}
      command:
        description: Command that applies the file after the service has read it.
        type: list
        elements: str
        default: []
  state: {description: Whether the files exist., type: str, choices: [present, absent], default: present}
attributes:
  check_mode: {description: Shows the files; changes nothing., support: full}
  diff_mode: {description: Shows the files., support: full}
"""

EXAMPLES = r"""
- name: Limit the journal
  llm.server.drop_in:
    files:
      - path: /etc/systemd/journald.conf.d/housekeeping.conf
        content: |
          [Journal]
          SystemMaxUse=2G
        unit: systemd-journald.service
        command: [journalctl, --rotate]
"""

RETURN = ""

from ..module_utils import host_text
from ..module_utils.errors import UserError
from ..module_utils.host_module import HostModule
from ..module_utils.release.drop_in import Change, carry_out, change


def main() -> None:
    drop_in = {
        "path": {"type": "path", "required": True},
        "content": {"type": "str", "required": True},
        "unit": {"type": "str", "default": ""},
        "command": {"type": "list", "elements": "str", "default": []},
    }
    module = HostModule(
        argument_spec={
            "files": {"type": "list", "elements": "dict", "required": True, "options": drop_in},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    host, present = host_text.Tree(), module.params["state"] == "present"
    done = []
    try:
        for file in module.params["files"]:
            planned = change(host, file["path"], file["content"] if present else "", file["unit"])
            done.append(planned)
            if not module.check_mode:
                carry_out(host, planned, file["command"])
    except (UserError, OSError) as error:
        module.fail_json(msg=host_text.printable(str(error)))
    module.exit_json(changed=any(planned.needed for planned in done), diff=[shown(planned) for planned in done])


def shown(planned: Change) -> dict:
    before, after = host_text.printable(planned.before), host_text.printable(planned.after)
    return {"before_header": planned.path, "after_header": planned.path, "before": before, "after": after}


if __name__ == "__main__":
    main()
