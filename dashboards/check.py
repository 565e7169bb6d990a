"""Query a VictoriaMetrics or Prometheus for every expression of every dashboard, and list those without series.

    python -m dashboards.check http://127.0.0.1:8428 [--logs http://127.0.0.1:9428] [--only host fleet …]
        [--minutes 15] [--has "a GPU" … | --has-all] [--user NAME --password-file FILE]

With --logs, a VictoriaLogs is queried for every log query too. The queries are those of the generated files, for
Grafana and for VictoriaMetrics' UI. An expression must return at least one series within the last minutes, unless its
panel needs something (a GPU, say) that `--has` does not name (`--has-all` names everything). Exit code 1 if one does
not, or if the store refuses one.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dashboards.content import ALL

HOME = Path(__file__).resolve().parent
NAMES = tuple(dashboard.name for dashboard in ALL)
STEP = 15
TIMEOUT = 30
LINES = 5
# The values of Grafana's variables, with everything selected.
GRAFANA = {"$__rate_interval": "1m", "$__interval": "1m", "$host": ".*", "$service": ".*"}
LIMIT = re.compile(r"label_set\(-?[\d.e+-]+, .*\)")

VICTORIA_LOGS = "victoriametrics-logs-datasource"

Ask = Callable[[str], int]


class Refused(Exception):
    """The store did not answer a query; the text gives the reason."""


@dataclass(frozen=True)
class Expression:
    kind: str
    dashboard: str
    panel: str
    text: str
    needs: str = ""

    def row(self, finding: str) -> str:
        return f"{self.kind:<8} {self.dashboard:<20} {self.panel:<42} {finding}\n{'':8} {self.text}"


def of_grafana(content: dict, needs: dict[str, str]) -> Iterator[Expression]:
    """Yield the metric expressions of a Grafana dashboard, with its variables replaced."""
    for panel in content["panels"]:
        for target in panel.get("targets") or []:
            if target["datasource"]["type"] == "prometheus":
                text = target["expr"]
                for name, value in GRAFANA.items():
                    text = text.replace(name, value)
                yield Expression("grafana", content["uid"], panel["title"], text, needs[panel["title"]])


def of_logs(content: dict, needs: dict[str, str]) -> Iterator[Expression]:
    """Yield the VictoriaLogs queries of a Grafana dashboard."""
    for panel in content["panels"]:
        for target in panel.get("targets") or []:
            if target["datasource"]["type"] == VICTORIA_LOGS:
                text = target["expr"].replace("$host", ".*").replace("$service", ".*")
                yield Expression("logs", content["uid"], panel["title"], text, needs[panel["title"]])


def of_vmui(content: dict, needs: dict[str, str]) -> Iterator[Expression]:
    """Yield the expressions of a dashboard for VictoriaMetrics' UI, without the lines of limits."""
    for row in content["rows"]:
        for panel in row["panels"]:
            for text in panel["expr"]:
                if not LIMIT.fullmatch(text):
                    yield Expression("vmui", content["filename"], panel["title"], text, needs[panel["title"]])


def expressions(names: Iterable[str] = NAMES, home: Path = HOME) -> list[Expression]:
    """Return all expressions of the generated files of some dashboards."""
    found = []
    for dashboard in (one for one in ALL if one.name in names):
        needs = {panel.title: panel.needs for panel in dashboard.panels()}
        grafana = json.loads((home / f"grafana/{dashboard.name}.json").read_text())
        vmui = json.loads((home / f"vmui/{dashboard.order}-{dashboard.name}.json").read_text())
        found += [*of_grafana(grafana, needs), *of_vmui(vmui, needs)]
    return found


def log_queries(home: Path = HOME) -> list[Expression]:
    """Return all VictoriaLogs queries of the generated files."""
    found = []
    for dashboard in ALL:
        needs = {panel.title: panel.needs for panel in dashboard.log_panels()}
        found += of_logs(json.loads((home / f"grafana/{dashboard.name}.json").read_text()), needs)
    return found


@dataclass(frozen=True)
class Store:
    """A store of metrics or logs, and its login. Both methods count results of the last ``minutes``."""

    url: str
    minutes: float = 15
    user: str = ""
    password: str = ""

    def series(self, text: str) -> int:
        """Return the number of series that an expression returns."""
        # Without nocache, VictoriaMetrics omits the newest samples; Prometheus ignores the argument.
        answer = self._answer("/api/v1/query_range", query=text, step=STEP, nocache=1)
        return len(json.loads(answer)["data"]["result"])

    def logs(self, text: str) -> int:
        """Return the number of series or lines that a VictoriaLogs query returns, up to a few lines."""
        if "| stats" in text:
            answer = self._answer("/select/logsql/stats_query_range", query=text, step=f"{STEP}s")
            return len(json.loads(answer)["data"]["result"])
        return len(self._answer("/select/logsql/query", query=text, limit=LINES).splitlines())

    def _answer(self, path: str, **words: str | float) -> str:
        now = time.time()
        data = urllib.parse.urlencode({**words, "start": now - self.minutes * 60, "end": now}).encode()
        request = urllib.request.Request(f"{self.url.rstrip('/')}{path}", data)
        if self.user:
            login = base64.b64encode(f"{self.user}:{self.password}".encode()).decode()
            request.add_header("Authorization", f"Basic {login}")
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=TIMEOUT) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            raise Refused(error.read().decode(errors="replace")[:300]) from None
        except OSError as error:
            raise Refused(str(error)) from None


def judge(
    all_of_them: list[Expression], query: Ask, has: set[str], has_all: bool = False
) -> tuple[list[str], list[str]]:
    """Return the rows of failed expressions, and of those that lack what they need."""
    wrong, lacking = [], []
    for expression in all_of_them:
        try:
            if query(expression.text):
                continue
        except Refused as refusal:
            wrong.append(expression.row(f"refused: {refusal}"))
            continue
        if expression.needs and not has_all and expression.needs not in has:
            lacking.append(expression.row(f"needs {expression.needs}"))
        else:
            wrong.append(expression.row("NO SERIES"))
    return wrong, lacking


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--logs", default="", metavar="URL", help="of a VictoriaLogs")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="these dashboards")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--has", action="append", default=[], help="something that panels need, and that is there")
    parser.add_argument("--has-all", action="store_true", help="whatever panels need is there")
    parser.add_argument("--user", default="")
    parser.add_argument("--password-file", type=Path)
    options = parser.parse_args(arguments)
    password = options.password_file.read_text().strip() if options.password_file else ""
    parts = [(expressions(options.only), Store(options.url, options.minutes, options.user, password).series)]
    if options.logs:
        parts.append((log_queries(), Store(options.logs, options.minutes, options.user, password).logs))
    wrong, lacking = [], []
    for asked, query in parts:
        found = judge(asked, query, set(options.has), options.has_all)
        wrong += found[0]
        lacking += found[1]
    print("\n".join([*lacking, *wrong]))
    total = sum(len(expressions) for expressions, _ in parts)
    print(f"{total} expressions: {len(lacking)} lack what they need, {len(wrong)} are wrong.")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
