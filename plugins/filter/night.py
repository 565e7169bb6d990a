"""Filter for the time slot of a host's nightly restart."""

from __future__ import annotations

from ..module_utils.cloud import night
from ..module_utils.errors import UserError


def night_slot(hosts: list, host: str, at: str, window: int, batch: int) -> dict:
    """Return the slot of ``host``; its ``problem`` says why there is none."""
    try:
        # A batch of zero is refused by its own rule.
        return {**night.slot(list(hosts), host, at, int(window), max(1, int(batch))), "problem": ""}
    except UserError as error:
        return {"number": 0, "parts": 0, "begin": "", "patience": 0, "problem": str(error)}


class FilterModule:
    def filters(self):
        return {"night_slot": night_slot, "night_units_problem": night.units_problem}
