"""Reads log lines of any origin: removes prefixes from the message, and keeps who logged it and at which level.

Understands the journal's text and JSON, syslog, dmesg, Docker and Compose, klog, logfmt, and the forms of vLLM,
llama.cpp, uvicorn and Python's logging, also nested.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

DEBUG, INFO, WARNING, ERROR = "debug", "info", "warning", "error"

_LEVELS = {
    **dict.fromkeys(("debug", "trace", "d"), DEBUG),
    **dict.fromkeys(("info", "notice", "information", "i"), INFO),
    **dict.fromkeys(("warning", "warn", "w"), WARNING),
    **dict.fromkeys(("error", "err", "critical", "crit", "fatal", "panic", "alert", "emerg", "e", "f"), ERROR),
}
_PRIORITIES = {**dict.fromkeys("0123", ERROR), "4": WARNING, "7": DEBUG}
_WORD = r"(?P<level>TRACE|DEBUG|INFO|NOTICE|WARNING|WARN|ERROR|CRITICAL|FATAL|PANIC)"
_CLOCK = r"\d\d:\d\d:\d\d(?:[.,]\d+)?"
_DATE = rf"\d{{4}}[-/]\d\d[-/]\d\d[T ]{_CLOCK}(?:Z|[+-]\d\d:?\d\d)?"
_SPEAKER = r"(?P<speaker>\(?[\w.@/-]+\)?)(?:\[\d+\])?: ?"

# Each removes one kind of prefix; all are tried again until none matches.
_PREFIXES = [
    re.compile(pattern)
    for pattern in (
        r"\d+[:-](?=[A-Z][a-z]{2} [ \d]\d |\(\w+ pid=|\d{4}-\d\d)",  # grep -n
        r"\s*[>│|]\s+(?=\S)",  # quoted in a report, or a column between time and message
        rf"[A-Za-z]{{3}}\.? +\d{{1,2}} {_CLOCK} (?:(?!kernel:|systemd)[\w.-]+ )?{_SPEAKER}",
        rf"{_DATE} (?!{_WORD.replace('?P<level>', '?:')})[\w.-]+ (?P<speaker>[\w.@/-]+)\[\d+\]: ?",
        rf"{_DATE} [\w.-]+ (?P<speaker>kernel): ?",
        rf"\[?{_DATE}\]?\s*",
        r"(?:[\w.-]+ )?(?P<speaker>kernel|systemd(?:-\w+)?)(?:\[\d+\])?: ",
        r"\[ *\d+\.\d{3,6}\] ?",  # dmesg
        r"[\w.-]+ +\| ",  # Compose
        r"\((?P<process>[A-Za-z][\w ]*?) pid=\d+(?:, ip=[^)]*)?\) ?",
        r"\[rank\d+\]:? ?",
        rf"{_WORD} +\d\d-\d\d {_CLOCK} +(?:\[[^\]]+\]|[\w./]+:\d+\]) ?",  # vLLM
        r"\d+\.\d\d\.\d{3}\.\d{3} (?P<level>[IWED]) ",  # llama.cpp
        rf"(?P<level>[IWEF])\d{{4}} {_CLOCK} +\d+ [^\]]+\] ?",  # klog, torch
        rf"\[?{_WORD}\]?(?:: +| +(?=\()|  +| (?=\S+ \[Errno))",  # uvicorn
    )
]
_LEVEL_INSIDE = [
    re.compile(pattern)
    for pattern in (
        r"(?:^|[\s{,])\"?level\"?[=:] ?\"?(?P<level>\w+)",  # logfmt, JSON
        r"^\[(?P<level>\w+)\](?= |$)",
        rf"(?:^|[-|:] ?){_WORD}(?: ?[-|:] |\s+\|)",
        r"^\S+ (?P<level>\w+) +\[",
    )
]
_KEYS = {
    "message": ("MESSAGE", "message", "msg", "log", "event"),
    "unit": ("_SYSTEMD_UNIT", "UNIT", "USER_UNIT", "_SYSTEMD_USER_UNIT"),
    "speaker": ("SYSLOG_IDENTIFIER", "_COMM", "service", "logger"),
    "level": ("level", "levelname", "severity"),
    "start": ("_SYSTEMD_INVOCATION_ID", "INVOCATION_ID"),
}


@dataclass(frozen=True)
class Line:
    """One line: only the message, the level or None if the line has none, and the full original text.

    `unit` is the systemd unit if the journal has it, `start` its invocation.
    """

    text: str
    level: str | None = None
    speaker: str = ""
    unit: str = ""
    raw: str = ""
    start: str = ""


def parse(raw: str, unit: str = "", level: str | None = None, start: str = "", speaker: str = "") -> Line:
    """Return the parsed line."""
    raw = re.sub(r"\x1b\[[0-9;]*m", "", raw.rstrip("\r\n")).replace("^M", "")
    text = raw
    again = True
    while again and text:
        again = False
        for prefix in _PREFIXES:
            match = prefix.match(text.lstrip())
            if not match or not match.end():
                continue
            groups = match.groupdict()
            speaker = groups.get("speaker") or speaker
            level = _LEVELS.get((groups.get("level") or "").lower(), level)
            text, again = text.lstrip()[match.end() :], True
    if not speaker or level is None:
        inside = next((found for pattern in _LEVEL_INSIDE if (found := pattern.search(text))), None)
        if inside:
            level = _LEVELS.get(inside["level"].lower(), level)
    return Line(text.rstrip(), level, speaker.strip("()"), unit, raw, start)


def record(entry: dict, raw: str = "") -> list[Line]:
    """Return the lines of one JSON record: of the journal, of Docker, or of a program that logs JSON."""
    found = {key: next((entry[name] for name in names if entry.get(name)), "") for key, names in _KEYS.items()}
    message = found["message"]
    if isinstance(message, list):  # bytes that are not UTF-8
        message = bytes(byte for byte in message if isinstance(byte, int)).decode(errors="replace")
    extra = [entry[name] for name in ("error", "err", "exception", "exc_info", "traceback", "stack") if entry.get(name)]
    text = "\n".join(part if isinstance(part, str) else json.dumps(part) for part in (message, *extra) if part)
    level = _LEVELS.get(str(found["level"]).lower()) or _PRIORITIES.get(str(entry.get("PRIORITY", "")))
    result = {
        "unit": str(found["unit"]),
        "level": level,
        "start": str(found["start"]),
        "speaker": str(found["speaker"]),
    }
    return [parse(line, **result) for line in text.splitlines() or ([raw] if raw else [])]


def read(text: str | list[str], unit: str = "") -> list[Line]:
    """Return the lines of a log, oldest first; `unit` is the unit that they belong to, if known."""
    found = []
    for raw in text.splitlines() if isinstance(text, str) else text:
        stripped = raw.strip()
        if stripped.startswith("{") and stripped.endswith("}"):
            try:
                entry = json.loads(stripped)
            except ValueError:
                entry = None
            if isinstance(entry, dict) and any(entry.get(name) for name in _KEYS["message"]):
                found += record(entry, stripped)
                continue
        found.append(parse(raw, unit))
    return found
