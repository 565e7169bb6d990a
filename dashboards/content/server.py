"""One server at a glance: whether it serves, how fast, and which resource will be short next."""

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
)

REQUESTS = 'sum by (host) (rate(http_requests_total{$host,job="ai_server"}[$rate]))'
FAILED = 'sum by (host) (rate(http_requests_total{$host,job="ai_server",status="5xx"}[$rate]))'
DISK = '{$host,fstype!~"tmpfs|ramfs|devtmpfs|squashfs|iso9660|vfat",mountpoint!~"/(etc|run|dev|proc|sys|boot)(/.*)?"}'

DASHBOARD = Dashboard(
    name="server",
    order=1,
    title="Server at a glance",
    about="Does it serve, how fast, and what runs out next. Choose one host.",
    services=False,
    rows=(
        Row(
            "Does it serve?",
            (
                Panel(
                    "Programs that answer",
                    COUNT,
                    (
                        ("sum by (host) (up{$host})", "{{host}} answer"),
                        ("count by (host) (up{$host})", "{{host}} expected"),
                    ),
                    about="Engine, ai-server and exporters, by their last scrape.",
                ),
                Panel(
                    "Requests by status",
                    PER_SECOND,
                    (
                        (
                            'sum by (host, status) (rate(http_requests_total{$host,job="ai_server"}[$rate]))',
                            "{{host}} {{status}}",
                        ),
                    ),
                    about="What ai-server answered its callers.",
                ),
                Panel(
                    "Failed requests",
                    SHARE,
                    ((share(FAILED, REQUESTS), "{{host}} failed"),),
                    about="Share of 5xx among all answers of ai-server.",
                    limit=Limit(0.05),
                ),
            ),
        ),
        Row(
            "How fast?",
            (
                Panel(
                    "Time to first token, as callers see it",
                    SECONDS,
                    (
                        (quantile(0.5, "ai_server_first_token_seconds", "host", "$host"), "{{host}} median"),
                        (quantile(0.95, "ai_server_first_token_seconds", "host", "$host"), "{{host}} 95 %"),
                    ),
                ),
                Panel(
                    "Tokens",
                    PER_SECOND,
                    (
                        ("sum by (host) (rate(vllm:prompt_tokens_total{$host}[$rate]))", "{{host}} read"),
                        ("sum by (host) (rate(vllm:generation_tokens_total{$host}[$rate]))", "{{host}} written"),
                    ),
                ),
                Panel(
                    "Requests in the engine",
                    COUNT,
                    (
                        ("sum by (host) (vllm:num_requests_running{$host})", "{{host}} running"),
                        ("sum by (host) (vllm:num_requests_waiting{$host})", "{{host}} waiting"),
                    ),
                    about="Requests that wait for minutes mean that the engine is overloaded.",
                ),
            ),
        ),
        Row(
            "What runs out next?",
            (
                Panel(
                    "KV cache used",
                    SHARE,
                    (("max by (host, service) (vllm:kv_cache_usage_perc{$host})", "{{host}} {{service}}"),),
                    about="Above the limit requests are held back, then preempted.",
                    limit=Limit(0.9),
                ),
                Panel(
                    "GPU memory free",
                    BYTES,
                    (("min by (host, gpu) (DCGM_FI_DEV_FB_FREE{$host}) * 1048576", "{{host}} GPU {{gpu}}"),),
                    about="vLLM takes its share at the start and keeps it: the line should be level.",
                    limit=Limit(5 * GIB, least=True),
                    needs="a GPU",
                ),
                Panel(
                    "Host memory available",
                    BYTES,
                    (("min by (host) (node_memory_MemAvailable_bytes{$host})", "{{host}}"),),
                    limit=Limit(5 * GIB, least=True),
                ),
                Panel(
                    "Processor busy",
                    SHARE,
                    (('1 - avg by (host) (rate(node_cpu_seconds_total{$host,mode="idle"}[$rate]))', "{{host}}"),),
                ),
                Panel(
                    "Disk free",
                    SHARE,
                    (
                        (
                            f"min by (host, mountpoint) (node_filesystem_avail_bytes{DISK}"
                            f" / node_filesystem_size_bytes{DISK})",
                            "{{host}} {{mountpoint}}",
                        ),
                    ),
                    limit=Limit(0.1, least=True),
                ),
                Panel(
                    "Restarts by the watchdog in an hour",
                    COUNT,
                    (
                        (
                            "sum by (host, unit) (increase(llm_watchdog_restarts_total{$host}[1h]))",
                            "{{host}} {{unit}}",
                        ),
                        ("sum by (host, unit) (llm_watchdog_person_needed{$host})", "{{host}} {{unit}} needs a person"),
                    ),
                    needs="the role watchdog",
                ),
            ),
        ),
    ),
)
