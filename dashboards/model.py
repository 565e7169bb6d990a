"""The parts of a dashboard, and the placeholders that both writers replace in an expression.

Expressions are PromQL that Prometheus understands too, with these placeholders:

    $host      the chosen hosts; first in a selector: `up{$host,job="vllm"}`
    $service   the chosen hosts and services; in the selectors of engines and ai-server
    $rate      the window of a rate, as in `rate(x[$rate])`
"""

from __future__ import annotations

from dataclasses import dataclass, field

GIB = 1024**3
COLUMNS = 12


@dataclass(frozen=True)
class Unit:
    """A unit by Grafana's name, and its divisor and sign for a UI that shows bare numbers."""

    grafana: str
    sign: str = ""
    divisor: float = 1


COUNT = Unit("short")
PER_SECOND = Unit("short", "/s")
SECONDS = Unit("s", "s")
SHARE = Unit("percentunit", "%", 0.01)
BYTES = Unit("bytes", "GiB", GIB)
BYTES_PER_SECOND = Unit("binBps", "MiB/s", 1024**2)
CELSIUS = Unit("celsius", "°C")
WATTS = Unit("watt", "W")
HOURS = Unit("s", "h", 3600)


@dataclass(frozen=True)
class Limit:
    """A line that the value should not rise above, or not fall below if `least` is set."""

    value: float
    least: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines over time.

    ``queries`` are pairs of an expression and a legend, in which ``{{label}}`` stands for a label's value. ``needs`` is
    the condition under which the expressions return series; without it, every expression must always return one.
    ``negative``: values can be below 0; otherwise the axis begins at 0. ``width`` is in twelfths of the page.
    """

    title: str
    unit: Unit
    queries: tuple[tuple[str, str], ...]
    about: str = ""
    limit: Limit | None = None
    needs: str = ""
    negative: bool = False
    width: int = 4


@dataclass(frozen=True)
class LogPanel:
    """The result of a log store's query, as lines over time or as the log lines themselves; only in Grafana.

    ``logsql`` is for VictoriaLogs, ``logql`` for Loki. In both, ``$host`` and ``$service`` are values, not selectors.
    ``legend`` is one label, by its name in each store.
    """

    title: str
    logsql: str
    logql: str
    legend: tuple[str, str] = ("", "")
    about: str = ""
    needs: str = ""
    lines: bool = False
    width: int = 6


@dataclass(frozen=True)
class Row:
    title: str
    panels: tuple[Panel | LogPanel, ...]


@dataclass(frozen=True)
class Dashboard:
    """``name`` is the file's name; ``order`` is the position among the tabs of VictoriaMetrics' UI."""

    name: str
    order: int
    title: str
    about: str
    rows: tuple[Row, ...]
    services: bool = True  # offer a choice of services
    tags: tuple[str, ...] = field(default=("llm-server",))

    def panels(self) -> list[Panel]:
        """Return the panels of metrics."""
        return [panel for row in self.rows for panel in row.panels if isinstance(panel, Panel)]

    def log_panels(self) -> list[LogPanel]:
        return [panel for row in self.rows for panel in row.panels if isinstance(panel, LogPanel)]


def vllm(name: str) -> str:
    """Return the name of a vLLM metric as used in expressions."""
    return f"vllm:{name}"


def quantile(q: float, histogram: str, by: str = "host, service", selector: str = "$service") -> str:
    """Return the expression of a quantile of a histogram, for each value of the labels ``by``."""
    return f"histogram_quantile({q}, sum by (le, {by}) (rate({histogram}_bucket{{{selector}}}[$rate])))"


def mean(histogram: str, by: str = "host, service", selector: str = "$service") -> str:
    """Return the expression of the mean of a histogram's or a summary's values."""
    total, count = (f"sum by ({by}) (rate({histogram}_{part}{{{selector}}}[$rate]))" for part in ("sum", "count"))
    return f"{total} / {count}"


def share(part: str, total: str) -> str:
    """Return the expression of a share that is 0, not missing, if the part is missing or the whole is 0."""
    return f"({part} or 0 * {total}) / clamp_min({total}, 1e-9)"
