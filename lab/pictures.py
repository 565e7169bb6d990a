"""Look at the dashboards in VictoriaMetrics' own UI with a headless browser, and keep pictures.

    python -m lab pictures URL [--minutes 30] [--write FOLDER] [--has-all | --has "a GPU" …]

A panel that shows an error or a warning, or no data, is named, unless it says what it needs and that is not there.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy

from dashboards import to_vmui
from dashboards.content import ALL
from dashboards.model import Dashboard
from lab import browser
from lab.browser import Browser
from lab.host import Problem

WIDTH = 1400
# The page is wider than its picture, and drawn smaller: more of a dashboard stands side by side.
SCALE = 0.7
# Panels ask for data when they come into view, so all of them must be: more than the longest dashboard needs.
HEIGHT = 12000
PATIENCE = 60
LARGEST = 200_000  # bytes of a picture
TAB = "vm-predefined-panels-tabs__tab"
LIMITS = ("limit", "at least")

# Every row is open. Rows ask when they open, one after the other.
OPEN_ROWS = """
[...document.querySelectorAll('.vm-predefined-dashboard > .vm-accordion-header')]
    .filter(row => !row.classList.contains('vm-accordion-header_open'))
    .forEach(row => row.click())
"""
# Settled: every expression was answered, an answer or an error is shown, and nothing is being asked.
FORGET = "performance.setResourceTimingBufferSize(5000); performance.clearResourceTimings()"
SETTLED = """
((panels, expressions) => {
    const asked = performance.getEntriesByType('resource').filter(entry => entry.name.includes('/query_range'));
    const there = [...document.querySelectorAll('.vm-predefined-panel')];
    const shown = panel => panel.querySelector('.vm-graph-view, .vm-alert') && !panel.querySelector('.vm-spinner');
    return asked.length >= expressions && there.length === panels && there.every(shown);
})(%d, %d)
"""
DRAWN = 1  # seconds from an answer to its lines
FOUND = """
[...document.querySelectorAll('.vm-predefined-panel')].map(panel => ({
    title: panel.querySelector('h3').textContent.trim(),
    drawn: !!panel.querySelector('canvas'),
    alerts: [...panel.querySelectorAll('.vm-alert')].map(alert => alert.textContent.trim()),
    legend: [...panel.querySelectorAll('.vm-legend-item-info__label')].map(label => label.textContent.trim()),
}))
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
        """Return what is wrong with it; empty if nothing is."""
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
        raise Problem(f"`{dashboard.title}` shows other panels than its source has: run `make dashboards`.")
    return tuple(
        Seen(
            dashboard.title,
            panel["title"],
            panels[panel["title"]].needs,
            panel["drawn"],
            tuple(panel["alerts"]),
            tuple(panel["legend"]),
        )
        for panel in found
    )


def tour(url: str, minutes: int) -> Iterator[tuple[Dashboard, tuple[Seen, ...], bytes]]:
    """Yield each dashboard with what its panels show and a picture of it."""
    with browser.running() as page:
        page.size(round(WIDTH / SCALE), HEIGHT, SCALE)
        page.open(to_vmui.address(url, minutes))
        for dashboard in ALL:
            seen = look(page, dashboard)
            yield dashboard, seen, page.picture(WIDTH / SCALE, page.ask(BOTTOM))


def lean(pixels: numpy.ndarray) -> bytes:
    """Return a picture (height × width × 3) as PNG, with fewer colours the larger it would be."""
    for colours in (256, 64, 32, 16):
        png = with_palette(pixels, colours)
        if len(png) < LARGEST:
            break
    return png


def with_palette(pixels: numpy.ndarray, most: int) -> bytes:
    """Return a picture as PNG with its most frequent colours; others become the nearest of them."""
    codes = pixels.astype(numpy.uint32) @ numpy.array([1 << 16, 1 << 8, 1], numpy.uint32)
    colours, index, counts = numpy.unique(codes, return_inverse=True, return_counts=True)
    kept = colours[numpy.argsort(counts)[::-1][:most]]
    apart = numpy.stack([colours >> 16, colours >> 8 & 255, colours & 255], axis=1).astype(int)
    chosen = numpy.stack([kept >> 16, kept >> 8 & 255, kept & 255], axis=1).astype(int)
    nearest = numpy.array([numpy.abs(chosen - colour).sum(axis=1).argmin() for colour in apart], numpy.uint8)
    index = nearest[index]
    palette = chosen.astype(numpy.uint8).tobytes()
    height, width = pixels.shape[:2]
    rows = numpy.zeros((height, width + 1), numpy.uint8)
    rows[:, 1:] = index.reshape(height, width)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    data = zlib.compress(rows.tobytes(), 9)
    chunks = (b"IHDR", header), (b"PLTE", palette), (b"IDAT", data), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, text) for kind, text in chunks)


def pixels_of(png: bytes) -> numpy.ndarray:
    """Return the pixels of a PNG as browsers write it: 8 bits, RGB or RGBA, not interlaced."""
    position, data, width, height, channels = 8, b"", 0, 0, 3
    while position < len(png):
        (length,) = struct.unpack(">I", png[position : position + 4])
        kind, text = png[position + 4 : position + 8], png[position + 8 : position + 8 + length]
        position += length + 12
        if kind == b"IHDR":
            width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", text)
            if depth != 8 or colour not in (2, 6) or interlaced:
                raise Problem("The browser's picture is of a kind that is not known here.")
            channels = 3 if colour == 2 else 4
        elif kind == b"IDAT":
            data += text
    raw = zlib.decompress(data)
    stride = width * channels
    above = numpy.zeros(stride, numpy.uint8)
    rows = numpy.empty((height, stride), numpy.uint8)
    for number in range(height):
        start = number * (stride + 1)
        line = numpy.frombuffer(raw, numpy.uint8, stride, start + 1)
        above = rows[number] = unfiltered(raw[start], line, above, channels)
    return rows.reshape(height, width, channels)[:, :, :3]


def unfiltered(kind: int, line: numpy.ndarray, above: numpy.ndarray, channels: int) -> numpy.ndarray:
    """Return a row of a PNG as it was before its filter (0 none, 1 sub, 2 up, 3 average, 4 Paeth)."""
    if kind == 0:
        return line
    if kind == 1:
        return numpy.cumsum(line.reshape(-1, channels), axis=0, dtype=numpy.uint8).reshape(-1)
    if kind == 2:
        return line + above
    row, up, out = line.tolist(), above.tolist(), [0] * len(line)
    for i, value in enumerate(row):
        a = out[i - channels] if i >= channels else 0
        b = up[i]
        c = up[i - channels] if i >= channels else 0
        if kind == 3:
            guess = (a + b) // 2
        else:
            guess = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
        out[i] = (value + guess) & 255
    return numpy.array(out, numpy.uint8)


def run(url: str, minutes: int, folder: Path | None, has: set[str], has_all: bool) -> list[str]:
    """Look at every dashboard, keep pictures where a folder is given, and return what is wrong."""
    problems = []
    for dashboard, seen, picture in tour(url, minutes):
        problems += filter(None, (panel.problem(has, has_all) for panel in seen))
        if folder:
            browser.save(lean(pixels_of(picture)), folder / f"{dashboard.name}.png")
    return problems
