"""Look at a finished server from where a user stands: one row a check, with what was measured.

Each kind takes the options of its check and returns ``(measured, ok)``; it changes nothing. A check that cannot be made
at all is a row that says why, never an exception.
"""

from __future__ import annotations

import json
import time
import urllib.parse
import urllib.request
from pathlib import Path

from . import nvidia_driver, nvidia_smi, probes, systemd_unit, vllm_api

LATELY = 10  # minutes
CRASHES = 3


def http(url: str, status: int = 200, bearer: str | None = None, timeout: float = 5) -> tuple[str, bool]:
    """The URL answers with ``status``."""
    seen, text = probes.ask(url, bearer, timeout=timeout)
    return (str(seen), True) if seen == status else (f"{seen}: {shortened(text)}", False)


def models(
    url: str, expected: list[str], bearer: str | None = None, max_model_len: int | None = None, timeout: float = 5
) -> tuple[str, bool]:
    """``<url>/models`` lists exactly ``expected``, the base model first, and the longest text it was given."""
    failure = probes.models(url, expected, bearer, max_model_len, timeout)
    length = f"; up to {max_model_len} tokens" if max_model_len else ""
    return (failure, False) if failure else (", ".join(expected) + length, True)


def completion(
    url: str, model: str, prompt: str, bearer: str | None = None, max_tokens: int = 12, timeout: float = 60
) -> tuple[str, bool]:
    """``model`` answers ``prompt``; the row shows the answer and how long it took."""
    body = {"model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0}
    start = time.monotonic()
    seen, text = probes.ask(f"{url}/completions", bearer, body, timeout)
    if seen != 200:
        return f"{seen}: {shortened(text)}", False
    answer = json.loads(text)
    return f"{shortened(answer['choices'][0]['text'])!r} in {time.monotonic() - start:.2f} s", bool(
        answer["usage"]["completion_tokens"]
    )


def chat(
    url: str, model: str, prompt: str, bearer: str | None = None, max_tokens: int = 12, timeout: float = 60
) -> tuple[str, bool]:
    """``model`` answers a streamed chat; the row shows the answer and the number of pieces it came in."""
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "max_tokens": max_tokens, "stream": True}
    seen, text = probes.ask(f"{url}/chat/completions", bearer, {**body, "temperature": 0}, timeout)
    if seen != 200:
        return f"{seen}: {shortened(text)}", False
    events = vllm_api.events(text)
    chunks = [json.loads(event) for event in events if event != "[DONE]"]
    broken = next((chunk["error"] for chunk in chunks if chunk.get("error")), None)
    if broken:
        said = broken.get("message") if isinstance(broken, dict) else broken
        return f"error in the stream: {shortened(str(said))}", False
    pieces = [chunk["choices"] for chunk in chunks]
    said = "".join(choice["delta"].get("content") or "" for choices in pieces for choice in choices)
    return f"{shortened(said)!r} in {len(pieces)} pieces", bool(pieces) and events[-1] == "[DONE]"


def metric(url: str, series: list[str], timeout: float = 5) -> tuple[str, bool]:
    """The Prometheus page has every one of ``series``."""
    failure = probes.metric(url, series, timeout)
    return (failure, False) if failure else (f"{len(series)} series asked for, all there", True)


def unit(name: str) -> tuple[str, bool]:
    """The unit runs, is enabled and does not die again and again.

    A service that died and has served since is what systemd's Restart is for; one that dies CRASHES times within
    LATELY minutes is in a loop, even if it happens to run at this moment.
    """
    live = systemd_unit.show(name)
    state, enabled = live.get("ActiveState"), live.get("UnitFileState") or "not there"
    restarts = int(live.get("NRestarts") or 0)
    lately = min(restarts, systemd_unit.restarts(name, LATELY)) if restarts else 0
    measured = f"{state}, {enabled}, {restarts} restarts" + f", {lately} in {LATELY} min" * bool(restarts)
    return measured, state == "active" and enabled == "enabled" and lately < CRASHES


def pushes(url: str, watched: float = 3, timeout: float = 5) -> tuple[str, bool]:
    """The log shipper at the metrics page ``url`` has sent lines and drops none.

    Lines that were lost in the past are told, but only those lost while this looks make the row red.
    """
    counts: list[float] = []
    while True:
        seen, text = probes.ask(url, timeout=timeout)
        if seen != 200:
            return f"{seen}: {shortened(text)}", False
        sent, dropped = (total(text, f"promtail_{name}_entries_total") for name in ("sent", "dropped"))
        counts.append(dropped)
        if not dropped or len(counts) > 1:
            return f"{sent:.0f} lines sent, {dropped:.0f} dropped", sent > 0 and counts[0] == dropped
        time.sleep(watched)


def total(page: str, name: str) -> float:
    """Return the sum of all series of one metric on a Prometheus page."""
    # Of what follows the labels the first is the value; a time may follow.
    lines = (line for line in page.split("\n") if line.startswith((f"{name}{{", f"{name} ")))
    return sum(float(line.removeprefix(name).rpartition("}")[2].split()[0]) for line in lines)


def loki(url: str, host: str, service: str, other_units: list[str], wait: float = 20, timeout: float = 5):
    """Loki has lines of ``service`` from ``host`` within the last hour, and none of them comes from another unit."""
    query = urllib.parse.urlencode(
        {"query": f'{{host="{host}",service="{service}"}}', "since": "1h", "limit": "500", "direction": "backward"}
    )
    deadline = time.monotonic() + wait
    while True:
        seen, text = probes.ask(f"{url}/loki/api/v1/query_range?{query}", timeout=timeout)
        if seen != 200:
            return f"{seen}: {shortened(text)}", False
        streams = json.loads(text)["data"]["result"]
        lines = sum(len(stream["values"]) for stream in streams)
        if lines or time.monotonic() > deadline:
            break
        time.sleep(1)
    foreign = sorted({stream["stream"].get("unit", "") for stream in streams} & set(other_units))
    if foreign:
        return f"{lines} lines, mixed with {', '.join(foreign)}", False
    return f"{lines} lines", lines > 0


def gpu(name: str = "", driver: str = "") -> tuple[str, bool]:
    """The driver answers, is of the branch ``driver`` (580), and the first GPU is called ``name``; any when empty."""
    try:
        found = nvidia_smi.read()
    except nvidia_smi.GpuError as error:
        return str(error), False
    first = found["gpus"][0]
    good = name in first["name"] and f"{found['driver_version']}.".startswith(f"{driver}." if driver else "")
    return f"{first['name']}, {first['total_mib']} MiB, driver {found['driver_version']}", good


def driver() -> tuple[str, bool]:
    """The driver answers, is of the version of its library, and the kernel of the next boot has its module."""
    try:
        found = nvidia_driver.read()
    except nvidia_smi.GpuError as error:
        return str(error), False
    library = found["library_version"] or "unknown"
    return "; ".join([f"{found['driver_version']}, library {library}", *found["warnings"]]), not found["warnings"]


def device_nodes() -> tuple[str, bool]:
    """The device nodes of every GPU and of CUDA's unified memory are there."""
    try:
        count = len(nvidia_smi.read()["gpus"])
    except nvidia_smi.GpuError as error:
        return str(error), False
    missing = nvidia_driver.missing_nodes(count)
    return (f"{', '.join(missing)} not there", False) if missing else (f"those of {count} GPUs", True)


def swap(path: str, megabytes: int) -> tuple[str, bool]:
    """The swap file is in use with its declared size."""
    rows = [row.split() for row in Path("/proc/swaps").read_text().splitlines()[1:]]
    sizes = {row[0]: int(row[2]) // 1024 for row in rows}
    if path not in sizes:
        return f"{path} is not in use", False
    return f"{sizes[path]} MiB", abs(sizes[path] - megabytes) <= 1


_CHECKS = (http, models, completion, chat, metric, unit, pushes, loki, gpu, driver, device_nodes, swap)
KINDS = {function.__name__: function for function in _CHECKS}


def run(check: dict) -> dict:
    """Return the row of one check: ``{what, measured, ok, cure}``; ``cure`` only where it is not ok."""
    try:
        measured, ok = KINDS[check["kind"]](**check["options"])
    except (OSError, ValueError, KeyError, TypeError, systemd_unit.SystemdError) as error:
        where = f"{check['options']['url']}: " if "url" in check["options"] else ""
        measured, ok = f"{where}{error}", False
    return {"what": check["what"], "measured": measured, "ok": ok, "cure": "" if ok else check.get("cure", "")}


def shortened(text: str, limit: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
