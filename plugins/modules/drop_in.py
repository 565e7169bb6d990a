#!/usr/bin/python
"""Thin module over module_utils.release.drop_in."""

from __future__ import annotations

DOCUMENTATION = r"""
module: drop_in
short_description: Manage a drop-in file of a systemd program, and restart its service to read it
description:
  - Writes or removes the file, and restarts the service if it has not read the file since.
author: The llm-server maintainers (@llm-server)
options:
  path: {description: "The file, in the program's C(.conf.d).", type: path, required: true}
  content: {description: Its full text., type: str, required: true}
  unit: {description: Service that reads it when it starts., type: str, default: ""}
  command:
    description: Command that applies the file after the service has read it.
    type: list
    elements: str
    default: []
  state: {description: Whether the file exists., type: str, choices: [present, absent], default: present}
attributes:
  check_mode: {description: Shows the file; changes nothing., support: full}
  diff_mode: {description: Shows the file., support: full}
"""

EXAMPLES = r"""
- name: Limit the journal
  llm.server.drop_in:
    path: /etc/systemd/journald.conf.d/housekeeping.conf
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
from ..module_utils.release.drop_in import carry_out, change


def main() -> None:
    module = HostModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "content": {"type": "str", "required": True},
            "unit": {"type": "str", "default": ""},
            "command": {"type": "list", "elements": "str", "default": []},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    options, host = module.params, host_text.Tree()
    text = options["content"] if options["state"] == "present" else ""
    try:
        planned = change(host, options["path"], text, options["unit"])
        if not module.check_mode:
            carry_out(host, planned, options["command"])
    except (UserError, OSError) as error:
        module.fail_json(msg=host_text.printable(str(error)))
    before, after = host_text.printable(planned.before), host_text.printable(planned.after)
    headers = {"before_header": planned.path, "after_header": planned.path}
    module.exit_json(changed=planned.needed, diff=[{**headers, "before": before, "after": after}])


if __name__ == "__main__":
    main()
