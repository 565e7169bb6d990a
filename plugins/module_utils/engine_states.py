"""Which engines of this host are not to serve, as its last run and its last switch noted it; plain Python."""

from __future__ import annotations

import json
from pathlib import Path

from . import engines
from .service_release import STORE

LIST = STORE.parent / "engine_list.json"  # [{name, kind, group}] in their order of start
STATES = STORE.parent / "engines.json"  # {name: {state, instead, since}} of those that a switch stopped or put to sleep
METRICS = STORE.parent / "metrics" / "engines.prom"


def read(path: Path, empty):
    """Return what a file of JSON holds; ``empty`` where there is none, or it is damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return empty
    return found if isinstance(found, type(empty)) else empty


def resting() -> list[str]:
    """Return the names of the engines that are not to serve, since another one of their group does."""
    return engines.resting(read(LIST, []), read(STATES, {}))


def metrics(listed: list[dict], noted: dict) -> str:
    """Return the page for node_exporter's textfile collector that says which engines rest."""
    resting = engines.resting(listed, noted)
    lines = ["# HELP llm_engine_resting 1 where another engine of the group serves instead."]
    lines += ["# TYPE llm_engine_resting gauge"]
    lines += [f'llm_engine_resting{{service="{one["name"]}"}} {int(one["name"] in resting)}' for one in listed]
    return "\n".join(lines) + "\n"
