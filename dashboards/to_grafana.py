"""Write a dashboard for Grafana."""

from __future__ import annotations

import re
from typing import Any

from grafana_foundation_sdk.builders import common, logs, loki, prometheus, timeseries
from grafana_foundation_sdk.builders import dashboard as builders
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.runtime import UnknownDataquery
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.common import (
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    LogsSortOrder,
    SortOrder,
    TooltipDisplayMode,
)

from dashboards.model import COLUMNS, Dashboard, LogPanel, Panel

GRID = 24
HEIGHT = 8
LINES_HEIGHT = 12
METRICS = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
VICTORIA_LOGS = models.DataSourceRef(type_val="victoriametrics-logs-datasource", uid="${logs}")
LOKI = models.DataSourceRef(type_val="loki", uid="${logs}")
SELECTORS = {"host": 'host=~"$host"', "service": 'host=~"$host",service=~"$service"'}


def expression(text: str) -> str:
    text = re.sub(r"\$(host|service)\b", lambda found: SELECTORS[found[1]], text)
    return text.replace("$rate", "$__rate_interval")


class VictoriaLogsQuery(Builder):
    """A query of VictoriaLogs' data source, whose plugin the SDK does not support."""

    def __init__(self, panel: LogPanel) -> None:
        self._query = {
            "datasource": VICTORIA_LOGS.to_json(),
            "refId": "A",
            "expr": panel.logsql,
            "queryType": "instant" if panel.lines else "statsRange",
            "legendFormat": panel.legend[0],
        }

    def build(self) -> UnknownDataquery:
        return UnknownDataquery(self._query)


def loki_query(panel: LogPanel) -> Builder:
    query = loki.Dataquery().datasource(LOKI).ref_id("A").expr(panel.logql).query_type("range")
    return query if panel.lines else query.legend_format(panel.legend[1])


def plot(title: str, about: str, width: int) -> timeseries.Panel:
    """Return a panel with the settings that all panels of lines share."""
    return (
        timeseries.Panel()
        .title(title)
        .description(about)
        .height(HEIGHT)
        .span(width * GRID // COLUMNS)
        .line_width(1)
        .fill_opacity(5)
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )


def metric_panel(panel: Panel) -> timeseries.Panel:
    about = f"{panel.about} Needs {panel.needs}.".strip() if panel.needs else panel.about
    built = plot(panel.title, about, panel.width).unit(panel.unit.grafana).datasource(METRICS)
    if not panel.negative:
        built.min(0)
    for index, (query, legend) in enumerate(panel.queries):
        built.with_target(
            prometheus.Dataquery()
            .datasource(METRICS)
            .ref_id(chr(ord("A") + index))
            .expr(expression(query))
            .legend_format(legend)
            .range()
        )
    if panel.limit:
        below, above = ("red", "green") if panel.limit.least else ("green", "red")
        steps = [models.Threshold(value=None, color=below), models.Threshold(value=panel.limit.value, color=above)]
        built.thresholds(builders.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps))
        built.thresholds_style(common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.DASHED_AND_AREA))
    return built


def log_panel(panel: LogPanel, store: models.DataSourceRef) -> Builder:
    query = VictoriaLogsQuery(panel) if store is VICTORIA_LOGS else loki_query(panel)
    if not panel.lines:
        return plot(panel.title, panel.about, panel.width).datasource(store).min(0).with_target(query)
    return (
        logs.Panel()
        .title(panel.title)
        .description(panel.about)
        .datasource(store)
        .height(LINES_HEIGHT)
        .span(panel.width * GRID // COLUMNS)
        .show_time(True)
        .wrap_log_message(True)
        .enable_log_details(True)
        .sort_order(LogsSortOrder.DESCENDING)
        .with_target(query)
    )


def choice(name: str, query: str) -> builders.QueryVariable:
    """Return a variable with all values selected by default."""
    return (
        builders.QueryVariable(name)
        .label(name.capitalize())
        .datasource(METRICS)
        .query(query)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(models.VariableOption(selected=True, text="All", value="$__all"))
    )


def build(dashboard: Dashboard, store: models.DataSourceRef = VICTORIA_LOGS) -> dict[str, Any]:
    """Return the dashboard as Grafana's JSON; ``store`` is the data source for logs."""
    suffix = "-loki" if store is LOKI else ""
    built = (
        builders.Dashboard(f"LLM server: {dashboard.title}{' (Loki)' if suffix else ''}")
        .uid(f"llm-server-{dashboard.name}{suffix}")
        .description(dashboard.about)
        .tags(list(dashboard.tags))
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .link(
            builders.DashboardLink("LLM server")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(list(dashboard.tags))
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
        .with_variable(builders.DatasourceVariable("datasource").label("Metrics").type("prometheus"))
    )
    if dashboard.log_panels():
        built.with_variable(builders.DatasourceVariable("logs").label("Logs").type(store.type_val))
    built.with_variable(choice("host", "label_values(up, host)"))
    if dashboard.services:
        built.with_variable(choice("service", 'label_values(up{host=~"$host"}, service)'))
    number = 0
    for row in dashboard.rows:
        number += 1
        built.with_row(builders.Row(row.title).id(number))
        for panel in row.panels:
            number += 1
            filled = metric_panel(panel) if isinstance(panel, Panel) else log_panel(panel, store)
            built.with_panel(filled.id(number))
    return built.build()
