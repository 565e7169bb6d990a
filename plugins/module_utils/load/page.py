"""The HTML page of a load check: one file with tables and an inline SVG plot, without scripts or external files."""

from __future__ import annotations

from html import escape
from itertools import pairwise

from . import judge

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 860, 150, 70, 20, 26, 24
COLOURS = ("#0b6cb8", "#c4500c", "#3c7a2a", "#7a3c8c")
STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; color: #222; background: #fff; max-width: 900px;
  margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: 1em 0 }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child, th:nth-child(2), td:nth-child(2) { text-align: left }
.red { color: #a40000; font-weight: 600 } .green { color: #2a6a1a; font-weight: 600 }
svg { display: block; width: 100%; height: auto }
"""


def html(report: dict) -> str:
    """Return the page."""
    wrong = report["failures"]
    verdict = (
        "".join(f'<p class="red">{escape(each)}</p>' for each in wrong) or '<p class="green">No limit was exceeded.</p>'
    )
    answer = f"<p><strong>{escape(report['answer'])}</strong></p>" if report.get("answer") else ""
    peaks = "".join(f"<tr><td>{escape(name)}</td><td>{escape(text)}</td></tr>" for name, text in judge.watched(report))
    title = f"Load check of {escape(report['host'])}"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head>\n"
        f"<body><h1>{title}</h1><p>{escape(report['date'])}: {escape(judge.asked(report['plan']))}, through "
        f"{escape(report['through'])}.</p>\n{verdict}{answer}\n{_table(report)}\n{svg(report)}\n"
        f"<h2>Peaks</h2><table>{peaks}</table></body></html>\n"
    )


def _table(report: dict) -> str:
    head = ["Engine", "Model", "Callers", "Requests", "Failed", "Tokens/s"]
    head += [f"{what}, ms: p50 / p95 / p99" for what in ("First token", "Between tokens")]
    rows = []
    for run in report["runs"]:
        cells = [run["target"], run["model"], run["callers"]]
        if "problem" in run:
            cells += ["-"] * 5
        else:
            cells += [run["requests"], run["failed"], run["tokens_per_s"]]
            cells += [judge.three(run["ttft_ms"]), judge.three(run["itl_ms"])]
        rows.append("".join(f"<td>{escape('-' if cell is None else str(cell))}</td>" for cell in cells))
    header = "".join(f"<th>{each}</th>" for each in head)
    return f"<table><tr>{header}</tr>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"


def svg(report: dict) -> str:
    """Return the plot: stacked panels with a common time axis."""
    panels = [panel for panel in _panels(report) if any(points for _, points in panel["lines"])]
    moments = [x for panel in panels for _, points in panel["lines"] for x, _ in points]
    if not moments:
        return ""
    begin, end = min(moments), max(*moments, min(moments) + 1)
    drawn = [_drawn(panel, number, begin, end) for number, panel in enumerate(panels)]
    height = len(panels) * (HEIGHT + TOP + BOTTOM)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="Load over time" font-family="system-ui, sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>{"".join(drawn)}</svg>'
    )


def _panels(report: dict) -> list[dict]:
    runs = [run for run in report["runs"] if run.get("curve")]
    several = len({(run["target"], run["model"]) for run in runs}) > 1
    names = [f"{run['target']} {run['model']}" if several else "" for run in runs]

    def of_runs(key: str) -> list[tuple]:
        # Join the runs of one model in a search to one line.
        joined: dict[str, list] = {}
        for name, run in zip(names, runs, strict=True):
            joined.setdefault(name, []).extend((one["time"], one[key]) for one in run["curve"] if one[key] is not None)
        return list(joined.items())

    samples = _while_loaded(report["samples"], runs)
    engines = sorted({name for each in samples for name in each["engines"]})

    def of_engines(key: str, factor: float = 1) -> list[tuple]:
        found = []
        for name in engines:
            seen = [(each["time"], each["engines"].get(name)) for each in samples]
            points = [(moment, factor * one[key]) for moment, one in seen if one and key in one]
            found.append((f"{name} {key.replace('_', ' ')}", points))
        return found

    memory = [("host", [(each["time"], each["memory_mib"]) for each in samples])]
    count = max((len(each.get("gpu_mib", [])) for each in samples), default=0)
    for number in range(count):
        points = [(each["time"], each["gpu_mib"][number]) for each in samples if len(each.get("gpu_mib", [])) > number]
        memory.append((f"GPU {number}", points))
    limit = report["plan"]["find_ttft_ms"] or report["plan"]["limits"].get("ttft_p95_ms")
    return [
        {"title": "First token, p95, ms", "lines": of_runs("ttft_p95_ms"), "limit": limit},
        {"title": "Tokens a second", "lines": of_runs("tokens_per_s")},
        {"title": "Requests at the engine", "lines": of_engines("running") + of_engines("waiting")},
        {"title": "KV cache, %", "lines": of_engines("kv_cache", 100)},
        {"title": "Memory in use, MiB", "lines": memory},
    ]


def _while_loaded(samples: list[dict], runs: list[dict]) -> list[dict]:
    """Return the samples between the first and the last request, without the start of the tool."""
    moments = [point["time"] for run in runs for point in run["curve"]]
    if not moments:
        return samples
    return [each for each in samples if min(moments) - 5 <= each["time"] <= max(moments) + 5]


def _drawn(panel: dict, number: int, begin: float, end: float) -> str:
    top = number * (HEIGHT + TOP + BOTTOM) + TOP
    values = [y for _, points in panel["lines"] for _, y in points] + ([panel["limit"]] if panel.get("limit") else [])
    most = _round_up(max(values))

    def at(x: float, y: float) -> str:
        across = LEFT + (x - begin) / (end - begin) * (WIDTH - LEFT - RIGHT)
        return f"{across:.1f},{top + HEIGHT * (1 - y / most):.1f}"

    parts = [f'<text x="{LEFT}" y="{top - 9}" font-weight="600" fill="#222">{escape(panel["title"])}</text>']
    for step in range(5):
        y = most * step / 4
        level = top + HEIGHT * (1 - step / 4)
        parts.append(f'<path d="M{LEFT} {level:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{level + 4:.1f}" text-anchor="end" fill="#555">{y:g}</text>')
    tick = 60 * _round_up((end - begin) / 420) if end - begin >= 300 else _round_up((end - begin) / 7)
    for step in range(int((end - begin) / tick) + 1):
        across = LEFT + (WIDTH - LEFT - RIGHT) * step * tick / (end - begin)
        anchor = "start" if step == 0 else "middle"
        label = f"{step * tick / 60:.3g} min" if end - begin >= 300 else f"{step * tick:g} s"
        parts.append(
            f'<text x="{across:.1f}" y="{top + HEIGHT + 16}" text-anchor="{anchor}" fill="#555">{label}</text>'
        )
    if panel.get("limit"):
        low, high = at(begin, panel["limit"]), at(end, panel["limit"])
        parts.append(f'<polyline points="{low} {high}" stroke="#a40000" stroke-dasharray="6 4" fill="none"/>')
    legend = WIDTH - RIGHT
    for place, (name, points) in enumerate(panel["lines"]):
        colour = COLOURS[place % len(COLOURS)]
        for part in _unbroken(points):
            path = " ".join(at(x, y) for x, y in part)
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
            if len(part) == 1:
                x, y = path.split(",")
                parts.append(f'<circle cx="{x}" cy="{y}" r="3" fill="{colour}"/>')
        if name and len(panel["lines"]) > 1:
            parts.append(f'<text x="{legend}" y="{top - 9}" text-anchor="end" fill="{colour}">{escape(name)}</text>')
            legend -= 8 * len(name) + 14
    return "".join(parts)


def _unbroken(points: list[tuple]) -> list[list[tuple]]:
    """Split the points where there was no load for a long time."""
    gaps = sorted(now[0] - was[0] for was, now in pairwise(points))
    usual = gaps[len(gaps) // 2] if gaps else 0
    parts = [points[:1]] if points else []
    for was, now in pairwise(points):
        if now[0] - was[0] > 4 * usual + 5:
            parts.append([])
        parts[-1].append(now)
    return parts


def _round_up(value: float) -> float:
    """Round up to 1, 2, 4, 5, 8 or 10 times a power of ten."""
    scale = 1.0
    while scale * 10 < value:
        scale *= 10
    while scale > value > 0:
        scale /= 10
    return next((factor * scale for factor in (1, 2, 4, 5, 8, 10) if factor * scale >= value), 10 * scale) or 1.0
