"""Check the dashboards in VictoriaMetrics' own UI with a headless browser, and save pictures.

    python -m lab pictures [URL] [--minutes 10] [--write docs/pictures] [--has-all | --has "a GPU" …]

Without a URL it uses its own store, with the metrics of `stand_ins/metric_pages.py`. A panel that shows an error, a
warning or no data is reported, unless it needs something that is not available.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dashboards import to_vmui
from dashboards.content import ALL
from dashboards.model import Dashboard
from lab import browser, figures, host, png
from lab.browser import Browser
from lab.host import Problem

WIDTH = 1400
# The page is wider than its picture and scaled down, so that more of a dashboard fits side by side.
SCALE = 0.7
UNSEEN = 0.1  # for a check without pictures: a small page is drawn faster
# Panels request data when they come into view, so all must be visible: higher than the longest dashboard.
HEIGHT = 12000
PATIENCE = 60
TAB = "vm-predefined-panels-tabs__tab"
LIMITS = ("limit", "at least")

# Opens every row. A row requests its data when it opens.
OPEN_ROWS = """
[...document.querySelectorAll('.vm-predefined-dashboard > .vm-accordion-header')]
    .filter(row => !row.classList.contains('vm-accordion-header_open'))
    .forEach(row => row.click())
"""
# Settled: every expression was answered, each panel shows a graph or an error, and no request is running.
FORGET = "performance.setResourceTimingBufferSize(5000); performance.clearResourceTimings()"
SETTLED = """
((panels, expressions) => {
    const asked = performance.getEntriesByType('resource').filter(entry => entry.name.includes('/query_range'));
    const there = [...document.querySelectorAll('.vm-predefined-panel')];
    const shown = panel => panel.querySelector('.vm-graph-view, .vm-alert') && !panel.querySelector('.vm-spinner');
    return asked.length >= expressions && there.length === panels && there.every(shown);
})(%d, %d)
"""
DRAWN = 1  # seconds from a response until its lines are drawn
FOUND = """
[...document.querySelectorAll('.vm-predefined-panel')].map(panel => ({
    title: panel.querySelector('h3').textContent.trim(),
    drawn: !!panel.querySelector('canvas'),
    alerts: [...panel.querySelectorAll('.vm-alert')].map(alert => alert.textContent.trim()),
    legend: [...panel.querySelectorAll('.vm-legend-item-info__label')].map(label => label.textContent.trim()),
}))
"""
# The UI ignores an error of one expression if another expression of the panel has an answer.
REFUSED = """
performance.getEntriesByType('resource')
    .filter(entry => entry.name.includes('/query_range') && entry.responseStatus >= 400).length
"""
BOTTOM = "Math.ceil(document.querySelector('.vm-predefined-panels').getBoundingClientRect().bottom)"


@dataclass(frozen=True)
class Seen:
    """One panel as the browser shows it."""

    dashboard: str
    title: str
    needs: str
    drawn: bool
    alerts: tuple[str, ...]
    legend: tuple[str, ...]

    def problem(self, has: set[str], has_all: bool = False) -> str:
        """Return the panel's problem; empty if there is none."""
        if self.alerts:
            return f"{self.dashboard}, {self.title}: {'; '.join(self.alerts)}"
        series = [label for label in self.legend if label not in LIMITS]
        excused = self.needs and not has_all and self.needs not in has
        if excused or (self.drawn and series):
            return ""
        return f"{self.dashboard}, {self.title}: no data"


def look(page: Browser, dashboard: Dashboard) -> tuple[Seen, ...]:
    """Open a dashboard's tab with all its rows and return what its panels show."""
    script = f"[...document.querySelectorAll('.{TAB}')].find(tab => tab.textContent.trim() === '{dashboard.title}')"
    if not page.wait(f"!!{script}", PATIENCE):
        raise Problem(f"The UI has no dashboard `{dashboard.title}`: is -vmui.customDashboardsPath dashboards/vmui?")
    if not page.ask(f"{script}.classList.contains('{TAB}_active')"):
        page.ask(FORGET)
        page.ask(f"{script}.click()")
    panels = {panel.title: panel for panel in dashboard.panels()}
    page.wait(f"document.querySelector('.{TAB}_active')?.textContent.trim() === '{dashboard.title}'", PATIENCE)
    page.ask(OPEN_ROWS)
    expressions = sum(len(panel["expr"]) for row in to_vmui.build(dashboard)["rows"] for panel in row["panels"])
    settled = SETTLED % (len(panels), expressions)
    page.wait(settled, PATIENCE)
    time.sleep(DRAWN)
    if not page.wait(settled, PATIENCE):
        raise Problem(f"The panels of `{dashboard.title}` are not drawn after {PATIENCE} s.")
    found: list[dict[str, Any]] = page.ask(FOUND)
    if sorted(panel["title"] for panel in found) != sorted(panels):
        raise Problem(f"`{dashboard.title}` does not show the panels of its source: run `make dashboards`.")
    seen = [
        Seen(
            dashboard.title,
            panel["title"],
            panels[panel["title"]].needs,
            panel["drawn"],
            tuple(panel["alerts"]),
            tuple(panel["legend"]),
        )
        for panel in found
    ]
    refused = page.ask(REFUSED)
    if refused:
        refusals = f"queries that the store refused: {refused}; `python -m dashboards.check` names them"
        seen.append(Seen(dashboard.title, "all panels", "", True, (refusals,), ()))
    return tuple(seen)


def tour(url: str, minutes: int, scale: float = SCALE) -> Iterator[tuple[Dashboard, tuple[Seen, ...], Browser]]:
    """Yield each dashboard with the content of its panels, and the browser that shows it."""
    with browser.running() as page:
        page.size(round(WIDTH / SCALE), HEIGHT, scale)
        page.open(to_vmui.address(url, minutes))
        for dashboard in ALL:
            yield dashboard, look(page, dashboard), page


def run(url: str, minutes: int, folder: Path | None, has: set[str], has_all: bool = False) -> list[str]:
    """Check every dashboard, save pictures if a folder is given, and return the problems."""
    problems = []
    for dashboard, seen, page in tour(url, minutes, SCALE if folder else UNSEEN):
        problems += filter(None, (panel.problem(has, has_all) for panel in seen))
        if folder:
            picture = page.picture(WIDTH / SCALE, page.ask(BOTTOM))
            browser.save(png.lean(png.pixels_of(picture)), folder / f"{dashboard.name}.png")
    return problems


def check_and_draw(options: argparse.Namespace) -> list[str]:
    """Check the given store, or a temporary one, and return the problems."""
    if options.url:
        return run(options.url, options.minutes, options.write, set(options.has), options.has_all)
    with figures.live() as url:
        host.say(f"Collecting metrics for {options.minutes} minutes at {url}/vmui …")
        time.sleep(options.minutes * 60)
        return run(url, options.minutes, options.write, figures.has())
