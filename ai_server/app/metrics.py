"""The Prometheus metrics. Callers cannot create labels: methods, paths and models are known names or `other`."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

from prometheus_client import Counter, Gauge, Histogram

from app.errors import Problem

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
OTHER = "other"
MAX_TOKENS = 2**40  # in one answer; a higher number is invalid
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
FIRST = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 300)
LABELS = ("model", "caller", "engine")

requests = Counter("http_requests", "Requests by path, method and class of status", ["handler", "method", "status"])
durations = Histogram(
    "http_request_duration_seconds", "From a request to the end of its answer", ["handler", "method"], buckets=SECONDS
)
first_token = Histogram(
    "ai_server_first_token_seconds", "From a request to the first piece of the engine's answer", LABELS, buckets=FIRST
)
generation = Histogram(
    "ai_server_generation_seconds", "From a request to the end of the engine's answer", LABELS, buckets=SECONDS
)
tokens = Counter(
    "ai_server_tokens", "Tokens as in the callers' accounts; kind: prompt or completion", [*LABELS, "kind"]
)
in_flight = Gauge("ai_server_in_flight", "Requests that the engine is processing", LABELS)
upstream_errors = Counter("ai_server_upstream_errors", "The engine's errors, by status", [*LABELS, "status"])


class Generations:
    """The metrics of one model, caller and engine. Looked up once, since a lookup costs more than counting."""

    def __init__(self, model: str, caller: str, engine: str) -> None:
        self._labels = (model, caller, engine)
        self.first_token = first_token.labels(*self._labels)
        self.seconds = generation.labels(*self._labels)
        self.in_flight = in_flight.labels(*self._labels)
        self._prompt, self._completion = (tokens.labels(*self._labels, kind) for kind in ("prompt", "completion"))

    @contextmanager
    def measured(self) -> Iterator[Callable[[], None]]:
        """Measure a generation until the block ends; yield a function to call when its first piece arrives."""
        began = time.monotonic()
        self.in_flight.inc()
        try:
            yield lambda: self.first_token.observe(time.monotonic() - began)
        except Problem as problem:
            self.failed(problem.status_code)
            raise
        finally:
            self.in_flight.dec()
            self.seconds.observe(time.monotonic() - began)

    def failed(self, status: int) -> None:
        upstream_errors.labels(*self._labels, status).inc()

    def used(self, prompt: int, completion: int) -> None:
        """Count the tokens of a generation."""
        self._prompt.inc(prompt)
        self._completion.inc(completion)


generations = lru_cache(maxsize=1024)(Generations)


@lru_cache(maxsize=1024)
def _of_request(handler: str, method: str, status: str) -> tuple[Counter, Histogram]:
    return requests.labels(handler, method, status), durations.labels(handler, method)


def count_request(scope: dict, status: int, seconds: float) -> None:
    """Count a finished request; seconds: its duration."""
    handler = scope.get("handler") or getattr(scope.get("route"), "path", OTHER)
    method = scope["method"] if scope["method"] in METHODS else OTHER
    count, duration = _of_request(handler, method, f"{status // 100}xx")
    count.inc()
    duration.observe(seconds)


def token_counts(usage: object) -> tuple[int, int]:
    """Return the tokens of prompt and answer in a `usage` of vLLM; 0 if it does not have them."""
    if not isinstance(usage, dict):
        return 0, 0

    def count_of(*names: str) -> int:
        numbers = (usage.get(name) for name in names)
        return next((number for number in numbers if isinstance(number, int) and 0 < number < MAX_TOKENS), 0)

    # /v1/responses calls them input and output.
    prompt, completion = count_of("prompt_tokens", "input_tokens"), count_of("completion_tokens", "output_tokens")
    return prompt, completion or max(0, count_of("total_tokens") - prompt)
