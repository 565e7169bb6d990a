"""The engine in detail: where the time of a request goes, what waits, and how full the cache is."""

from dashboards.model import (
    BYTES,
    COUNT,
    PER_SECOND,
    SECONDS,
    SHARE,
    Dashboard,
    Limit,
    Panel,
    Row,
    mean,
    quantile,
    share,
    vllm,
)

LLAMA_CPP = "an engine of llama.cpp"


def quantiles(histogram: str) -> tuple[tuple[str, str], ...]:
    """Return the queries of the median, the 95th and the 99th percentile of a histogram."""
    return tuple(
        (quantile(q, vllm(histogram)), f"{{{{host}}}} {{{{service}}}} {words}")
        for q, words in ((0.5, "median"), (0.95, "95 %"), (0.99, "99 %"))
    )


def rate(counter: str, by: str = "host, service", selector: str = "$service") -> str:
    return f"sum by ({by}) (rate({counter}{{{selector}}}[$rate]))"


def hits(cache: str) -> tuple[tuple[str, str], ...]:
    """Return the query of a cache's hit rate, as a share of tokens."""
    part, total = (rate(vllm(f"{cache}_{end}_total")) for end in ("hits", "queries"))
    return ((share(part, total), "{{host}} {{service}}"),)


DASHBOARD = Dashboard(
    name="engine",
    order=2,
    title="Engine in depth",
    about="Where the time of a request goes, what waits, and how full the cache is. Metrics of vLLM unless noted.",
    rows=(
        Row(
            "Latency",
            (
                Panel("Time to first token", SECONDS, quantiles("time_to_first_token_seconds")),
                Panel("Time between two tokens", SECONDS, quantiles("inter_token_latency_seconds")),
                Panel("Request duration", SECONDS, quantiles("e2e_request_latency_seconds")),
                Panel(
                    "Where the time goes, on average",
                    SECONDS,
                    tuple(
                        (mean(vllm(f"request_{phase}_time_seconds")), f"{{{{host}}}} {{{{service}}}} {phase}")
                        for phase in ("queue", "prefill", "decode")
                    ),
                    about="A long queue needs another engine; a long prefill, shorter prompts or a cached prefix.",
                ),
                Panel(
                    "Queue time",
                    SECONDS,
                    ((quantile(0.95, vllm("request_queue_time_seconds")), "{{host}} {{service}} 95 %"),),
                ),
                Panel(
                    "Time per output token",
                    SECONDS,
                    ((quantile(0.95, vllm("request_time_per_output_token_seconds")), "{{host}} {{service}} 95 %"),),
                ),
            ),
        ),
        Row(
            "Queue",
            (
                Panel(
                    "Requests in the engine",
                    COUNT,
                    (
                        (
                            "sum by (host, service) (vllm:num_requests_running{$service})",
                            "{{host}} {{service}} running",
                        ),
                        (
                            "sum by (host, service) (vllm:num_requests_waiting{$service})",
                            "{{host}} {{service}} waiting",
                        ),
                    ),
                ),
                Panel(
                    "Requests by finish reason",
                    PER_SECOND,
                    (
                        (
                            rate("vllm:request_success_total", "host, service, finished_reason"),
                            "{{host}} {{service}} {{finished_reason}}",
                        ),
                    ),
                ),
                Panel(
                    "Preemptions",
                    PER_SECOND,
                    ((rate("vllm:num_preemptions_total"), "{{host}} {{service}}"),),
                    about="The cache was full; a running request must be recomputed.",
                ),
            ),
        ),
        Row(
            "Cache",
            (
                Panel(
                    "KV cache used",
                    SHARE,
                    (("max by (host, service) (vllm:kv_cache_usage_perc{$service})", "{{host}} {{service}}"),),
                    limit=Limit(0.9),
                ),
                Panel(
                    "Prompt tokens found in the prefix cache",
                    SHARE,
                    hits("prefix_cache"),
                ),
                Panel(
                    "Hits in external and image caches",
                    SHARE,
                    (
                        (hits("external_prefix_cache")[0][0], "{{host}} {{service}} external"),
                        (hits("mm_cache")[0][0], "{{host}} {{service}} images"),
                    ),
                    needs="an external cache, and a model that reads images",
                ),
            ),
        ),
        Row(
            "Tokens",
            (
                Panel(
                    "Tokens",
                    PER_SECOND,
                    (
                        (rate("vllm:prompt_tokens_total"), "{{host}} {{service}} prompt"),
                        (rate("vllm:generation_tokens_total"), "{{host}} {{service}} generated"),
                    ),
                ),
                Panel(
                    "Tokens per engine step",
                    COUNT,
                    ((mean(vllm("iteration_tokens_total")), "{{host}} {{service}}"),),
                ),
                Panel(
                    "Draft tokens accepted",
                    SHARE,
                    (
                        (
                            share(
                                rate("vllm:spec_decode_num_accepted_tokens_total"),
                                rate("vllm:spec_decode_num_draft_tokens_total"),
                            ),
                            "{{host}} {{service}}",
                        ),
                    ),
                    needs="speculative decoding",
                ),
                Panel("Length of prompts, in tokens", COUNT, quantiles("request_prompt_tokens"), width=6),
                Panel("Length of answers, in tokens", COUNT, quantiles("request_generation_tokens"), width=6),
            ),
        ),
        Row(
            "Models and adapters",
            (
                Panel(
                    "Tokens by model",
                    PER_SECOND,
                    ((rate("ai_server_tokens_total", "host, model, kind", "$host"), "{{host}} {{model}} {{kind}}"),),
                    about="From ai-server, since vLLM does not distinguish adapters.",
                ),
                Panel(
                    "Time to first token by model",
                    SECONDS,
                    (
                        (
                            quantile(0.95, "ai_server_first_token_seconds", "host, model", "$host"),
                            "{{host}} {{model}} 95 %",
                        ),
                    ),
                    about="From ai-server.",
                ),
                Panel(
                    "Adapters in use",
                    COUNT,
                    (
                        (
                            "count by (host, service, running_lora_adapters)"
                            ' (vllm:lora_requests_info{$service,running_lora_adapters!=""} > time() - 60)',
                            "{{host}} {{service}} {{running_lora_adapters}}",
                        ),
                    ),
                    about="Adapters with a request in the last minute.",
                    needs="a request to an adapter in the last minute",
                ),
                Panel(
                    "Requests in flight by model",
                    COUNT,
                    (("sum by (host, model) (ai_server_in_flight{$host})", "{{host}} {{model}}"),),
                    about="From ai-server.",
                ),
                Panel(
                    "Errors and refusals of vLLM",
                    PER_SECOND,
                    ((rate("ai_server_upstream_errors_total", "host, status", "$host"), "{{host}} {{status}}"),),
                    about="From ai-server, by the status that vLLM returned.",
                    needs="a request that vLLM refused or failed",
                ),
                Panel(
                    "Memory of the processes",
                    BYTES,
                    (
                        (
                            'sum by (host, service) (process_resident_memory_bytes{$service,job=~"vllm|ai_server"})',
                            "{{host}} {{service}}",
                        ),
                    ),
                    about="The process that serves HTTP, without the engine's other processes.",
                ),
            ),
        ),
        Row(
            "llama.cpp",
            (
                Panel(
                    "Requests in llama.cpp",
                    COUNT,
                    (
                        (
                            "sum by (host, service) (llamacpp:requests_processing{$service})",
                            "{{host}} {{service}} running",
                        ),
                        (
                            "sum by (host, service) (llamacpp:requests_deferred{$service})",
                            "{{host}} {{service}} waiting",
                        ),
                    ),
                    about="It runs as many requests at once as it has slots.",
                    needs=LLAMA_CPP,
                ),
                Panel(
                    "Tokens of llama.cpp",
                    PER_SECOND,
                    (
                        (rate("llamacpp:prompt_tokens_total"), "{{host}} {{service}} prompt"),
                        (rate("llamacpp:tokens_predicted_total"), "{{host}} {{service}} generated"),
                    ),
                    needs=LLAMA_CPP,
                ),
                Panel(
                    "Steps of llama.cpp",
                    PER_SECOND,
                    ((rate("llamacpp:n_decode_total"), "{{host}} {{service}}"),),
                    about="No steps while requests run: it hangs.",
                    needs=LLAMA_CPP,
                ),
            ),
        ),
    ),
)
