"""Creates one report of a host from the evidence of `host.look`: the most likely cause of all services first."""

from __future__ import annotations

from dataclasses import replace

from . import causes, judge, render
from .lines import Line


def of_host(evidence: dict, table: causes.Table | None = None) -> dict:
    """Return healthy, report, causes, problems and seconds; see the module diagnose."""
    table = table or causes.load()
    host = evidence["host"]
    host_states = _states(host["states"])
    own = judge.judge(_lines(host["lines"]), table, states=host_states)
    verdicts = []
    for name, unit in evidence["services"].items():
        states = _states(unit["states"])
        kind = unit.get("kind") or name
        verdict = judge.judge(_lines(unit["lines"]), table, kind, states=(*states, *host_states), name=name)
        # Facts of the host are listed once, with the host; with a service only if its own lines agree.
        seen = tuple(state for state in verdict.seen if state in states)
        verdicts.append((name, replace(verdict, seen=seen), unit))
    borne_out = {state for _, verdict, _ in verdicts for state in verdict.agreeing}
    own = replace(own, seen=tuple(state for state in own.seen if state not in borne_out))
    wrong = [
        (name, verdict) for name, verdict, unit in verdicts
        if verdict.cause or (verdict.failed and unit["failing"]) or any(state.wrong for state in verdict.seen)
    ]  # fmt: skip
    host_wrong = bool(own.cause or any(state.wrong for state in own.seen))
    wrong.sort(key=lambda item: item[1].cause.cause.order if item[1].cause else (len(causes.RANKS),))
    report = []
    if host_wrong and own.cause:
        report += render.table(own, "host")
    for name, verdict in wrong:
        report += render.table(verdict, name)
    if (wrong or host_wrong) and not (host_wrong and own.cause) and own.seen:
        report += ["host, also seen:", *(f"    - {state.says}" for state in own.seen)]
    healthy = not report
    if healthy:
        names = ", ".join(evidence["services"]) or "no service"
        where = "in what could be looked at" if evidence["problems"] else "here"
        report = [f"Nothing is wrong {where} ({names})."]
    report += [f"not looked at: {problem}" for problem in evidence["problems"]]
    named = [("host", own)] if own.cause else []
    named += [(name, verdict) for name, verdict in wrong if verdict.cause]
    return {
        "changed": False,
        "healthy": healthy,
        "report": report,
        "causes": [{"service": name, **render.facts(verdict.cause)} for name, verdict in named],
        "problems": evidence["problems"],
        "seconds": evidence["seconds"],
    }


def _lines(rows: list[dict]) -> list[Line]:
    return [Line(**row) for row in rows]


def _states(rows: list[dict]) -> tuple:
    return tuple(judge.State(row["says"], tuple(row["agrees"]), row["wrong"]) for row in rows)
