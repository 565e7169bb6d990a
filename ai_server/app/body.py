"""The JSON of a request: an object, of a size and a number of values that are read in a moment."""

import json

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from app.errors import Problem

COUNTED = (b"[", b"{", b",")


async def read_object(receive: Receive, max_values: int) -> dict:
    """Read the whole body; raises Problem 400 unless it is a JSON object of ``max_values`` values at most, and
    ClientDisconnect where it does not end.

    They are counted before they are read: reading holds up all other requests, in a thread as well, and 20 MiB of
    `[],` take seconds where 20 MiB of text take none. What is counted is in texts too, so that the bound is a wide one.
    """
    raw = await _whole(receive)
    if sum(map(raw.count, COUNTED)) > max_values:
        raise Problem(400, f"The body has more than {max_values} values.")
    try:
        body = json.loads(raw, parse_constant=no_json, parse_float=_finite)
        if b"\\ud" in raw.lower():
            json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair is what no JSON can carry on
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Problem(400, "The body is not a JSON object.")
    return body


async def _whole(receive: Receive) -> bytes:
    pieces, more = [], True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        pieces.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(pieces)


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large")
    return number


def no_json(constant: str) -> None:
    """For `parse_constant`: NaN and Infinity are what Python reads and no JSON is."""
    raise ValueError(f"{constant} is no JSON")
