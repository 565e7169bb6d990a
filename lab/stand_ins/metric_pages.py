"""A stand-in for the programs of a fleet with GPUs: pages for Prometheus, with changing metrics.

    python lab/stand_ins/metric_pages.py PORT

It serves no model and ships no log; it is only for viewing dashboards without a GPU. The names and labels are those of
vLLM 0.32, of ai-server, of dcgm-exporter, of the collector, promtail and VictoriaLogs, and of the textfile metrics of
the roles; tests compare them with their sources if those are in this repository. A page is at `/HOST/PROGRAM`, such as
`/gpu1/vllm`.
"""

from __future__ import annotations

import math
import random
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

HOSTS = ("gpu1", "gpu2")
WATCH = "watch1"
MODELS = {"base": 0.6, "easycontract": 0.3, "checklist": 0.1}
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
TOKENS = (1, 10, 50, 100, 200, 500, 1000, 2000, 5000, 10000)
REASONS = ("stop", "length", "abort", "error", "repetition")
MIB_OF_AN_L4 = 23034


class Page:
    """One program's page: metrics by name; the first use of a metric creates it with its labels."""

    def __init__(self, prefix: str = "", **fixed: str) -> None:
        self.registry = CollectorRegistry()
        self._prefix = prefix
        self._fixed = fixed
        self._known: dict[str, Counter | Gauge | Histogram] = {}

    def _metric(self, kind: type, name: str, labels: dict[str, str], **options: object):
        labels = {**self._fixed, **labels}
        if name not in self._known:
            self._known[name] = kind(self._prefix + name, name, list(labels), registry=self.registry, **options)
        return self._known[name].labels(**labels) if labels else self._known[name]

    def count(self, name: str, by: float = 0, **labels: str) -> None:
        self._metric(Counter, name, labels).inc(by)

    def set(self, name: str, value: float, **labels: str) -> None:
        self._metric(Gauge, name, labels).set(value)

    def clear(self, name: str) -> None:
        if name in self._known:
            self._known[name].clear()

    def observe(self, name: str, value: float, buckets: tuple[float, ...] = SECONDS, **labels: str) -> None:
        self._metric(Histogram, name, labels, buckets=buckets).observe(value)

    def text(self) -> bytes:
        return generate_latest(self.registry)


class Host:
    """A host that serves models: a few requests a second in waves, and the metrics of its programs."""

    def __init__(self, name: str, seed: int) -> None:
        self.random = random.Random(seed)
        self.phase = seed * 1.7
        self.vllm = Page("vllm:", model_name="base", engine="0")
        self.relay = Page()
        self.gpu = Page(gpu="0", UUID=f"GPU-{seed:08x}", device="nvidia0", modelName="NVIDIA L4", Hostname=name)
        self.node = Page()
        self.collector = Page(exporter="otlphttp")
        self.promtail = Page()
        self.prompt_tokens = 0.0
        for model in MODELS:
            for status in ("2xx", "4xx", "5xx"):
                self.relay.count("http_requests", 0, handler="/v1/chat/completions", method="POST", status=status)
            self.relay.set("ai_server_in_flight", 0, model=model, caller="1a2b3c4d")
            self.relay.count("ai_server_upstream_errors", 0, status="400", model=model, caller="1a2b3c4d")
        adapters = {"max_lora": "2", "running_lora_adapters": "checklist", "waiting_lora_adapters": ""}
        self.vllm.set("lora_requests_info", time.time(), **adapters)
        for reason in REASONS:
            self.vllm.count("request_success", 0, finished_reason=reason)

    def tick(self, now: float) -> None:
        """Advance the host by one second."""
        chance, load = self.random, 2.2 + 1.6 * math.sin(now / 90 + self.phase) + 0.5 * math.sin(now / 17)
        arrived = max(0, round(chance.gauss(load, 0.8)))
        for _ in range(arrived):
            self.request(load)
        running = max(0, round(load * 2.5 + chance.gauss(0, 1)))
        waiting = max(0, running - 8)
        cache = min(0.99, 0.12 + running * 0.075)
        self.engine(running, waiting, cache)
        self.card(running, cache)
        self.rest(now)

    def request(self, load: float) -> None:
        chance = self.random
        model = chance.choices(list(MODELS), MODELS.values())[0]
        queue, prefill = chance.expovariate(1 / (0.01 + 0.04 * load)), chance.lognormvariate(-2.6, 0.5)
        prompt, answer = round(chance.lognormvariate(6, 0.8)), 1 + round(chance.lognormvariate(4.6, 0.7))
        between = chance.lognormvariate(-3.6, 0.2) * (1 + load / 6)
        decode = answer * between
        for phase, value in (
            ("queue", queue),
            ("prefill", prefill),
            ("decode", decode),
            ("inference", prefill + decode),
        ):
            self.vllm.observe(f"request_{phase}_time_seconds", value)
        self.vllm.observe("time_to_first_token_seconds", queue + prefill)
        self.vllm.observe("e2e_request_latency_seconds", queue + prefill + decode)
        self.vllm.observe("request_time_per_output_token_seconds", between)
        for _ in range(min(answer, 20)):
            self.vllm.observe("inter_token_latency_seconds", between * chance.uniform(0.7, 1.4))
        self.vllm.observe("request_prompt_tokens", prompt, TOKENS)
        self.vllm.observe("request_generation_tokens", answer, TOKENS)
        cached = round(prompt * chance.uniform(0.2, 0.7))
        self.vllm.count("prompt_tokens", prompt)
        self.vllm.count("prefix_cache_queries", prompt)
        self.vllm.count("prefix_cache_hits", cached)
        self.vllm.count("generation_tokens", answer)
        self.vllm.count("request_success", 1, finished_reason="length" if chance.random() < 0.2 else "stop")
        if model != "base":
            self.vllm.clear("lora_requests_info")
            adapters = {"max_lora": "2", "running_lora_adapters": model, "waiting_lora_adapters": ""}
            self.vllm.set("lora_requests_info", time.time(), **adapters)
        of = {"model": model, "caller": "1a2b3c4d"}
        self.relay.observe("ai_server_first_token_seconds", queue + prefill + 0.004, **of)
        self.relay.observe("ai_server_generation_seconds", queue + prefill + decode + 0.01, **of)
        self.relay.count("ai_server_tokens", prompt, kind="prompt", **of)
        self.relay.count("ai_server_tokens", answer, kind="completion", **of)
        status = chance.choices(("2xx", "4xx", "5xx"), (0.97, 0.025, 0.005))[0]
        if status == "4xx":
            self.relay.count("ai_server_upstream_errors", 1, status="400", **of)
        self.relay.count("http_requests", 1, handler="/v1/chat/completions", method="POST", status=status)
        self.relay.observe(
            "http_request_duration_seconds", queue + prefill + decode, handler="/v1/chat/completions", method="POST"
        )

    def engine(self, running: int, waiting: int, cache: float) -> None:
        self.vllm.set("num_requests_running", running - waiting)
        self.vllm.set("num_requests_waiting", waiting)
        self.vllm.set("kv_cache_usage_perc", cache)
        self.vllm.count("num_preemptions", int(cache > 0.95))
        for kind in ("external_prefix", "mm"):
            self.vllm.count(f"{kind}_cache_queries")
            self.vllm.count(f"{kind}_cache_hits")
        for _ in range(5):
            self.vllm.observe("iteration_tokens_total", 1 + running * self.random.uniform(0.8, 6), TOKENS)
        for model, part in MODELS.items():
            self.relay.set("ai_server_in_flight", round(running * part), model=model, caller="1a2b3c4d")
        self.relay.set("process_resident_memory_bytes", 96e6 + 2e6 * math.sin(time.time() / 300))

    def card(self, running: int, cache: float) -> None:
        chance, busy = self.random, min(100, running * 11)
        used = MIB_OF_AN_L4 * 0.74 + cache * 80
        for field, value in {
            "GPU_TEMP": 48 + busy * 0.25 + chance.gauss(0, 0.4),
            "GPU_UTIL": max(0, min(100, busy + chance.gauss(0, 4))),
            "MEM_COPY_UTIL": max(0, min(100, busy * 0.7 + chance.gauss(0, 4))),
            "FB_USED": round(used),
            "FB_FREE": round(MIB_OF_AN_L4 - used),
            "POWER_USAGE": 28 + busy * 0.43,
            "CLOCK_THROTTLE_REASONS": 4 if busy > 90 else 0,  # the software power cap
            "XID_ERRORS": 0,
            "ECC_SBE_VOL_TOTAL": 0,
            "ECC_DBE_VOL_TOTAL": 0,
            "CORRECTABLE_REMAPPED_ROWS": 0,
            "UNCORRECTABLE_REMAPPED_ROWS": 0,
            "ROW_REMAP_FAILURE": 0,
        }.items():
            self.gpu.set(f"DCGM_FI_DEV_{field}", value)

    def rest(self, now: float) -> None:
        for unit in ("vllm.service", "ai-server.service"):
            self.node.set("llm_watchdog_ready", 1, unit=unit)
            self.node.set("llm_watchdog_up", 1, unit=unit)
            self.node.set("llm_watchdog_person_needed", 0, unit=unit)
            self.node.count("llm_watchdog_restarts", 0, unit=unit)
            self.node.count("llm_watchdog_planned_restarts", 0, unit=unit)
        self.node.set("llm_watchdog_last_look_seconds", now)
        self.node.set("llm_release_info", 1, unit="vllm.service", release="4f1c09", program="0.32.0")
        self.node.set("llm_release_info", 1, unit="ai-server.service", release="77ab10", program="1.4.0")
        self.node.set("llm_gpu_planned_max_bytes", MIB_OF_AN_L4 * 0.78 * 1048576, group="vllm", service="vllm")
        self.node.set("llm_backup_last_success_seconds", time.time() // 86400 * 86400 + 3600 * 2)
        self.collector.set("otelcol_exporter_queue_size", max(0, self.random.gauss(400, 300)))
        self.collector.set("otelcol_exporter_queue_capacity", 200000)


class Fleet:
    def __init__(self) -> None:
        self.hosts = {name: Host(name, seed) for seed, name in enumerate(HOSTS, 1)}
        self.store = Page()
        self.sent = dict.fromkeys(HOSTS, 0.0)
        self.kept = 3e8

    def run(self) -> None:
        while True:
            now = time.time()
            for name, host in self.hosts.items():
                host.tick(now)
                lines = host.random.randint(3, 9)
                self.sent[name] += lines
                self.kept += lines * 90
                self.store.count("vl_rows_ingested", lines, type="opentelemetry")
            for reason in ("too_small_timestamp", "too_many_fields"):
                self.store.count("vl_rows_dropped", 0, reason=reason)
            self.store.set("vl_data_size_bytes", self.kept, type="storage")
            self.store.set("vl_free_disk_space_bytes", 2.1e10 - self.kept, path="/var/lib/victoria-logs")
            time.sleep(max(0, now + 1 - time.time()))

    def page(self, host: str, program: str) -> bytes:
        if (host, program) == (WATCH, "victoria_logs"):
            return self.store.text()
        if (host, program) == (WATCH, "expected"):
            return b"".join(b'expected_host{host="%s"} 1\n' % name.encode() for name in (*HOSTS, WATCH))
        served = self.hosts[host]
        if program == "otel_collector":
            # The collector's own names lack the `_total` that the library would add.
            sent = f'otelcol_exporter_sent_log_records{{exporter="otlphttp"}} {self.sent[host]}\n'
            return served.collector.text() + b"# TYPE otelcol_exporter_sent_log_records counter\n" + sent.encode()
        pages = {"vllm": served.vllm, "ai_server": served.relay, "dcgm_exporter": served.gpu, "textfile": served.node}
        return pages[program].text()


class Handler(BaseHTTPRequestHandler):
    fleet: Fleet

    def do_GET(self) -> None:
        try:
            _, host, program = self.path.split("/")
            text = self.fleet.page(host, program)
        except (KeyError, ValueError):
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        pass


def serve(port: int) -> ThreadingHTTPServer:
    """Start the pages on a loopback port and return the server; it runs in threads."""
    Handler.fleet = Fleet()
    threading.Thread(target=Handler.fleet.run, daemon=True).start()
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


if __name__ == "__main__":
    serve(int(sys.argv[1]))
    threading.Event().wait()
