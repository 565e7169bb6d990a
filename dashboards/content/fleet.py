"""All hosts side by side, and whether they are monitored at all."""

from dashboards.content.server import FAILED, REQUESTS
from dashboards.model import (
    BYTES,
    COUNT,
    GIB,
    PER_SECOND,
    SECONDS,
    SHARE,
    Dashboard,
    Limit,
    Panel,
    Row,
    quantile,
    share,
    vllm,
)

DASHBOARD = Dashboard(
    name="fleet",
    order=3,
    title="Fleet",
    about="All hosts side by side, and whether they are monitored at all.",
    services=False,
    rows=(
        Row(
            "Hosts",
            (
                Panel(
                    "Hosts",
                    COUNT,
                    (
                        ("count(expected_host{$host})", "in the inventory"),
                        ('count(count by (host) (up{$host,job="node_exporter"} == 1))', "report"),
                    ),
                    width=3,
                    about="If fewer report than are in the inventory, a host is down or not monitored.",
                ),
                Panel(
                    "Programs that do not answer",
                    COUNT,
                    (("sum by (host) (1 - up{$host})", "{{host}}"),),
                    width=3,
                    about="Engine, ai-server and exporters, by their last scrape.",
                ),
                Panel(
                    "Firing alerts",
                    COUNT,
                    (('count by (alertname) (ALERTS{alertstate="firing"})', "{{alertname}}"),),
                    needs="a firing alert",
                    width=3,
                ),
                Panel(
                    "Programs in use",
                    COUNT,
                    (("count by (unit, program) (llm_release_info{$host})", "{{unit}} {{program}}"),),
                    about="Hosts by program version. Two lines for one service mean that hosts differ.",
                    needs="the role watchdog",
                    width=3,
                ),
            ),
        ),
        Row(
            "Work",
            (
                Panel("Requests", PER_SECOND, ((REQUESTS, "{{host}}"),)),
                Panel("Failed requests", SHARE, ((share(FAILED, REQUESTS), "{{host}}"),), limit=Limit(0.05)),
                Panel(
                    "Time to first token, 95 %",
                    SECONDS,
                    ((quantile(0.95, vllm("time_to_first_token_seconds"), "host", "$host"), "{{host}}"),),
                ),
                Panel(
                    "Tokens generated",
                    PER_SECOND,
                    (("sum by (host) (rate(vllm:generation_tokens_total{$host}[$rate]))", "{{host}}"),),
                ),
                Panel(
                    "Requests waiting",
                    COUNT,
                    (("sum by (host) (vllm:num_requests_waiting{$host})", "{{host}}"),),
                ),
                Panel(
                    "KV cache used",
                    SHARE,
                    (("max by (host) (vllm:kv_cache_usage_perc{$host})", "{{host}}"),),
                    limit=Limit(0.9),
                ),
            ),
        ),
        Row(
            "Room",
            (
                Panel(
                    "Host memory available",
                    BYTES,
                    (("min by (host) (node_memory_MemAvailable_bytes{$host})", "{{host}}"),),
                    limit=Limit(5 * GIB, least=True),
                ),
                Panel(
                    "GPU memory free",
                    BYTES,
                    (("min by (host) (DCGM_FI_DEV_FB_FREE{$host}) * 1048576", "{{host}}"),),
                    limit=Limit(5 * GIB, least=True),
                    needs="a GPU",
                ),
                Panel(
                    "Restarts by the watchdog in a day",
                    COUNT,
                    (("sum by (host) (increase(llm_watchdog_restarts_total{$host}[1d]))", "{{host}}"),),
                    needs="the role watchdog",
                ),
            ),
        ),
        Row(
            "Monitoring server",
            (
                Panel(
                    "Metrics not sent yet",
                    BYTES,
                    (('sum by (host) (vm_persistentqueue_bytes_pending{$host,job="vmagent"})', "{{host}}"),),
                    about="Grows while the monitoring server is unreachable. Nothing is lost before the queue is full.",
                ),
                Panel(
                    "Disk space for metrics",
                    BYTES,
                    (('min by (host) (vm_free_disk_space_bytes{job="victoria_metrics"})', "{{host}}"),),
                ),
                Panel(
                    "Samples stored",
                    PER_SECOND,
                    (('sum by (host) (rate(vm_rows_inserted_total{job="victoria_metrics"}[$rate]))', "{{host}}"),),
                ),
            ),
        ),
    ),
)
