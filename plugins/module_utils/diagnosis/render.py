"""Shows a verdict to people: the cause, its evidence, the cure; then other findings."""

from __future__ import annotations

from .. import redaction
from .causes import Found
from .judge import Verdict

SHOWN = 300  # characters of a line of evidence


def facts(found: Found) -> dict:
    """Return a cause as plain values."""
    result = {"id": found.cause.id, "area": found.cause.area, "says": short(found.says), "cure": found.cure}
    return {**result, "line": short(found.line.raw)}


def short(text: str) -> str:
    """Return a line of a log without keys, in at most `SHOWN` characters."""
    text = redaction.LIKE_A_KEY.sub(redaction.HIDDEN, " ".join(text.split()))
    return text if len(text) <= SHOWN else f"{text[:SHOWN].rstrip()} …"


def sentence(verdict: Verdict, fallback: str = "") -> str:
    """Return the cause and its cure as one text, or what is known if there is no cause."""
    if verdict.cause:
        return f"{short(verdict.cause.says)} {verdict.cause.cure}".strip()
    return short(verdict.exception) or fallback


def table(verdict: Verdict, name: str = "") -> list[str]:
    """Return the lines for one service or log."""
    title = f"{name}: " if name else ""
    if verdict.cause:
        found = verdict.cause
        lines = [f"{title}{short(found.says)}", f"  cause  {found.cause.id} ({found.cause.area})"]
        lines.append(f"  proof  {short(found.line.raw)}")
        lines += [f"         {state.says}" for state in verdict.agreeing]
        if found.cure:
            lines.append(f"  cure   {found.cure}")
    elif verdict.failed:
        lines = [f"{title}it failed, and no known cause explains it."]
        if verdict.exception:
            lines.append(f"  deepest exception  {short(verdict.exception)}")
    elif any(state.wrong for state in verdict.seen):
        lines = [f"{title}it runs, and something is not as it should be."]
    else:
        lines = [f"{title}nothing here speaks of a failure."]
    for unit, end in verdict.ends.items():
        parts = [f"{key} {value}" for key, value in end.items() if value not in (None, "")]
        lines.append(f"  ended  {unit}: {', '.join(parts)}")
    also = [f"{short(found.says)} [{found.cause.id}] {short(found.line.raw)}" for found in verdict.others]
    also += [state.says for state in verdict.seen]
    if also:
        lines += ["  also seen:", *(f"    - {text}" for text in also)]
    return lines
