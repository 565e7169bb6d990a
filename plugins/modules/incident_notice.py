#!/usr/bin/python
"""Thin module over module_utils.incident.notice."""

from __future__ import annotations

DOCUMENTATION = r"""
module: incident_notice
short_description: Send the summary of an incident to a Slack incoming webhook or a compatible receiver
description:
  - Posts a text to a webhook. The same state is not sent twice within half an hour.
  - The webhook's address is a secret; it appears in no result, log or error.
  - Meant to run on the controller, by C(delegate_to).
author: The llm-server maintainers (@llm-server)
options:
  url:
    description: Address of the webhook, from the vault.
    type: str
  file:
    description: File on the controller that has the address, if O(url) is empty.
    type: path
  text:
    description: Text to send; at most its first 6000 characters are sent.
    type: str
    required: true
  rows:
    description: The state, as rows with C(what) and C(ok); the same rows are not sent twice.
    type: list
    elements: dict
    default: []
  note:
    description: File that records what was sent last.
    type: path
    required: true
attributes:
  check_mode: {description: Checks the address and sends nothing., support: full}
"""

EXAMPLES = r"""
- name: Notify the people on call
  llm.server.incident_notice:
    url: "{{ incident_webhook_url }}"
    text: "{{ __incident_evidence.summary }}"
    rows: "{{ __incident_evidence.rows }}"
    note: "{{ playbook_dir }}/../incidents/{{ inventory_hostname }}.sent"
  delegate_to: localhost
"""

RETURN = r"""
sent: {description: Whether it was sent now., type: bool, returned: always}
told: {description: The outcome as a sentence., type: str, returned: always, sample: sent to the receiver}
"""

from pathlib import Path

from ..module_utils.errors import UserError
from ..module_utils.host_module import HostModule
from ..module_utils.incident import notice


def main() -> None:
    module = HostModule(
        argument_spec={
            "url": {"type": "str", "no_log": True},
            "file": {"type": "path"},
            "text": {"type": "str", "required": True},
            "rows": {"type": "list", "elements": "dict", "default": []},
            "note": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    note = Path(wanted["note"])
    try:
        url = notice.address(wanted["url"], wanted["file"])
        age = notice.sent_before(note, wanted["rows"])
        if age is not None:
            module.exit_json(changed=False, sent=False, told=f"the same was sent {age / 60:.0f} min ago")
        if not module.check_mode:
            notice.send(url, wanted["text"])
            notice.keep(note, wanted["rows"])
    except (UserError, OSError) as error:
        module.fail_json(msg=f"{error}.")
    text = "it would be sent to the receiver" if module.check_mode else "sent to the receiver"
    module.exit_json(changed=True, sent=not module.check_mode, told=text)


if __name__ == "__main__":
    main()
