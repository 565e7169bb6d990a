"""The JSON of a request: an object, of a size and a number of values that are read in a moment."""

import json

from starlette.requests import Request

from app.errors import Problem

COUNTED = (b"[", b"{", b",")


async def read_object(request: Request, max_values: int) -> dict:
    """Return the body; raise Problem 400 for what is no JSON object, or has more than ``max_values`` values.

    They are counted before they are read: reading holds up all other requests, in a thread as well, and 20 MiB of
    `[],` take seconds where 20 MiB of text take none. What is counted is in texts too, so that the bound is a wide one.
    """
    raw = await request.body()
    if sum(map(raw.count, COUNTED)) > max_values:
        raise Problem(400, f"The body has more than {max_values} values.")
    try:
        body = json.loads(raw, parse_constant=_no_json, parse_float=_finite)
        if b"\\ud" in raw.lower():
            json.dumps(body, ensure_ascii=False).encode()  # half a surrogate pair is what no JSON can carry on
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Problem(400, "The body is not a JSON object.")
    return body


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text} is too large")
    return number


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
