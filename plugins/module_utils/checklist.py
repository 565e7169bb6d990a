"""Look at a finished server from where a user stands: one row a check, with what was measured.

Each kind takes the options of its check and returns ``(measured, ok)``; it changes nothing. A check that cannot be made
at all is a row that says why, never an exception.
"""

from __future__ import annotations

import concurrent.futures
import ipaddress
import json
import socket
import time
import urllib.parse
import urllib.request
from pathlib import Path

from . import nvidia_driver, nvidia_smi, probes, service_release, systemd_unit

LATELY = 10  # minutes
CRASHES = 3
LISTED = 4  # sockets named in a row


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
    events = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    pieces = [json.loads(event)["choices"] for event in events if event != "[DONE]"]
    said = "".join(choice["delta"].get("content") or "" for choices in pieces for choice in choices)
    return f"{shortened(said)!r} in {len(pieces)} pieces", bool(pieces) and events[-1] == "[DONE]"


def metric(url: str, series: list[str], timeout: float = 5) -> tuple[str, bool]:
    """The Prometheus page has every one of ``series``."""
    failure = probes.metric(url, series, timeout)
    return (failure, False) if failure else (f"{len(series)} series asked for, all there", True)


def unit(name: str) -> tuple[str, bool]:
    """The unit runs, is enabled, is what was written, and does not die again and again.

    A service that died and has served since is what systemd's Restart is for; one that dies CRASHES times within
    LATELY minutes is in a loop, even if it happens to run at this moment.
    """
    live = systemd_unit.show(name)
    state, enabled = live.get("ActiveState"), live.get("UnitFileState") or "not there"
    restarts = int(live.get("NRestarts") or 0)
    lately = min(restarts, systemd_unit.restarts(name, LATELY)) if restarts else 0
    measured = f"{state}, {enabled}, {restarts} restarts" + f", {lately} in {LATELY} min" * bool(restarts)
    faults = unit_faults(name, live)
    good = state == "active" and enabled == "enabled" and lately < CRASHES and not faults
    return "; ".join([measured, *faults]), good


def unit_faults(name: str, live: dict) -> list[str]:
    """Say where systemd's unit, or the file of one that was written here, is another than what was written."""
    faults = []
    if live.get("NeedDaemonReload") == "yes":
        faults.append("systemd has not read its files since they changed")
    service = service_release.Service(name.removesuffix(".service"))
    release = service.release(service.state()["current"])
    if not release:
        return [*faults, *(["it is masked"] if live.get("LoadState") == "masked" else [])]
    faults += service.altered(release)[0]
    if not service.unit_path.is_file() or service.unit_path.read_text(errors="replace") != release["unit"]:
        faults.append(f"{service.unit_path} is not what was written")
    if live.get("FragmentPath") not in (str(service.unit_path), ""):
        faults.append(f"systemd has it from {live.get('FragmentPath')}")
    return faults


def sockets(name: str, declared: list[str]) -> tuple[str, bool | None]:
    """The unit can be reached from another machine at nothing but the ``declared`` addresses, such as 10.0.0.4:9100.

    What listens on the machine's outer address besides must be closed by the unit's filter; None where there is one
    and systemd cannot put it into force.
    """
    seen = systemd_unit.listening(name)
    own = [_socket(each) for each in declared]
    stray = [each for each in seen if not _loopback(each["address"]) and not any(_covers(one, each) for one in own)]
    filtered = systemd_unit.address_filter(name)
    closed = filtered["in_force"] and filtered["allowed"] is not None and all(map(_loopback, filtered["allowed"]))
    with concurrent.futures.ThreadPoolExecutor() as pool:  # each waits for a second where it is closed
        answers = list(pool.map(_answers, stray))
    reachable = [each for each, answered in zip(stray, answers, strict=True) if answered or not closed]
    powerless = filtered["allowed"] is not None and not filtered["in_force"]
    told = [f"{len(seen)} sockets" if len(seen) != 1 else "1 socket"]
    if stray and not reachable:
        told.append(f"{len(stray)} closed by the unit's filter")
    if powerless:
        told.append("systemd cannot filter addresses on this machine (no BPF for control groups)")
    if reachable:
        places = [f"{each['protocol']} {_place(each)}" for each in reachable]
        told.append(f"reachable from outside: {', '.join(places[:LISTED])}" + ", …" * (len(places) > LISTED))
    return "; ".join(told), False if reachable else None if powerless else True


def _socket(text: str) -> dict:
    address, _, port = text.rpartition(":")
    return {"address": {"localhost": "127.0.0.1"}.get(address, address.strip("[]")), "port": int(port)}


def _covers(declared: dict, seen: dict) -> bool:
    everywhere = ipaddress.ip_address(declared["address"]).is_unspecified
    return seen["port"] == declared["port"] and (everywhere or seen["address"] == declared["address"])


def _loopback(address: str) -> bool:
    return ipaddress.ip_network(address, strict=False).is_loopback


def _place(seen: dict) -> str:
    return f"[{seen['address']}]:{seen['port']}" if ":" in seen["address"] else f"{seen['address']}:{seen['port']}"


def _answers(seen: dict) -> bool:
    """Say whether a TCP socket takes a connection by the machine's outer address, which a filter would not let in."""
    address = ipaddress.ip_address(seen["address"])
    # What listens on every address of IPv6 mostly does so on those of IPv4 too.
    versions = ([4, 6] if address.version == 6 else [4]) if address.is_unspecified else []
    for place in versions or [str(address)] if seen["protocol"] == "tcp" else []:
        try:
            with socket.create_connection((_outer(place) if versions else place, seen["port"]), 1):
                return True
        except OSError:
            continue
    return False


def _outer(version: int) -> str:
    """Return the address by which this machine would reach another one; nothing is sent."""
    family, far = (socket.AF_INET, "192.0.2.1") if version == 4 else (socket.AF_INET6, "2001:db8::1")
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((far, 9))
        return probe.getsockname()[0]


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
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith((f"{name}{{", f"{name} "))
    )


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


_CHECKS = (http, models, completion, chat, metric, unit, sockets, pushes, loki, gpu, driver, device_nodes, swap)
KINDS = {function.__name__: function for function in _CHECKS}


def run(check: dict) -> dict:
    """Return the row of one check: ``{what, measured, ok, cure}``; ``cure`` only where it is not ok."""
    try:
        measured, ok = KINDS[check["kind"]](**check["options"])
    except (OSError, ValueError, KeyError, TypeError, systemd_unit.SystemdError) as error:
        where = f"{check['options']['url']}: " if "url" in check["options"] else ""
        measured, ok = f"{where}{error}", False
    return {"what": check["what"], "measured": measured, "ok": ok, "cure": check.get("cure", "") if ok is False else ""}


def shortened(text: str, limit: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
