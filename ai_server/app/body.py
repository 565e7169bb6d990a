"""Read the JSON body of a request, with a limit that keeps parsing fast."""

import json

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from app.errors import Problem

COUNTED = (b"[", b"{", b",")


async def read_object(receive: Receive, max_values: int) -> dict:
    """Return the request body as an object.

    Raises Problem 400 unless the body is a JSON object with at most ``max_values`` values, and ClientDisconnect if the
    client disconnects before its end. Values are counted before parsing, because parsing blocks all other requests
    (even in a thread): 20 MiB of `[],` take seconds, 20 MiB of text almost no time. The count includes the same
    characters inside strings, so the limit has to be generous.
    """
    raw = await _whole(receive)
    if sum(map(raw.count, COUNTED)) > max_values:
        raise Problem(400, f"The body has more than {max_values} values.")
    try:
        body = json.loads(raw, parse_constant=no_json, parse_float=_finite)
        if b"\\ud" in raw.lower():
            json.dumps(body, ensure_ascii=False).encode()  # fails for a lone surrogate
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
    """Raise ValueError: the `parse_constant` for NaN and Infinity, which Python accepts and JSON does not have."""
    raise ValueError(f"{constant} is no JSON")
