"""When each host of a fleet restarts its services at night: never at the time of another one.

Plain Python. The time that is given to all is divided into equal parts, one for each batch of hosts; a host restarts
within its own part, early enough to serve again before the next part begins.
"""

from __future__ import annotations

import math
import re

BACK = 600  # seconds at the end of a part in which no restart begins: as long as a start may take
SHORTEST = 2 * BACK  # seconds of a part
DAY = 24 * 3600


class NoTime(ValueError):
    """The parts would be too short; the text says what would do."""


def seconds(at: str) -> int:
    """Return the seconds since midnight of a time such as ``02:00``."""
    hours, minutes = re.fullmatch(r"([01]\d|2[0-3]):([0-5]\d)", at).groups()
    return int(hours) * 3600 + int(minutes) * 60


def slot(hosts: list[str], host: str, at: str, window: int, batch: int) -> dict:
    """Return the part of ``host``: its ``number`` of so many ``parts``, ``begin`` as HH:MM:SS, and its ``patience``.

    Of ``hosts``, in the order of their names, ``batch`` share a part; ``window`` are the seconds from ``at`` for all.
    For so many seconds of patience from the beginning of its part a restart may begin.
    """
    order = sorted({*hosts, host})
    parts = math.ceil(len(order) / batch)
    length = window // parts
    if length < SHORTEST:
        raise NoTime(
            f"{len(order)} hosts in batches of {batch} need {parts * SHORTEST} s, {SHORTEST} s a batch; the window has "
            f"{window} s"
        )
    number = order.index(host) // batch
    begin = (seconds(at) + number * length) % DAY
    clock = f"{begin // 3600:02}:{begin // 60 % 60:02}:{begin % 60:02}"
    return {"number": number + 1, "parts": parts, "begin": clock, "patience": length - BACK}
