"""Filters about the engines of a host; what they think with is module_utils/engines.py."""

from __future__ import annotations

from pathlib import Path

import ansible.module_utils

UTILS = str(Path(__file__).resolve().parents[1] / "module_utils")
if UTILS not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(UTILS)
from ansible.module_utils import engines
from ansible.module_utils.addresses import local_url


def planned_variables(kind: str) -> list[str]:
    """Return the names of the variables of the role of ``kind`` that decide about an engine's memory."""
    return engines.planned_variables(kind)


def planned_engine(settings: dict, name: str, kind: str) -> dict:
    """Return the question to gpu_memory_plan about one engine, from the variables of its role."""
    return engines.planned(name, kind, settings)


def free_at_start(plans: dict, name: str) -> dict:
    """Return ``{mib, gpus}``, what the engine ``name`` needs free at its start, from its plan in ``plans``."""
    return engines.free_at_start(plans.get(name) or {}, name)


def engines_before(resolved: list[dict], name: str) -> list[dict]:
    """Return the engines that start before ``name``, in order, as ``{unit, url, seconds}``; see engine_turn.py."""
    return engines.before(resolved, name)


def listed_engine(resolved: dict) -> dict:
    """Return ``{name, kind, group}`` of a resolved engine, which has no secret."""
    return {"name": resolved["name"], "kind": resolved["kind"], "group": resolved["group"] or None}


def engine_services(listed: list[dict], defaults: dict) -> list[dict]:
    """Return the services of a host's engines as ``{name, unit, metrics}``.

    ``defaults`` has, for each kind, the inventory's ``host`` and ``port``, for what an entry leaves out. ``metrics`` is
    the address of the engine's metrics.
    """
    services = []
    for one in listed:
        told = {**defaults[one["kind"]], **one}
        url = local_url(told["host"], told["port"])
        services.append({"name": one["name"], "unit": f"{one['name']}.service", "metrics": f"{url}/metrics"})
    return services


class FilterModule:
    """The filters by name."""

    def filters(self):
        return {
            "planned_variables": planned_variables,
            "planned_engine": planned_engine,
            "free_at_start": free_at_start,
            "engines_before": engines_before,
            "listed_engine": listed_engine,
            "engine_services": engine_services,
        }
