"""Filters about engines that take turns; their logic is in module_utils/engines/engine_states.py."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from ..module_utils.engines import engine_states


def engine_switch(engines: list, note: dict, groups: dict, to: str) -> dict:
    """Return what switching a host to the engine ``to`` does; see engine_states.switched."""
    return engine_states.switched(engines, note, groups, to)


def engine_resting(engines: list, note: dict) -> list:
    """Return ``{name, instead}`` of the engines that should not serve now."""
    return engine_states.resting_instead(engines, note)


def engine_serving(engines: list, note: dict, group: str) -> str:
    """Return the name of the engine of ``group`` that serves."""
    return engine_states.serving([each for each in engines if each["group"] == group], note)["name"]


def engine_rows(names: list, found: dict) -> list:
    """Return the engines of a group as checklist rows, from the result of engine_state with ``state: read``."""
    return engine_states.rows(names, found["states"], found["active"], found["memory_mib"])


def engine_names(listed: list) -> list:
    """Return ``{name, group}`` of the entries of a list of engines that was not validated yet."""
    return [
        {"name": str(each.get("name")), "group": str(each.get("group") or "")}
        for each in listed
        if isinstance(each, Mapping)
    ]


def switch_refused(hosts: dict, to: str) -> str:
    """Return why no host can switch to ``to``, "" if one can; ``hosts`` has the `engine_names` of each."""
    return engine_states.refused(hosts, to)


def group_refused(hosts: dict, group: str) -> str:
    """Return why no host has engines of ``group``, "" if one has; ``hosts`` has the `engine_names` of each."""
    return engine_states.group_refused(hosts, group)


def command_words(command: str | list) -> list:
    """Return the words of a command line without a shell; [] if it is empty or a quote is not closed."""
    if not isinstance(command, str):
        return [str(word) for word in command or []]
    try:
        return shlex.split(command)
    except ValueError:
        return []


def reason_of(result: dict, engine: str) -> str:
    """Return why a task failed, in a loop the failed items, without the engine's name in front and the full stop."""
    each = [one for one in result.get("results") or [] if one.get("failed")] or [result]
    reasons = "; ".join(str(one.get("msg") or "it failed").strip() for one in each)
    return reasons.removeprefix(f"{engine}: ").rstrip(".")


def turn_of(result: dict, engine: str) -> dict:
    """Return ``{engine, ok, rc, seconds, says, told, log}`` of a result, or of an earlier failure.

    ``told`` is ``says`` with the engine's name, for a sentence about all of them.
    """
    failed = result.get("failed", False)
    skipped = result.get("skipped", False)
    says = "nothing is run in check mode" if skipped else result.get("says") or reason_of(result, engine)
    return {
        "engine": engine,
        "ok": None if skipped else not failed and result.get("rc") == 0,
        "rc": result.get("rc"),
        "seconds": result.get("seconds"),
        "says": says,
        "told": says if says.startswith(f"{engine} ") else f"{engine}: {says}",
        "log": result.get("log") or "",
    }


def turn_rows(turns: list) -> list:
    """Return the outcome of a command against each engine as checklist rows."""
    return [
        {
            "what": each["engine"],
            "measured": each["says"],
            "ok": each["ok"],
            "cure": each["log"] and f"see {each['log']}",
        }
        for each in turns
    ]


class FilterModule:
    def filters(self):
        return {
            "command_words": command_words,
            "engine_names": engine_names,
            "engine_resting": engine_resting,
            "engine_rows": engine_rows,
            "engine_serving": engine_serving,
            "engine_switch": engine_switch,
            "group_refused": group_refused,
            "reason_of": reason_of,
            "switch_refused": switch_refused,
            "turn_of": turn_of,
            "turn_rows": turn_rows,
        }
