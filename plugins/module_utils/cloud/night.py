"""Time slots for nightly restarts, so that the hosts of a fleet never restart at the same time.

Plain Python. The window is divided into equal slots, one per batch of hosts. A host restarts within its slot, early
enough to serve again before the next slot begins.
"""

from __future__ import annotations

import math
import re

from ..errors import UserError

BACK = 600  # seconds at the end of a slot in which no restart begins, the time of a slow start
SHORTEST = 2 * BACK  # seconds of the shortest slot
DAY = 24 * 3600


def seconds(at: str) -> int:
    """Return a time such as ``02:00`` as seconds since midnight."""
    hours, minutes = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)", at).groups()
    return int(hours) * 3600 + int(minutes) * 60


def slot(hosts: list[str], host: str, at: str, window: int, batch: int) -> dict:
    """Return the slot of ``host``: ``number`` of ``parts``, ``begin`` as HH:MM:SS, and ``patience``.

    ``batch`` hosts, sorted by name, share a slot; all slots fill ``window`` seconds from ``at``. A restart may begin
    during the first ``patience`` seconds of the slot.
    """
    order = sorted({*hosts, host})
    parts = math.ceil(len(order) / batch)
    length = window // parts
    if length < SHORTEST:
        raise UserError(
            f"{len(order)} hosts in batches of {batch} need {parts * SHORTEST} s ({SHORTEST} s per batch), and it is "
            f"{window} s"
        )
    number = order.index(host) // batch
    begin = (seconds(at) + number * length) % DAY
    clock = f"{begin // 3600:02}:{begin // 60 % 60:02}:{begin % 60:02}"
    return {"number": number + 1, "parts": parts, "begin": clock, "patience": length - BACK}


def units_problem(units: list[str], services: list[dict]) -> str:
    """Return why the ``units`` cannot restart by night, empty if they can: the watchdog must know when they are idle.

    ``services`` are those of the watchdog, each with ``unit`` and perhaps ``metrics``.
    """
    watched = {service["unit"]: service for service in services}
    if not units or not watched.keys() >= set(units):
        return f"name at least one unit, and only units of watchdog_services: {', '.join(watched)}"
    if not any(watched[unit].get("metrics") for unit in units):
        return (
            "none of them has metrics in watchdog_services, so the watchdog cannot tell when they are idle; set "
            "metrics for one of them, or add a service that has metrics"
        )
    return ""
