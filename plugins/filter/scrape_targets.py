"""Filters for the scrape targets of a host; see module_utils/watch/scrape_targets.py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

from ..module_utils.watch import scrape_targets

ROLES = Path(__file__).resolve().parents[2] / "roles"
PARTS = {"served": scrape_targets.PROGRAMS, "watching": scrape_targets.WATCHING}


def scraped(groups: list, variables: Mapping, facts: Mapping, part: str) -> list:
    """Return ``[{job, service, target}]`` of a host of ``groups``, for the part "served" or "watching"."""
    programs = PARTS[part]
    defaults = {program.role: _defaults(program.role) for program in programs}
    return scrape_targets.targets(programs, list(groups), variables, defaults, facts or {})


def engine_keys(engines: list) -> list:
    """Return the files of vmagent's service with the keys for the metrics of ``engines``."""
    owned = {"owner": "vmagent", "group": "vmagent", "mode": "0400", "whole": True}
    return [
        {"path": scrape_targets.bearer_file(one["name"]), "content": one["key"], **owned}
        for one in engines
        if one.get("key")
    ]


def _defaults(role: str) -> dict:
    path = ROLES / role / "defaults" / "main.yml"
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


class FilterModule:
    def filters(self):
        return {
            "scraped": scraped,
            "with_engines": scrape_targets.with_engines,
            "engine_keys": engine_keys,
            "scrape_configuration": scrape_targets.configuration,
            "scrape_login": scrape_targets.login,
            "scrape_problems": scrape_targets.problems,
        }
