"""Filters for the playbook of incidents."""

from __future__ import annotations

from pathlib import Path

import ansible.module_utils

UTILS = str(Path(__file__).resolve().parents[1] / "module_utils")
if UTILS not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(UTILS)
from ansible.module_utils.incident import summary


class FilterModule:
    def filters(self):
        return {"after_escalation": summary.after, "escalated": summary.escalated}
