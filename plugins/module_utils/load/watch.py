"""Monitoring of a host under load: memory, the engine's queue and cache, restarts, the kernel log."""

from __future__ import annotations

import json
import re
import time
from itertools import pairwise
from pathlib import Path

from ..diagnosis.host import OUT_OF_MEMORY
from ..gpu import nvidia_smi
from ..release import probes, systemd_unit
from ..watch import metrics_page

EVERY_S = 1.5
PAGE_TIMEOUT_S = 3
# Source: vLLM 0.15.1 to 0.33.0, vllm/v1/metrics/loggers.py.
SERIES = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "kv_cache": "vllm:kv_cache_usage_perc",
    "preemptions": "vllm:num_preemptions_total",
    "tokens": "vllm:generation_tokens_total",
}
# An engine's messages when GPU memory runs out; torch uses both.
GPU_OUT_OF_MEMORY = re.compile(r"CUDA out of memory|OutOfMemoryError")


def sample(engines: list[dict], gpu: bool) -> dict:
    """Return a sample: the figures of each engine by name, host memory and GPU memory."""
    seen = {"time": round(time.monotonic(), 2), "engines": {each["name"]: engine(each["metrics"]) for each in engines}}
    return {**seen, **memory(Path("/proc/meminfo").read_text()), **(gpus() if gpu else {})}


def engine(url: str) -> dict | None:
    """Return an engine's figures without missing series, or None if its metrics do not answer."""
    try:
        status, page = probes.ask(url, timeout=PAGE_TIMEOUT_S)
    except OSError:
        return None
    if status != 200:
        return None
    present = metrics_page.names(page)
    return {key: metrics_page.total(page, name) for key, name in SERIES.items() if name in present}


def memory(meminfo: str) -> dict:
    """Return memory and swap in use, in MiB."""
    rows = (line.split(":", 1) for line in meminfo.splitlines() if ":" in line)
    sizes = {name: int(value.split()[0]) >> 10 for name, value in rows}
    swap = sizes.get("SwapTotal", 0) - sizes.get("SwapFree", 0)
    return {
        "memory_mib": sizes["MemTotal"] - sizes["MemAvailable"],
        "memory_total_mib": sizes["MemTotal"],
        "swap_mib": swap,
    }


def gpus() -> dict:
    """Return memory in use of each GPU in MiB; nothing if the driver does not answer."""
    try:
        found = nvidia_smi.read(PAGE_TIMEOUT_S)["gpus"]
    except nvidia_smi.GpuError:
        return {}
    return {
        "gpu_mib": [each["used_mib"] or 0 for each in found],
        "gpu_total_mib": [each["total_mib"] or 0 for each in found],
    }


def state(units: list[str]) -> dict[str, dict]:
    """Return main process, restarts and OOM kills of each loaded unit, to detect changes."""
    shown = {unit: systemd_unit.show(unit) for unit in units}
    return {
        unit: {"pid": int(live.get("MainPID") or 0), "restarts": int(live.get("NRestarts") or 0), "oom": killed(unit)}
        for unit, live in shown.items()
        if live.get("LoadState") == "loaded"
    }


def killed(unit: str) -> int:
    """Return how many processes of a unit's control group the OOM killer has killed."""
    group = systemd_unit.run(
        "systemctl", "show", unit, "--property", "ControlGroup", "--value", check=False
    ).stdout.strip()
    try:
        events = Path(f"/sys/fs/cgroup{group}/memory.events").read_text() if group else ""
    except OSError:
        return 0
    found = re.search(r"^oom_kill (\d+)$", events, re.MULTILINE)
    return int(found[1]) if found else 0


def events(before: dict[str, dict], after: dict[str, dict], logs: dict[str, list[str]]) -> list[dict]:
    """Return restarts and out-of-memory events: ``{kind: restart or oom, what: a sentence}``.

    logs: lines since the start of the check, by unit, and those of the kernel under "kernel".
    """
    found = []
    for unit, was in before.items():
        now = after.get(unit) or {"pid": 0, "restarts": was["restarts"], "oom": was["oom"]}
        if was["pid"] and (now["restarts"] > was["restarts"] or now["pid"] != was["pid"]):
            what = "has stopped" if not now["pid"] else "restarted"
            found.append({"kind": "restart", "what": f"{unit} {what}"})
        if now["oom"] > was["oom"]:
            found.append({"kind": "oom", "what": f"the OOM killer killed a process of {unit}"})
    for name, lines in logs.items():
        pattern = OUT_OF_MEMORY if name == "kernel" else GPU_OUT_OF_MEMORY
        line = next((line for line in lines if pattern.search(line)), None)
        if line:
            found.append({"kind": "oom", "what": f"{name}: {' '.join(line.split())[:200]}"})
    return found


def logs(units: list[str], begin: float) -> dict[str, list[str]]:
    """Return the log lines of the kernel and of each unit since a Unix time."""
    since = ["--since", f"@{begin:.0f}", "--output", "json", "--output-fields", "MESSAGE", "--quiet", "--no-pager"]
    found = {}
    for name, which in {"kernel": ["--dmesg"], **{unit: ["--unit", unit] for unit in units}}.items():
        out = systemd_unit.run("journalctl", *which, *since, check=False).stdout
        entries = (json.loads(line) for line in out.splitlines() if line.startswith("{"))
        found[name] = [text for entry in entries if isinstance(text := entry.get("MESSAGE"), str)]
    return found


def peaks(samples: list[dict]) -> dict:
    """Return the maximum of each figure, by engine and for the host; for counters the growth."""
    found: dict = {"engines": {}, "samples": len(samples)}
    names = {name for each in samples for name in each["engines"]}
    for name in sorted(names):
        seen = [each["engines"][name] for each in samples if each["engines"].get(name)]
        row = {key: max(one[key] for one in seen if key in one) for key in SERIES if any(key in one for one in seen)}
        for counter in {"preemptions", "tokens"} & row.keys():
            row[counter] = grown([one[counter] for one in seen if counter in one])
        row["unanswered"] = sum(1 for each in samples if name in each["engines"] and each["engines"][name] is None)
        found["engines"][name] = row
    for key in ("memory_mib", "memory_total_mib", "swap_mib"):
        found[key] = max((each[key] for each in samples), default=0)
    for key in ("gpu_mib", "gpu_total_mib"):
        rows = [each[key] for each in samples if key in each]
        found[key] = [max(column) for column in zip(*rows, strict=True)]
    return found


def grown(values: list[float]) -> float:
    """Return how much a counter grew; after a restart it counts from zero."""
    return sum(now - was if now >= was else now for was, now in pairwise(values))
