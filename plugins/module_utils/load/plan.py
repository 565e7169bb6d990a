"""The parameters of a load check. They are bounded, so that nobody overloads a host by mistake."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..errors import UserError

CALLERS, MINUTES, TOKENS = 256, 120, 131_072
FIND_CALLERS = 64  # upper bound of a search without load_callers
LIMITS = {
    "ttft_p95_ms": "ms to the first token, p95",
    "itl_p95_ms": "ms between two tokens, p95",
    "error_share": "share of requests that failed",
}


@dataclass(frozen=True)
class Plan:
    """N concurrent callers for M minutes, with prompts and answers of given lengths in tokens."""

    callers: int
    minutes: float
    input_tokens: int
    output_tokens: int
    limits: dict[str, float] = field(default_factory=dict)
    find_ttft_ms: float | None = None

    @property
    def seconds(self) -> float:
        return self.minutes * 60


def units_of(targets: list[dict], services: list[dict]) -> list[str]:
    """Return the units to watch during a load: those of the targets, and the application before them, each once."""
    before = [f"{each['name']}.service" for each in services if each["name"] == "ai-server"]
    return list(dict.fromkeys([*(each["unit"] for each in targets), *before]))


def checked(args: dict) -> Plan:
    """Return the plan for a task's arguments. Raises UserError."""
    find = _find(args.get("find"))
    callers = args.get("callers")
    given = {
        "callers": _number(
            "load_callers", callers if callers is not None else FIND_CALLERS if find else 4, CALLERS, int
        ),
        "minutes": _number("load_minutes", args.get("minutes", 1), MINUTES, float),
        "input_tokens": _number("load_input_tokens", args.get("input_tokens", 256), TOKENS, int, 1),
        "output_tokens": _number("load_output_tokens", args.get("output_tokens", 64), TOKENS, int),
    }
    return Plan(**given, limits=_limits(args.get("limits") or {}), find_ttft_ms=find)


def _number(name: str, value, most: float, kind: type, least: float = 0):
    try:
        number = kind(str(value))
    except ValueError:
        raise UserError(f"{name} is {value!r}; give a {'whole ' * (kind is int)}number above 0.") from None
    if not least < number <= most:
        raise UserError(f"{name} is {number}; it must be above {least} and at most {most}.")
    return number


def _limits(given: dict) -> dict[str, float]:
    if not isinstance(given, dict):
        raise UserError(f"load_limits is {given!r}; give a mapping of {', '.join(LIMITS)}.")
    unknown = sorted(set(given) - set(LIMITS))
    if unknown:
        raise UserError(f"load_limits has {', '.join(unknown)}; it takes {', '.join(LIMITS)}.")
    limits = {}
    for name, value in given.items():
        try:
            limits[name] = float(value)
        except (TypeError, ValueError):
            raise UserError(f"load_limits: {name} is {value!r}; give a number.") from None
        if not 0 <= limits[name] < math.inf or (name == "error_share" and limits[name] > 1):
            raise UserError(f"load_limits: {name} is {value}; it must be {_range(name)}.")
    return limits


def _range(name: str) -> str:
    return "from 0 to 1" if name == "error_share" else "0 or more"


def _find(text) -> float | None:
    """`ttft_ms:500` -> 500.0."""
    if text in (None, ""):
        return None
    name, _, value = str(text).partition(":")
    try:
        limit = float(value)
    except ValueError:
        limit = 0
    if name != "ttft_ms" or not 0 < limit < math.inf:
        raise UserError(f"find is {text}; give a limit for the time to first token, such as ttft_ms:500.")
    return limit
