"""Write a dashboard for VictoriaMetrics' own UI. It has no variables: every host has its own line."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode

from dashboards.model import Dashboard, Panel

# Long enough for two samples at any usual scrape interval, short enough to show the current rate.
WINDOW = "2m"


def expression(text: str, divisor: float = 1) -> str:
    """Return the expression for all hosts and services, divided, because the UI shows bare numbers."""
    text = re.sub(r"\$(?:host|service)\b,?", "", text).replace("{}", "").replace("$rate", WINDOW)
    return text if divisor == 1 else f"({text}) / {divisor:.12g}" if divisor > 1 else f"({text}) * {1 / divisor:.12g}"


def limit(panel: Panel) -> str:
    """Return the limit's line as an expression, with a label by which legends can be grouped."""
    return f'label_set({panel.limit.value / panel.unit.divisor:.12g}, "host", "all")' if panel.limit else ""


def panel_json(panel: Panel) -> dict[str, Any]:
    expressions = [expression(query, panel.unit.divisor) for query, _ in panel.queries]
    legends = [legend for _, legend in panel.queries]
    if panel.limit:
        expressions.append(limit(panel))
        legends.append("at least" if panel.limit.least else "limit")
    about = panel.about
    if panel.needs:
        about = f"{about} Needs {panel.needs}.".strip()
    return {
        "title": panel.title,
        "description": about,
        "unit": panel.unit.sign,
        "expr": expressions,
        "alias": legends,
        "showLegend": True,
        "width": panel.width,
    }


def build(dashboard: Dashboard) -> dict[str, Any]:
    rows = []
    for row in dashboard.rows:
        panels = [panel_json(panel) for panel in row.panels if isinstance(panel, Panel)]
        if panels:
            rows.append({"title": row.title, "panels": panels})
    return {"title": dashboard.title, "filename": f"{dashboard.order}-{dashboard.name}.json", "rows": rows}


def address(url: str, minutes: int = 30) -> str:
    """Return the URL of the dashboards, with short legends: a host's lines are grouped."""
    words = {
        "g0.range_input": f"{minutes}m",
        "g0.relative_time": "none",
        "legend_hide_stats": "true",
        "legend_group": "host",
    }
    return f"{url.rstrip('/')}/vmui/#/dashboards?{urlencode(words)}"
