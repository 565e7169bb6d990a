"""Lines about two machines: the first serves models; the second is its monitoring server."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.parse
import urllib.request
from typing import Any

from lab import machine
from lab.bed import Bed
from lab.drill.cases import WORDS, Row, Stage

SERVED, WATCHING = "drill-served", "drill-watching"
AWAY = 120  # seconds for which the stores are stopped
LINES = 300
WITHIN = 300  # seconds until a message must have arrived

# The other machine and the drill send requests to the monitoring server.
VARIABLES: dict[str, Any] = {
    "log_shipper": "otel_collector",
    "vmagent_url": f"http://{{{{ hostvars['{WATCHING}'].ansible_host }}}}:8428",
    "otel_collector_endpoint": f"http://{{{{ hostvars['{WATCHING}'].ansible_host }}}}:9428/insert/opentelemetry",
    "otel_collector_journal_jobs": [],
    "otel_collector_file_jobs": [{"job": "words", "path": f"{WORDS}/*.log"}],
    "vmagent_scrape_interval": "5s",
    "vmalert_interval": "10s",
    "alertmanager_group_wait": "5s",
    "alertmanager_group_interval": "20s",
}


def notified(stage: Stage, *words: str, since: int) -> bool:
    """Return whether a message after the first ``since`` contains all the words."""
    with urllib.request.urlopen(f"{stage.offered['slack']}/messages", timeout=10) as answer:
        messages = json.load(answer)[since:]
    return any(all(word in each["text"] for word in words) for each in messages)


def messages(stage: Stage) -> int:
    """Return the number of messages so far."""
    with urllib.request.urlopen(f"{stage.offered['slack']}/messages", timeout=10) as answer:
        return len(json.load(answer))


def ask(bed: Bed, port: int, path: str, **query: str) -> str:
    """Return a store's response on the monitoring server; empty if it does not answer."""
    url = f"http://{bed.hosts[1].reached['address']}:{port}{path}?{urllib.parse.urlencode(query)}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def value(bed: Bed, expression: str) -> float | None:
    """Return the value of an expression's first series; None if there is none."""
    found = json.loads(ask(bed, 8428, "/api/v1/query", query=expression) or '{"data": {"result": []}}')
    result = found["data"]["result"]
    return float(result[0]["value"][1]) if result else None


def engine_stopped(bed: Bed, stage: Stage) -> Row:
    """The engine of the monitored machine is stopped, and started again."""
    served, before = bed.hosts[0], messages(stage)
    served.until(lambda: value(bed, f'up{{job="vllm",host="{SERVED}"}}') == 1, 60, "the store has no metrics")
    served.sh("systemctl stop vllm")
    fires = served.until(lambda: notified(stage, "FIRING", "vllm", SERVED, since=before), WITHIN, "no message came")
    served.sh("systemctl start vllm")
    ends = served.until(lambda: notified(stage, "resolved: vllm", SERVED, since=before), WITHIN, "it does not end")
    seen = f"a message after {fires:.0f} s, and that it is over {ends:.0f} s after the start"
    return Row(
        "the engine of a monitored host stopped", "a message in Slack within 5 min, and one at the end", seen, True
    )


def stores_away(bed: Bed, stage: Stage) -> Row:
    """The stores of metrics and logs are stopped for two minutes while the monitored machine writes log lines."""
    served, watching = bed.hosts[:2]
    mark = f"away-{int(time.time())}"
    watching.sh("systemctl stop victoria_metrics victoria_logs")
    for part in range(10):
        served.sh(f"for n in $(seq {LINES // 10}); do echo {mark} {part}-$n >> {WORDS}/words.log; done")
        time.sleep(AWAY / 10)
    watching.sh("systemctl start victoria_metrics victoria_logs")

    def lines() -> list[str]:
        found = ask(bed, 9428, "/select/logsql/query", query=f'"{mark}"', limit="5000")
        return [json.loads(line)["_msg"] for line in found.splitlines()]

    served.until(lambda: len(lines()) >= LINES, 180, "the lines do not come")
    time.sleep(10)  # for duplicates
    came = lines()
    figures = f'count_over_time(up{{job="node_exporter",host="{SERVED}"}}[2m])'
    served.until(lambda: (value(bed, figures) or 0) >= 22, 120, "the metrics of the two minutes do not arrive")
    good = len(came) == len(set(came)) == LINES
    seen = f"{len(came)} of {LINES} lines ({len(set(came))} different), no figure is missing"
    return Row(f"the stores stopped for {AWAY} s", "each line once, no figure missing", seen, good)


def host_gone(bed: Bed, stage: Stage) -> Row:
    """The monitored machine is switched off."""
    before = messages(stage)
    box = machine.container(bed.hosts[0].name)
    subprocess.run(["podman", "stop", "--time", "5", box], check=True, capture_output=True)
    fires = bed.hosts[1].until(lambda: notified(stage, "HostMissing", SERVED, since=before), WITHIN, "no message came")
    seen = f"a message after {fires:.0f} s"
    return Row("a monitored host switched off", "a message in Slack within 5 min", seen, True)
