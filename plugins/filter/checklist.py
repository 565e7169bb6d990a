"""Filters for the checklist: its rows, and how a person sees them."""

from __future__ import annotations

import textwrap

MARKS = {True: "ok", False: "NOT OK", None: "not here"}


def checklist_table(rows: list, width: int = 60) -> list:
    """Return the lines of a table of ``{what, measured, ok, cure}``; ``ok`` null means not here, and why."""
    first = max([len(row["what"]) for row in rows] + [5])
    lines = [f"{'CHECK':<{first}}  {'RESULT':<8}  MEASURED", f"{'-' * first}  {'-' * 8}  {'-' * width}"]
    for row in rows:
        text = row["measured"] + (f" → {row['cure']}" if row.get("cure") else "")
        pieces = textwrap.wrap(text, width) or [""]
        lines.append(f"{row['what']:<{first}}  {MARKS[row['ok']]:<8}  {pieces[0]}")
        lines += [f"{'':<{first}}  {'':<8}  {piece}" for piece in pieces[1:]]
    return lines


def loki_checks(jobs: list, url: str, host: str, cure: str) -> list:
    """Return one row of the checklist a journal job of promtail: its lines have reached Loki, and only its own."""
    units = [job["unit"] for job in jobs]
    return [
        {
            "what": f"Loki: lines of {job.get('service') or job['job']}",
            "kind": "loki",
            "options": {
                "url": url,
                "host": host,
                "service": job.get("service") or job["job"],
                "other_units": [unit for unit in units if unit != job["unit"]],
            },
            "cure": cure,
        }
        for job in jobs
    ]


def checklist_sentence(row: dict) -> str:
    """Return a red row as one sentence."""
    return f"{row['what']}: {row['measured']}" + (f" ({row['cure']})" if row.get("cure") else "")


class FilterModule:
    def filters(self):
        return {
            "checklist_sentence": checklist_sentence,
            "checklist_table": checklist_table,
            "loki_checks": loki_checks,
        }
