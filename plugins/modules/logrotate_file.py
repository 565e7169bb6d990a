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

from ..module_utils.doors.logrotate_file import main

if __name__ == "__main__":
    main()
