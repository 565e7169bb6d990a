"""The result of a load check: its table for a terminal, and why it failed."""

from __future__ import annotations

from .plan import LIMITS

CURES = {
    "429": "set load_api_key to the key of a caller with higher limits",
    "401": "load_api_key is not a key of this server",
}


def failures(report: dict) -> list[str]:
    """Return the reasons why the check failed, one sentence each; empty if it passed."""
    sentences = [f"{each['what']}." for each in report["events"]]
    for run in report["runs"]:
        who = f"{run['target']} {run['model']}"
        if "problem" in run:
            sentences.append(f"{who}: {run['problem']}.")
        elif not run["requests"] > run["failed"]:
            sentences.append(f"{who}: none of {run['requests']} requests was answered: {_errors(run)}.")
        else:
            sentences += [
                f"{who}: {name} is {value:g}, above the limit of {report['plan']['limits'][name]:g}."
                for name, value in values(run).items()
                if name in report["plan"]["limits"] and value > report["plan"]["limits"][name]
            ]
    return sentences


def values(run: dict) -> dict[str, float]:
    """Return the figures of a run that can have a limit."""
    found = {
        "ttft_p95_ms": run["ttft_ms"]["p95"],
        "itl_p95_ms": run["itl_ms"]["p95"],
        "error_share": run["error_share"],
    }
    return {name: round(found[name], 4) for name in LIMITS if found[name] is not None}


def holds(run: dict, ttft_ms: float, limits: dict) -> bool:
    """Return whether a search step is within the limit and failed no more requests than allowed."""
    if "problem" in run or run["ttft_ms"]["p95"] is None:
        return False
    return run["ttft_ms"]["p95"] <= ttft_ms and run["error_share"] <= limits.get("error_share", 0)


def table(report: dict) -> list[str]:
    """Return the lines for a terminal."""
    plan = report["plan"]
    lines = [f"{report['host']}: {asked(plan)}, through {report['through']}", ""]
    rows = [("ENGINE", "MODEL", "CALLERS", "REQUESTS", "FAILED", "TOKENS/S", "FIRST TOKEN, MS", "BETWEEN TOKENS, MS")]
    rows.append(("", "", "", "", "", "", "p50 / p95 / p99", "p50 / p95 / p99"))
    for run in report["runs"]:
        row = (run["target"], run["model"], str(run["callers"]))
        if "problem" in run:
            rows.append((*row, "-", "-", "-", "no result", ""))
            continue
        row += (str(run["requests"]), str(run["failed"]), f"{run['tokens_per_s']:g}")
        rows.append((*row, three(run["ttft_ms"]), three(run["itl_ms"])))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines += ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += ["", *(f"errors of {run['model']}: {_errors(run)}" for run in report["runs"] if run.get("errors"))]
    lines += [f"{name:<12} {text}" for name, text in watched(report)]
    if report.get("answer"):
        lines += ["", report["answer"]]
    return lines


def asked(plan: dict) -> str:
    """Return the plan as text."""
    many = f"up to {plan['callers']} callers" if plan["find_ttft_ms"] else f"{plan['callers']} callers at once"
    lengths = f"prompts of {plan['input_tokens']} tokens, answers of {plan['output_tokens']}"
    return f"{many}, {plan['minutes']:g} min each, {lengths}"


def watched(report: dict) -> list[tuple[str, str]]:
    """Return the peaks as pairs of name and text."""
    peaks = report["peaks"]
    rows = [("memory", f"{peaks['memory_mib']} of {peaks['memory_total_mib']} MiB, swap {peaks['swap_mib']} MiB")]
    rows += [
        (f"GPU {number}", f"{used} of {total} MiB")
        for number, (used, total) in enumerate(zip(peaks["gpu_mib"], peaks["gpu_total_mib"], strict=True))
    ]
    for name, seen in peaks["engines"].items():
        values = [f"{seen[key]:.0f} {key}" for key in ("running", "waiting") if key in seen]
        values += [f"KV cache {100 * seen['kv_cache']:.0f} %"] if "kv_cache" in seen else []
        values += [f"{seen['preemptions']:.0f} preemptions"] if "preemptions" in seen else []
        values += [f"{seen['unanswered']} failed metrics requests"] if seen["unanswered"] else []
        rows.append((name, ", ".join(values) or "no figures"))
    out, again = [[each["what"] for each in report["events"] if each["kind"] == kind] for kind in ("oom", "restart")]
    rows.append(("restarts", "; ".join(again) or "none"))
    rows.append(("memory ran out", "; ".join(out) or "never"))
    return [(f"{name}:", text) for name, text in rows]


def three(found: dict) -> str:
    """Return the percentiles as text."""
    return " / ".join("-" if value is None else f"{value:.{0 if value >= 100 else 1}f}" for value in found.values())


def _errors(run: dict) -> str:
    counts = [f"{count} x {name}" for name, count in run["errors"].items()]
    cures = [cure for status, cure in CURES.items() if any(name.startswith(status) for name in run["errors"])]
    return "; ".join([", ".join(counts), *cures])
