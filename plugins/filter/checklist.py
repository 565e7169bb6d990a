"""Filters for the checklist: its rows, and their presentation."""

from __future__ import annotations

import textwrap

MARKS = {True: "ok", False: "NOT OK", None: "not here"}


def checklist_table(rows: list, width: int = 60) -> list:
    """Return the lines of a table of ``{what, measured, ok, cure}``; ``ok`` null means not on this host, and why."""
    first = max([len(row["what"]) for row in rows] + [5])
    lines = [f"{'CHECK':<{first}}  {'RESULT':<8}  MEASURED", f"{'-' * first}  {'-' * 8}  {'-' * width}"]
    for row in rows:
        text = row["measured"] + (f" → {row['cure']}" if row.get("cure") else "")
        pieces = textwrap.wrap(text, width) or [""]
        lines.append(f"{row['what']:<{first}}  {MARKS[row['ok']]:<8}  {pieces[0]}")
        lines += [f"{'':<{first}}  {'':<8}  {piece}" for piece in pieces[1:]]
    return lines


# Stages that leave a line and its labels job and host unchanged.
PLAIN_STAGES = {"regex", "json", "logfmt", "labels", "static_labels", "structured_metadata", "timestamp", "metrics"}


def shipping_checks(jobs: list, host: str, options: dict, secrets: dict, cure: str) -> list:
    """Return one checklist row per promtail job: a line of it is read and reaches Loki.

    A job with ``unit`` is a journal job, one with ``path`` a file job. ``options`` are those of every row, and
    ``secrets`` those that must not be shown.
    """
    units = [job["unit"] for job in jobs if "unit" in job]
    rows = []
    for job in jobs:
        stages = {name for stage in job.get("pipeline_stages") or [] for name in stage}
        own = {"labels": {"host": host, "job": job["job"]}, "rewrites": bool(stages - PLAIN_STAGES)}
        if "unit" in job:
            others = [unit for unit in units if unit != job["unit"]]
            own |= {"job": job["job"], "unit": job["unit"], "other_units": others}
        else:
            own |= {"path": job["path"]}
        own["labels"] |= {name: value for name, value in (job.get("labels") or {}).items() if name in own["labels"]}
        kind = "journal_job" if "unit" in job else "file_job"
        what = f"Loki: {'journal' if 'unit' in job else 'files'} of {job['job']}"
        rows.append({"what": what, "kind": kind, "options": {**options, **own}, "cure": cure, **secrets})
    return rows


def checklist_sentence(row: dict) -> str:
    """Return a red row as one sentence."""
    return f"{row['what']}: {row['measured']}" + (f" ({row['cure']})" if row.get("cure") else "")


class FilterModule:
    def filters(self):
        return {
            "checklist_sentence": checklist_sentence,
            "checklist_table": checklist_table,
            "shipping_checks": shipping_checks,
        }
