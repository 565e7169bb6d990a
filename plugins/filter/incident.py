"""Filters for the incident playbook."""

from __future__ import annotations

from ..module_utils.incident import summary


class FilterModule:
    def filters(self):
        return {"after_escalation": summary.after, "escalated": summary.escalated}
