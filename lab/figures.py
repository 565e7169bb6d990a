"""A VictoriaMetrics with the metrics of a fleet: a stand-in for its programs, and this machine's real node_exporter."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from dashboards.content import ALL
from lab import bench_relay, builds, host
from lab.host import Problem
from lab.stand_ins import metric_pages

PROGRAMS = ("victoria_metrics", "vmutils", "node_exporter")
DASHBOARDS = host.ROOT / "dashboards" / "vmui"
INTERVAL = 5
READS = 6
START = 60
# What panels need and this store lacks.
LACKS = {"speculative decoding", "an engine of llama.cpp", "a firing alert", "the role promtail"}
# Program -> the unit that it runs as, for every served host.
SERVED = {
    "vllm": "vllm",
    "ai_server": "ai-server",
    "dcgm_exporter": "dcgm-exporter",
    "otel_collector": "otel-collector",
}


def has() -> set[str]:
    """Return what panels need and this store has."""
    return {panel.needs for dashboard in ALL for panel in dashboard.panels()} - LACKS


def unpacked(folder: Path) -> dict[str, Path]:
    """Create the programs and return their paths by their names in the archive."""
    found = {}
    for built in builds.ensure(list(PROGRAMS)):
        with tarfile.open(built["archive"]) as archive:
            archive.extractall(folder, filter="data")
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_mode & 0o100:
            found[path.name] = path
    return found


def job(program: str, on: str, service: str, target: str, path: str = "/metrics", number: int = 0) -> dict[str, Any]:
    """Return one scrape job, with the labels that vmagent sets on a monitored host."""
    labels = {"job": program, "host": on, "service": service}
    return {
        "job_name": f"{program}-{on}-{number}",
        "metrics_path": path,
        "static_configs": [{"targets": [target], "labels": labels}],
    }


def scraped(pages: str, node: str, store: str, agent: str) -> dict[str, Any]:
    """Return the complete scrape configuration."""
    jobs = []
    for on in metric_pages.HOSTS:
        jobs += [job(program, on, unit, pages, f"/{on}/{program}") for program, unit in SERVED.items()]
        jobs.append(job("node_exporter", on, "node_exporter", pages, f"/{on}/textfile", 1))
    watch = metric_pages.WATCH
    jobs += [job("node_exporter", on, "node_exporter", node) for on in (*metric_pages.HOSTS, watch)]
    jobs += [
        job("victoria_logs", watch, "victoria-logs", pages, f"/{watch}/victoria_logs"),
        # Recorded by vmalert, whose series keep their labels.
        {**job("vmalert", watch, "vmalert", pages, f"/{watch}/expected"), "honor_labels": True},
        job("victoria_metrics", watch, "victoria-metrics", store),
        job("vmagent", watch, "vmagent", agent),
    ]
    return {"global": {"scrape_interval": f"{INTERVAL}s"}, "scrape_configs": jobs}


@contextlib.contextmanager
def live() -> Iterator[str]:
    """Run the store and its sources on free ports of loopback; yield the store's address."""
    pages, node, store, agent = (f"127.0.0.1:{bench_relay.free_port()}" for _ in range(4))
    with tempfile.TemporaryDirectory(prefix="figures-") as made, contextlib.ExitStack() as ends:
        folder = Path(made)
        programs = unpacked(folder / "programs")
        (folder / "scrape.yml").write_text(yaml.safe_dump(scraped(pages, node, store, agent)))
        server = metric_pages.serve(int(pages.rpartition(":")[2]))
        ends.callback(server.server_close)
        ends.callback(server.shutdown)
        for argv in (
            [str(programs["node_exporter"]), f"--web.listen-address={node}"],
            [
                str(programs["victoria-metrics-prod"]),
                f"-httpListenAddr={store}",
                f"-storageDataPath={folder / 'data'}",
                f"-vmui.customDashboardsPath={DASHBOARDS}",
                "-memory.allowedPercent=5",
                "-search.latencyOffset=1s",  # by default a query ends 30 seconds ago
            ],
            [
                str(programs["vmagent-prod"]),
                f"-httpListenAddr={agent}",
                f"-promscrape.config={folder / 'scrape.yml'}",
                f"-remoteWrite.url=http://{store}/api/v1/write",
                f"-remoteWrite.tmpDataPath={folder / 'queue'}",
                "-memory.allowedPercent=5",
            ],
        ):
            log = ends.enter_context((folder / f"{Path(argv[0]).name}.log").open("w"))
            process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            ends.callback(ended, process)
        await_figures(f"http://{store}", folder)
        yield f"http://{store}"


def ended(process: subprocess.Popen) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(20)
    if process.poll() is None:
        process.kill()
        process.wait()


def await_figures(url: str, folder: Path) -> None:
    """Wait until every program was scraped several times: a rate needs two samples, and stores hide the newest ones."""
    query = urllib.parse.urlencode({"query": f"count(count_over_time(up[2m]) > {READS})"})
    wanted = len(yaml.safe_load((folder / "scrape.yml").read_text())["scrape_configs"])
    end = time.monotonic() + START
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError, LookupError, urllib.error.URLError):
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"{url}/api/v1/query?{query}", timeout=5) as answer:
                if int(json.load(answer)["data"]["result"][0]["value"][1]) >= wanted:
                    return
        time.sleep(1)
    for log in folder.glob("*.log"):
        shutil.copy(log, host.STATE)
    raise Problem(f"The store has no metrics after {START} s; its log and the agent's are in {host.STATE}.")
