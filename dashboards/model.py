"""What a dashboard is made of, and the words that both writers replace in an expression.

Expressions are PromQL that Prometheus understands too. In them stand:

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
    """A unit by Grafana's name, and for a UI that shows bare numbers: what to divide by, and the sign to show."""

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
    """A line that the figure should not cross: upwards, or downwards where `least` is set."""

    value: float
    least: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines over time.

    ``queries`` are pairs of an expression and a legend, in which ``{{label}}`` stands for a label's value. ``needs``
    says what has to be there, or to have happened, for the expressions to return series; without it every expression
    must always return one. ``negative`` figures can be; of others the axis begins at 0. ``width`` is in twelfths of the
    page.
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
    """What a log store tells, as lines over time or as the log lines themselves; in Grafana alone.

    ``logsql`` is asked of VictoriaLogs, ``logql`` of Loki; both know ``$host`` and ``$service`` as values, not as
    selectors, and ``legend`` has a place for one label, by the name that each store has for it.
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
    """``name`` is the file's name; ``order`` is the place among the tabs of VictoriaMetrics' UI."""

    name: str
    order: int
    title: str
    about: str
    rows: tuple[Row, ...]
    services: bool = True  # offer the choice of services
    tags: tuple[str, ...] = field(default=("llm-server",))

    def panels(self) -> list[Panel]:
        """Return the panels that metrics fill."""
        return [panel for row in self.rows for panel in row.panels if isinstance(panel, Panel)]

    def log_panels(self) -> list[LogPanel]:
        return [panel for row in self.rows for panel in row.panels if isinstance(panel, LogPanel)]


def vllm(name: str) -> str:
    """Return the name of a metric of vLLM as it stands in expressions."""
    return f"vllm:{name}"


def quantile(q: float, histogram: str, by: str = "host, service", selector: str = "$service") -> str:
    """Return the expression of a quantile of a histogram, for each value of the labels ``by``."""
    return f"histogram_quantile({q}, sum by (le, {by}) (rate({histogram}_bucket{{{selector}}}[$rate])))"


def mean(histogram: str, by: str = "host, service", selector: str = "$service") -> str:
    """Return the expression of the mean of a histogram's or a summary's values."""
    total, count = (f"sum by ({by}) (rate({histogram}_{part}{{{selector}}}[$rate]))" for part in ("sum", "count"))
    return f"{total} / {count}"


def share(part: str, whole: str) -> str:
    """Return the expression of a share that is 0, not missing, while the whole or the part is nothing."""
    return f"({part} or 0 * {whole}) / clamp_min({whole}, 1e-9)"
