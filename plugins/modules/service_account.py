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

RETURN = r"""
pending:
  description: Whether the release store does not yet record what the service uses.
  type: bool
  returned: in check mode
"""

from ..module_utils.doors.service_account import main

if __name__ == "__main__":
    main()
