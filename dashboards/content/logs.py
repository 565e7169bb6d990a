"""Logs: how many lines and of which severity, the lines themselves, and whether they arrive.

Only Grafana shows the lines. VictoriaMetrics' UI draws only metrics, so its page has the last row; the lines are in
VictoriaLogs' own UI.
"""

from dashboards.model import (
    BYTES,
    PER_SECOND,
    SHARE,
    Dashboard,
    Limit,
    LogPanel,
    Panel,
    Row,
)

STREAM = '{host.name=~"$host",service.name=~"$service"}'
LOKI = '{host=~"$host",service=~"$service"}'
AN_ERROR = "an error in the logs"
LOGSQL_ERRORS = f"{STREAM} severity_number:>=17"
LOKI_ERRORS = f'{LOKI} |~ "ERROR|CRITICAL|Traceback"'

DASHBOARD = Dashboard(
    name="logs",
    order=6,
    title="Logs",
    about="How many lines, how many errors, and whether they arrive.",
    rows=(
        Row(
            "Lines",
            (
                LogPanel(
                    "Lines by service",
                    f"{STREAM} | stats by (service.name) count() lines",
                    f"sum by (service) (count_over_time({LOKI}[$__interval]))",
                    legend=("{{service.name}}", "{{service}}"),
                ),
                LogPanel(
                    "Errors by service",
                    f"{LOGSQL_ERRORS} | stats by (service.name) count() errors",
                    f"sum by (service) (count_over_time({LOKI_ERRORS} [$__interval]))",
                    legend=("{{service.name}}", "{{service}}"),
                    needs=AN_ERROR,
                ),
                LogPanel("Errors", LOGSQL_ERRORS, LOKI_ERRORS, needs=AN_ERROR, lines=True, width=12),
                LogPanel("All lines", STREAM, LOKI, lines=True, width=12),
            ),
        ),
        Row(
            "Delivery",
            (
                Panel(
                    "Lines stored",
                    PER_SECOND,
                    (("sum by (host) (rate(vl_rows_ingested_total[$rate]))", "{{host}}"),),
                    about="To read lines, open VictoriaLogs on the monitoring server: port 9428, path /select/vmui.",
                ),
                Panel(
                    "Lines refused",
                    PER_SECOND,
                    (("sum by (host, reason) (rate(vl_rows_dropped_total[$rate]))", "{{host}} {{reason}}"),),
                ),
                Panel(
                    "Disk space for logs",
                    BYTES,
                    (
                        ("max by (host) (vl_free_disk_space_bytes)", "{{host}} free"),
                        ("sum by (host) (vl_data_size_bytes)", "{{host}} used"),
                    ),
                ),
                Panel(
                    "Lines sent by the collector",
                    PER_SECOND,
                    (("sum by (host) (rate(otelcol_exporter_sent_log_records{$host}[$rate]))", "{{host}}"),),
                    needs="the role otel_collector",
                ),
                Panel(
                    "Queue of the collector",
                    SHARE,
                    (
                        (
                            "max by (host)"
                            " (otelcol_exporter_queue_size{$host} / otelcol_exporter_queue_capacity{$host})",
                            "{{host}}",
                        ),
                    ),
                    about="Fills while the log store is down; when it is full, reading stops and nothing is lost.",
                    limit=Limit(0.8),
                    needs="the role otel_collector",
                ),
                Panel(
                    "Lines sent and dropped by promtail",
                    PER_SECOND,
                    (
                        ("sum by (host) (rate(promtail_sent_entries_total{$host}[$rate]))", "{{host}} sent"),
                        ("sum by (host) (rate(promtail_dropped_entries_total{$host}[$rate]))", "{{host}} dropped"),
                    ),
                    needs="the role promtail",
                ),
            ),
        ),
    ),
)
