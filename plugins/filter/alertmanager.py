"""Filters for the configuration of Alertmanager; see module_utils/watch/alertmanager.py."""

from __future__ import annotations

import json

import yaml

from ..module_utils.watch import alertmanager


def alertmanager_configuration(settings: dict) -> str:
    """Return the text of alertmanager.yml."""
    head = "# Written by Ansible; changes made here are undone by the next run.\n"
    # Ansible's values carry their origin, which YAML cannot write.
    plain = json.loads(json.dumps(alertmanager.configuration(settings)))
    return head + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)


def alertmanager_secret(item: dict) -> dict:
    """Return the file of one secret, an item ``{key, value}``, which only the service can read."""
    owner = {"owner": "alertmanager", "group": "alertmanager", "mode": "0400", "whole": True}
    return {"path": f"{alertmanager.SECRETS}/{item['key']}", "content": item["value"], **owner}


class FilterModule:
    def filters(self):
        return {
            "alertmanager_configuration": alertmanager_configuration,
            "alertmanager_problems": alertmanager.problems,
            "alertmanager_secret": alertmanager_secret,
        }
