"""Finds what failed in lines: the deepest exception of a program, and how a unit ended according to systemd."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .lines import ERROR, INFO, Line

_EXCEPTION = re.compile(
    r"^\s*(?:\S+: )?(?P<name>(?:[A-Za-z_]\w*\.)*(?:[A-Z]\w*)?(?:Error|Exception|Failure|Refused|NotFound|Timeout))"
    r"(?:: (?P<what>.*)|\s*$)"
)
# Exceptions that only pass on another exception.
_WRAPPER = re.compile(
    r"Engine core initialization failed|EngineDeadError|EngineCore (?:encountered an issue|failed to start)"
    r"|WorkerProc (?:initialization failed|failed to start)|Engine process failed to start"
    r"|See (?:root cause|stack trace)|Engine loop is not running|CancelledError|worker died|BrokenPipeError"
    r"|ChildFailedError|ProcessExitedException|RayTaskError|cancelled"
)
_RESULT = re.compile(r"(?P<unit>[\w@.:\\-]+\.\w+)?:? ?Failed with result '(?P<result>[\w-]+)'")
_EXIT = re.compile(
    r"(?:(?P<unit>[\w@.:\\-]+\.\w+): )?(?:Main|Control) process exited, code=(?P<code>\w+), status=(?P<status>\S+)"
)
_RESTART = re.compile(r"(?:(?P<unit>[\w@.:\\-]+\.\w+): )?Scheduled restart job, restart counter is at (?P<count>\d+)")
_FAILED = re.compile(
    r"Active: failed|Failed to start |\(code=(?:exited|killed|dumped), status=(?!0/)|fatal error|panic:"
    r"|CrashLoopBackOff|Exit Code:\s+[1-9]|\"ExitCode\": [1-9]|HTTP/[\d.]+\" 5\d\d"
)


@dataclass(frozen=True)
class Failure:
    """An exception as its program prints it: `text` is the message, `wrapper` says that it passes on another one."""

    text: str
    index: int
    wrapper: bool = False


def exceptions(lines: list[Line]) -> list[Failure]:
    """Return the exceptions in the lines, in order; each only once, whichever worker or logger repeats it."""
    found, seen = [], set()
    for index, line in enumerate(lines):
        match = _EXCEPTION.match(line.text)
        if not match or line.level == INFO:
            continue
        text = line.text.strip()
        if not (match["what"] or "").strip() or re.match(r"\d+ validation error", match["what"] or ""):
            text = " ".join([text, *_following(lines, index)])
        key = re.sub(r"0x[0-9a-f]+|\d+", "#", text)
        if key not in seen:
            seen.add(key)
            found.append(Failure(text[:600], index, bool(_WRAPPER.search(text))))
    return found


def _following(lines: list[Line], index: int) -> list[str]:
    """Return the lines that belong to an exception whose first line has too little information."""
    texts = []
    for line in lines[index + 1 : index + 5]:
        if not line.text.strip() or line.text.startswith(("Traceback", "During handling", "The above exception")):
            break
        texts.append(line.text.strip())
    return texts


def deepest(lines: list[Line]) -> Failure | None:
    """Return the innermost exception of the last chain, or None.

    Python prints the cause first, so it is the first exception that is not a wrapper, or else the first wrapper.
    """
    found = exceptions(lines)
    return next((failure for failure in found if not failure.wrapper), found[0] if found else None)


def ends(lines: list[Line]) -> dict[str, dict]:
    """Return how units ended, by name: result, code, status and restarts, as far as systemd's lines show them."""
    found: dict[str, dict] = {}
    for line in lines:
        for pattern in (_RESULT, _EXIT, _RESTART):
            match = pattern.search(line.text)
            if match:
                fields = match.groupdict()
                unit = fields.pop("unit") or line.unit or "the unit"
                if "count" in fields:
                    fields = {"restarts": int(fields["count"])}
                found.setdefault(unit, {}).update(fields)
    return found


def failed(lines: list[Line]) -> bool:
    """Return whether anything in the lines indicates a failure."""
    ended = any(
        end.get("result") not in (None, "success") or end.get("status", "0").split("/")[0] not in ("0", "15", "143")
        for end in ends(lines).values()
    )
    return ended or any(
        line.level == ERROR or _FAILED.search(line.text) or (line.level is None and _EXCEPTION.match(line.text))
        for line in lines
    )
