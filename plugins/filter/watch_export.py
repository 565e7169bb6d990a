"""Filters of playbooks/export_watch.yml; see module_utils/watch/watch_export.py."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import yaml

from ..module_utils.watch import watch_export

ROLES = Path(__file__).resolve().parents[2] / "roles"


@cache
def _defaults(role: str) -> dict:
    path = ROLES / role / "defaults" / "main.yml"
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


def watch_targets(hosts: list, hostvars: Mapping) -> dict:
    """Return targets, expected hosts and sentences for ``hosts``, from their variables in the inventory."""
    return watch_export.targets({host: hostvars[host] for host in hosts}, _defaults)


def alertmanager_routes(_given: object) -> str:
    """Return the routes and receivers for an Alertmanager of one's own; they are the same for every inventory."""
    return watch_export.routes()


class FilterModule:
    def filters(self):
        return {
            "watch_targets": watch_targets,
            "linked_rules": watch_export.linked,
            "prometheus_configuration": watch_export.prometheus,
            "alertmanager_routes": alertmanager_routes,
        }
