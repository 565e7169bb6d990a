"""What Prometheus is told. No caller can make a label: methods, paths, models and callers are known names or `other`."""

from prometheus_client import Counter, Gauge, Histogram

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
OTHER = "other"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 300)
BOTH = ("model", "caller")

requests = Counter("http_requests", "Requests by path, method and class of status", ["handler", "method", "status"])
durations = Histogram(
    "http_request_duration_seconds", "From a request to the end of its answer", ["handler", "method"], buckets=SECONDS
)
first_token = Histogram(
    "ai_server_first_token_seconds", "From a request to the first piece of vLLM's answer", BOTH, buckets=FIRST
)
generation = Histogram(
    "ai_server_generation_seconds", "From a request to the end of vLLM's answer", BOTH, buckets=SECONDS
)
tokens = Counter("ai_server_tokens", "Tokens as vLLM counts them; kind: prompt or completion", [*BOTH, "kind"])
in_flight = Gauge("ai_server_in_flight", "Requests that vLLM works on for us", BOTH)
upstream_errors = Counter(
    "ai_server_upstream_errors", "Answers of vLLM that were none, by status told", [*BOTH, "status"]
)


def count_request(scope: dict, status: int, seconds: float) -> None:
    """Count a request that is over; seconds: how long it took."""
    route = scope.get("route")
    handler = scope.get("handler") or getattr(route, "path", OTHER)
    method = scope["method"] if scope["method"] in METHODS else OTHER
    requests.labels(handler, method, f"{status // 100}xx").inc()
    durations.labels(handler, method).observe(seconds)


def count_tokens(labels: tuple[str, str], usage: object) -> None:
    """Count what a `usage` of vLLM says; labels: model and caller."""
    for kind, number in zip(("prompt", "completion"), token_counts(usage), strict=True):
        if number:
            tokens.labels(*labels, kind).inc(number)


def token_counts(usage: object) -> tuple[int, int]:
    """Return the tokens of prompt and answer that a `usage` of vLLM says; 0 for what it does not say."""
    if not isinstance(usage, dict):
        return 0, 0

    def said(*names: str) -> int:
        return next((usage[name] for name in names if isinstance(usage.get(name), int) and usage[name] > 0), 0)

    # The responses' endpoint calls them input and output.
    prompt, completion = said("prompt_tokens", "input_tokens"), said("completion_tokens", "output_tokens")
    return prompt, completion or max(0, said("total_tokens") - prompt)
