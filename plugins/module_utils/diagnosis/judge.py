"""Weighs what was found: the most likely cause first, then other findings; unknown if nothing explains the failure."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from . import failures
from .causes import Found, Table, found
from .lines import ERROR, INFO, Line

# A new start of the same service begins at such a line.
_NEW_START = re.compile(
    r"Scheduled restart job|^(?:Started|Starting) |vLLM API server version|Started server process|systemd\S* Started "
)
# The service serves: earlier messages of the start no longer count.
_SERVES = re.compile(
    r"Application startup complete|Uvicorn running on|Listening on|server is listening on|Starting Promtail"
    r"|srv +\S+: listening on"
)
_LASTING = ("host", "gpu", "client")  # areas whose causes persist, whatever a service logs afterwards
# A requested stop: by systemd, or by a signal that vLLM logs.
_STOP = re.compile(r"^Stopping |^\[shutdown\] (?:API server: shutdown triggered|EngineCore: trigger received signal)")
# vLLM's server waits for the engine's next output until it ends itself. If the engine ends first, as when systemd
# signals all processes of a unit, the server logs the death of an engine that was only stopped.
_ENGINE_STOPPED = re.compile(r"^AsyncLLM output_handler failed")
_ENGINE_DEAD = re.compile(r"EngineDeadError")
STATS = re.compile(
    r"Running: (?P<running>\d+) reqs?, .*?(?:Waiting|Pending): (?P<waiting>\d+) reqs?.*?"
    r"(?:GPU )?KV cache usage: (?P<usage>[\d.]+)%"
)
FULL = 95  # percent of the KV cache: if requests wait, there is no room for any of them
STEADY = 3  # consecutive lines of statistics that turn a momentary state into a lasting one


@dataclass(frozen=True)
class State:
    """A fact of the host, such as a disk with 0 bytes free: evidence only for the causes that it agrees with."""

    says: str
    agrees: tuple = ()
    wrong: bool = False  # a fault by itself, such as a full disk


@dataclass(frozen=True)
class Verdict:
    """The result: a cause or None, and whether anything failed at all."""

    cause: Found | None
    failed: bool
    exception: str = ""
    others: tuple = ()
    seen: tuple = ()
    ends: dict = field(default_factory=dict)
    agreeing: tuple = ()


def starts(lines: list[Line]) -> list[list[Line]]:
    """Return the lines of each start, by invocation if the journal has it, otherwise by the first line of a start."""
    parts: list[list[Line]] = [[]]
    invocation = ""
    for line in lines:
        other = bool(line.start and invocation and line.start != invocation)
        if other or (not line.start and parts[-1] and _NEW_START.search(line.text)):
            parts.append([])
        invocation = line.start or invocation
        parts[-1].append(line)
    return parts


def judge(
    lines: list[Line],
    table: Table,
    service: str | None = None,
    states: tuple = (),
    stopping: bool = False,
    name: str = "",
) -> Verdict:
    """Return what explains the lines; with `stopping` only causes that keep a service from running.

    `service` and `name` as in `causes.found`.
    """
    parts = _since_it_served([_without_the_stop(part) for part in starts(lines)], table)
    lines = [line for part in parts for line in part]
    chosen, others = None, []
    for part in reversed(parts):
        explained = found(part, table, service, name)
        agreeing = _standing([each for each in explained if each.cause.stops or not stopping], part)
        if not agreeing:
            continue
        best = min(agreeing, key=lambda each: each.cause.order)
        others += [each for each in agreeing if each is not best]
        # A mere effect is explained by an earlier start, if there is one.
        if chosen is None or best.cause.order[0] < chosen.cause.order[0]:
            others += [chosen] if chosen else []
            chosen = best
        if chosen.cause.rank == "cause":
            break
    failed = failures.failed([line for line in lines if not table.harmless.search(line.text)])
    deepest = None
    for part in reversed(parts):
        deepest = failures.deepest(part)
        if deepest and not deepest.wrapper:
            break
    if chosen and chosen.cause.rank == "effect" and (not failed or _unexplained(deepest, chosen, table)):
        # An effect does not cause an unknown exception: the exception itself is the answer.
        others = [*others, chosen] if failed else []
        chosen = None
    others = _once(each for each in others if chosen is None or each.cause.id != chosen.cause.id)
    agreeing_states = tuple(state for state in states if chosen and chosen.cause.id in state.agrees)
    return Verdict(
        chosen,
        failed or chosen is not None,
        deepest.text if deepest else "",
        others,
        tuple(state for state in states if state not in agreeing_states),
        failures.ends(lines),
        agreeing_states,
    )


def _without_the_stop(part: list[Line]) -> list[Line]:
    """Drop the errors of vLLM's server about an engine that ended by a requested stop."""
    kept, stop_requested, inside = [], False, False
    for line in part:
        stop_requested = stop_requested or bool(_STOP.search(line.text))
        inside = inside or (stop_requested and line.level == ERROR and bool(_ENGINE_STOPPED.search(line.text)))
        if not inside or line.level != ERROR:
            kept.append(line)
        elif _ENGINE_DEAD.search(line.text):
            inside = False
    return kept


def _since_it_served(parts: list[list[Line]], table: Table) -> list[list[Line]]:
    """Leave out the starts before one that served and did not fail: they no longer count."""
    for number in range(len(parts) - 1, 0, -1):
        remaining = [line for line in parts[number] if not table.harmless.search(line.text)]
        if any(_SERVES.search(line.text) for line in parts[number]) and not failures.failed(remaining):
            return parts[number:]
    return parts


def _standing(agreeing: list[Found], part: list[Line]) -> list[Found]:
    """Leave out what a start recovered from: it served afterwards."""
    serves = max((index for index, line in enumerate(part) if _SERVES.search(line.text)), default=-1)
    return [
        each
        for each in agreeing
        if each.index > serves or each.cause.area in _LASTING or each.line.speaker != part[serves].speaker
    ]


def _unexplained(deepest: failures.Failure | None, chosen: Found, table: Table) -> bool:
    if deepest is None or deepest.wrapper:
        return False
    return not any(pattern.search(deepest.text) for pattern in chosen.cause.matches)


def _once(agreeing) -> tuple:
    """Return each cause once, the most likely first."""
    by_id: dict[str, Found] = {}
    for each in sorted(agreeing, key=lambda each: each.cause.order):
        by_id.setdefault(each.cause.id, each)
    return tuple(by_id.values())


def load_of_engine(lines: list[Line]) -> list[State]:
    """Return what vLLM's own statistics show about slow answers: a queue, and whether it waits for the KV cache."""
    stats = [match for line in lines if line.level in (None, INFO) and (match := STATS.search(line.text))]
    last = [(int(each["waiting"]), float(each["usage"]), int(each["running"])) for each in stats[-STEADY:]]
    if len(last) < STEADY or not all(waiting for waiting, _, _ in last):
        return []
    waiting, usage, running = last[-1]
    if all(usage >= FULL for _, usage, _ in last):
        text = f"{waiting} requests wait, and the KV cache is full ({usage:.0f} %): send less, or give it more memory."
    else:
        text = f"{waiting} requests wait while {running} run: more are sent than max-num-seqs lets run at once."
    return [State(text, wrong=True)]
