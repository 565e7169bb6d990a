#!/usr/bin/python
"""Thin module over module_utils.release.log_rotation."""

from __future__ import annotations

DOCUMENTATION = r"""
module: logrotate_file
short_description: Install a logrotate file that does not conflict with the others
description:
  - Checks the file and the complete configuration with logrotate before the file is written. Refuses the file if
    another one rotates one of its logs too, since logrotate then skips one of them without a message that anyone sees.
  - The file belongs to root and only root can write it; logrotate ignores any other.
author: The llm-server maintainers (@llm-server)
options:
  path: {description: "The file, in a directory that logrotate includes.", type: path, required: true}
  content: {description: Its full text., type: str, required: true}
attributes:
  check_mode:
    description: Checks the file with logrotate and shows it; writes nothing.
    details: Before logrotate or the user of the logs is there, nothing can be asked.
    support: partial
  diff_mode: {description: Shows the file., support: full}
"""

EXAMPLES = r"""
- name: Rotate the log files
  llm.server.logrotate_file:
    path: /etc/logrotate.d/ai-server
    content: "{{ lookup('ansible.builtin.template', 'logrotate.j2') }}"
"""

RETURN = ""

from pathlib import Path

from ..module_utils import atomic_file, host_text
from ..module_utils.errors import UserError
from ..module_utils.host_module import HostModule
from ..module_utils.release.contents import attributes
from ..module_utils.release.log_rotation import LOGROTATE, check

MODE = ("0644", "root", "root")


def main() -> None:
    module = HostModule(
        argument_spec={"path": {"type": "path", "required": True}, "content": {"type": "str", "required": True}},
        supports_check_mode=True,
    )
    path, content = Path(module.params["path"]), module.params["content"]
    before = host_text.read(path) if path.is_file() else ""
    changed = before != content or attributes(path) != MODE
    # In check mode on a new host the program and the user in the text do not exist yet.
    if not module.check_mode or (Path(LOGROTATE).exists() and path.exists()):
        try:
            check(path, content)
        except UserError as error:
            module.fail_json(msg=host_text.printable(str(error)))
    if changed and not module.check_mode:
        atomic_file.write(path, content, 0o644, "root", "root")
    header = {"before_header": str(path), "after_header": str(path)}
    module.exit_json(changed=changed, diff={**header, "before": host_text.printable(before), "after": content})


if __name__ == "__main__":
    main()
