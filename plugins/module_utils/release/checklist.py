"""Check a finished server from a user's point of view: one row per check, with what was measured.

Each kind takes the options of its check and returns ``(measured, ok)``; it changes nothing. A check that cannot run
gives a row that says why, never an exception.
"""

from __future__ import annotations

import concurrent.futures
import ipaddress
import json
import socket
import time
from pathlib import Path

from ..engines import engine_states, vllm_api
from ..errors import UserError
from ..gpu import nvidia_driver, nvidia_smi
from ..host import host_tuning, swap_file
from ..install import keyring_repository
from ..watch import log_shipping, metrics_page
from . import checks, leftovers, probes, systemd_unit
from .description import unit_text
from .store import Service

AT_ONCE = 8
# Kinds that wait start first, also because other checks add lines to the logs that they read.
WAITING = {"journal_job", "file_job", "collector_journal", "collector_files", "remote_write", "watchdog"}
LATELY = 10  # minutes
CRASHES = 3
LATE = 30  # seconds that a look of the watchdog may take
PLANS = Path("/var/lib/llm-server/metrics")
APT_LISTS = Path("/var/lib/apt/lists")
LISTED = 4  # sockets or targets named in a row
REMOTE_WRITE = ("blocks_sent_total", "pending_data_bytes", "packets_dropped_total")


def http(
    url: str, status: int = 200, bearer: str | None = None, timeout: float = 5, contains: str = "", user: str = "",
    password: str = "",
) -> tuple[str, bool]:  # fmt: skip
    """The URL answers with ``status`` and a text that contains ``contains``."""
    seen, text = probes.ask(url, bearer, timeout=timeout, headers=probes.login(user, password))
    good = seen == status and contains in text
    return (str(seen), True) if good else (f"{seen}: {shortened(text)}", False)


def remote_write(url: str, watched: float = 20, timeout: float = 5) -> tuple[str, bool]:
    """The vmagent at the base ``url`` scrapes every target and delivers the samples; nothing waits or is dropped.

    It has ``watched`` seconds for that: after a start the first scrape of a target comes within the interval. Earlier
    drops are reported, but only drops during the check make the row red.
    """
    deadline, dropped = time.monotonic() + watched, None
    while True:
        told = json.loads(probes.ask(f"{url}/api/v1/targets", timeout=timeout)[1])["data"]["activeTargets"]
        down = [target["labels"]["job"] for target in told if target["health"] != "up" and not _away(target)]
        page = probes.ask(f"{url}/metrics", timeout=timeout)[1]
        sent, waiting, lost = (metrics_page.total(page, f"vmagent_remotewrite_{name}") for name in REMOTE_WRITE)
        dropped = lost if dropped is None else dropped
        good = bool(sent) and not waiting and not down and lost == dropped
        if good or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    measured = f"{len(told)} targets, {sent:.0f} blocks sent, {waiting / (1 << 10):.0f} KiB wait, {lost:.0f} dropped"
    return measured + f"; not scraped: {', '.join(sorted(set(down))[:LISTED])}" * bool(down), good


def _away(target: dict) -> bool:
    """Return whether a target is an engine that does not serve because another one of its group does."""
    return target["labels"].get("service") in engine_states.away()


def models(
    url: str, expected: list[str], bearer: str | None = None, max_model_len: int | None = None, timeout: float = 5
) -> tuple[str, bool]:
    """``<url>/models`` lists exactly ``expected``, the base model first, with the given context length."""
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


def at_once(questions: list[dict]) -> tuple[str, bool]:
    """All engines answer a prompt at the same time; each question has the options of the probe ``completion``.

    The API key is read from ``bearer_file`` and ``bearer_variable``.
    """
    start = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(len(questions)) as pool:
        failures = list(pool.map(lambda asked: probes.first_failure([{"completion": asked}]), questions))
    told = next(filter(None, failures), None)
    return (told, False) if told else (f"{len(questions)} answered within {time.monotonic() - start:.2f} s", True)


def gpu_memory(units: list[str], others_mib: int) -> tuple[str, bool]:
    """Each of ``units`` holds GPU memory within its plan, and all other processes less than ``others_mib``.

    The plan is what the roles wrote for node_exporter. A unit without a plan is only reported.
    """
    try:
        found = nvidia_smi.read()["gpus"]
    except nvidia_smi.GpuError as error:
        return str(error), False
    held = {unit: sum(nvidia_smi.memory_of_units(card, [unit]) for card in found) for unit in units}
    others = sum(card["used_mib"] or 0 for card in found) - sum(held.values())
    told, good = [f"others {others} MiB"], others < others_mib
    for unit, used in held.items():
        name = unit.removesuffix(".service")
        most = planned_max_mib(name)
        good = good and (most is None or used <= most)
        told.append(f"{name} {used} MiB" + (f" of at most {most:.0f}" if most is not None else ""))
    return "; ".join(told), good


def planned_max_mib(name: str, folder: Path = PLANS) -> float | None:
    """Return the maximum MiB that an engine was planned to hold on its GPU, or None if it has no plan."""
    try:
        page = (folder / f"gpu_memory_{name}.prom").read_text(encoding="utf-8")
    except OSError:
        return None
    total = metrics_page.total(page, "llm_gpu_planned_max_bytes")
    return total / (1 << 20) if total else None


def chat(
    url: str, model: str, prompt: str, bearer: str | None = None, max_tokens: int = 12, timeout: float = 60
) -> tuple[str, bool]:
    """``model`` answers a streamed chat; the row shows the answer and the number of chunks."""
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
    """The Prometheus page has all of ``series``."""
    failure = probes.metric(url, series, timeout)
    return (failure, False) if failure else (f"{len(series)} series asked for, all there", True)


def unit(name: str) -> tuple[str, bool]:
    """The unit runs, is enabled, is what was written, and is not in a crash loop.

    One crash and a recovery is what systemd's Restart is for. A service that crashes CRASHES times within LATELY
    minutes is in a loop, even if it happens to run at this moment.
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
    """Return where systemd's unit, or the file of a unit written here, differs from what was written."""
    faults = []
    if live.get("NeedDaemonReload") == "yes":
        faults.append("systemd has not read its files since they changed")
    service = Service(name.removesuffix(".service"))
    release = service.release(service.state()["current"])
    if not release:
        return [*faults, *(["it is masked"] if live.get("LoadState") == "masked" else [])]
    faults += checks.altered(service, release)[0]
    if not service.unit_path.is_file() or service.unit_path.read_text(errors="replace") != unit_text(release):
        faults.append(f"{service.unit_path} is not what was written")
    if release.get("limits") and systemd_unit.unscored(name):
        faults.append("its processes have a different OOM score than the unit")
    if live.get("FragmentPath") not in (str(service.unit_path), ""):
        faults.append(f"systemd has it from {live.get('FragmentPath')}")
    return faults


def sockets(name: str, declared: list[str]) -> tuple[str, bool | None]:
    """The unit is reachable from other machines only at the ``declared`` addresses, such as 10.0.0.4:9100.

    Everything else that listens on the machine's outer address must be blocked by the unit's filter. None if there is
    a filter but systemd cannot enforce it.
    """
    seen = systemd_unit.listening(name)
    own = [_socket(each) for each in declared]
    stray = [each for each in seen if not _loopback(each["address"]) and not any(_covers(one, each) for one in own)]
    filtered = systemd_unit.address_filter(name)
    closed = filtered["in_force"] and filtered["allowed"] is not None and all(map(_loopback, filtered["allowed"]))
    with concurrent.futures.ThreadPoolExecutor() as pool:  # each waits for a second if the port is blocked
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
    """Return whether a TCP socket accepts a connection at the machine's outer address, which a filter would block."""
    address = ipaddress.ip_address(seen["address"])
    # A socket that listens on all IPv6 addresses usually accepts IPv4 too.
    versions = ([4, 6] if address.version == 6 else [4]) if address.is_unspecified else []
    for place in versions or [str(address)] if seen["protocol"] == "tcp" else []:
        try:
            with socket.create_connection((_outer(place) if versions else place, seen["port"]), 1):
                return True
        except OSError:
            continue
    return False


def _outer(version: int) -> str:
    """Return the address from which this machine would connect to another one; nothing is sent."""
    family, far = (socket.AF_INET, "192.0.2.1") if version == 4 else (socket.AF_INET6, "2001:db8::1")
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((far, 9))
        return probe.getsockname()[0]


def rules(url: str, wait: float = 40, timeout: float = 5) -> tuple[str, bool]:
    """The vmalert at ``url`` has loaded its rules, and the store answers all of them.

    A rule may have failed because the store was being restarted: it gets ``wait`` seconds until its next evaluation.
    """
    deadline = time.monotonic() + wait
    while True:
        seen, page = probes.ask(f"{url}/metrics", timeout=timeout)
        if seen != 200:
            return f"{seen}: {shortened(page)}", False
        _, text = probes.ask(f"{url}/api/v1/rules", timeout=timeout)
        every = [rule for group in json.loads(text)["data"]["groups"] for rule in group["rules"]]
        failing = [rule for rule in every if rule.get("lastError")]
        if not failing or time.monotonic() > deadline:
            break
        time.sleep(1)
    firing = sum(rule.get("state") == "firing" for rule in every)
    told = [f"{len(every)} rules, {firing} alerts fire"]
    unread = not metrics_page.total(page, "vmalert_config_last_reload_successful")
    if unread:
        told.append("the file that is there could not be read, those of before are in force")
    if failing:
        told.append(f"{len(failing)} fail, such as {failing[0]['name']}: {shortened(failing[0]['lastError'], 200)}")
    return "; ".join(told), bool(every) and not unread and not failing


def notices(url: str, watched: float = 3, timeout: float = 5) -> tuple[str, bool]:
    """The Alertmanager at ``url`` is ready and delivers.

    Earlier failed notifications are reported, but only failures during the check make the row red.
    """
    counts: list[float] = []
    while True:
        seen, text = probes.ask(f"{url}/metrics", timeout=timeout)
        if seen != 200:
            return f"{seen}: {shortened(text)}", False
        sent, failed = (metrics_page.total(text, f"alertmanager_notifications_{name}total") for name in ("", "failed_"))
        counts.append(failed)
        if not failed or len(counts) > 1:
            active = metrics_page.total(text, "alertmanager_alerts")
            told = f"{active:.0f} alerts held, {sent - failed:.0f} notices delivered, {failed:.0f} failed"
            return told, counts[0] == failed
        time.sleep(watched)


def watchdog(path: str, interval: float) -> tuple[str, bool]:
    """The watchdog looks every ``interval`` seconds, finds that what runs also serves, and needs no person.

    ``path`` is its page of metrics. A service that was just started is found serving by the next look.
    """
    deadline = time.monotonic() + 2 * interval + LATE
    while True:
        page = Path(path).read_text()
        age = time.time() - metrics_page.total(page, "llm_watchdog_last_look_seconds")
        up, ready, needed = (
            metrics_page.by_label(page, f"llm_watchdog_{name}", "unit") for name in ("up", "ready", "person_needed")
        )
        unseen = [unit for unit in up if up[unit] > ready[unit]]
        lost = [unit for unit in needed if needed[unit]]
        ok = age <= 2 * interval + LATE and not unseen and not lost
        if ok or lost or time.monotonic() > deadline:
            break
        time.sleep(1)
    restarts = metrics_page.total(page, "llm_watchdog_restarts_total")
    measured = (
        f"looked {age:.0f} s ago at {len(up)} services, {sum(up.values()):.0f} run, {restarts:.0f} restarts since boot"
    )
    planned = metrics_page.total(page, "llm_watchdog_planned_restarts_total") or 0
    measured += f", {planned:.0f} planned" * bool(planned)
    measured += f"; not seen to serve: {', '.join(unseen)}" * bool(unseen)
    return measured + f"; a person is needed: {', '.join(lost)}" * bool(lost), ok


def timer(name: str) -> tuple[str, bool]:
    """The timer is active, and the unit that it starts has not failed."""
    names = "ActiveState,NextElapseUSecRealtime,Unit,NeedDaemonReload"
    out = systemd_unit.run("systemctl", "show", name, "--property", names, check=False).stdout
    live = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    failed = systemd_unit.show(live.get("Unit") or name).get("ActiveState") == "failed"
    measured = f"{live.get('ActiveState')}, next at {live.get('NextElapseUSecRealtime') or 'an unknown time'}"
    measured += f"; {live.get('Unit')} failed" * failed
    stale = live.get("NeedDaemonReload") == "yes"
    measured += "; systemd has not reloaded its changed unit file" * stale
    return measured, live.get("ActiveState") == "active" and not failed and not stale


def backup(
    age_hours: float, state: str = "/var/lib/llm-backup/state.json", timer: str = "llm-backup.timer"
) -> tuple[str, bool]:
    """The last backup succeeded and is not too old, its timer runs, and the last check found no damage.

    ``state`` is the state file of the backup program. A new machine has the same time for its first backup.
    """
    noted = json.loads(Path(state).read_text())
    run, good, check = (noted.get(name) or {} for name in ("run", "good", "check"))
    if good:
        size = f"{good['files']} files, {good['added'] / (1 << 20):.1f} MiB added in {good['seconds']:.0f} s"
        measured = f"{_ago(good['at'])}: snapshot {good['snapshot']}, {size}"
    else:
        measured = "none yet on this machine"
    since = good.get("at") or (noted.get("repository") or {}).get("since") or 0
    problems = [f"older than {age_hours:.0f} h"] if time.time() - since > age_hours * 3600 else []
    if run and not run["ok"]:
        problems.append(f"the last one, {_ago(run['at'])}, failed: {run['why']}")
    if check and not check["ok"]:
        problems.append(f"the check of the repository, {_ago(check['at'])}, failed: {check['why']}")
    if systemd_unit.show(timer).get("ActiveState") != "active":
        problems.append(f"{timer} does not run")
    return "; ".join([measured, *problems]), not problems


def _ago(moment: float) -> str:
    """Return how long ago a Unix time was, as text."""
    minutes = max(0, time.time() - moment) / 60
    return f"{minutes:.0f} min ago" if minutes < 120 else f"{minutes / 60:.0f} h ago"


def pushes(url: str, watched: float = 3, timeout: float = 5) -> tuple[str, bool]:
    """The log shipper at the metrics page ``url`` has sent lines and drops none.

    Earlier losses are reported, but only lines lost during the check make the row red.
    """
    counts: list[float] = []
    while True:
        seen, text = probes.ask(url, timeout=timeout)
        if seen != 200:
            return f"{seen}: {shortened(text)}", False
        sent, dropped = (metrics_page.total(text, f"promtail_{name}_entries_total") for name in ("sent", "dropped"))
        counts.append(dropped)
        if not dropped or len(counts) > 1:
            return f"{sent:.0f} lines sent, {dropped:.0f} dropped", sent > 0 and counts[0] == dropped
        time.sleep(watched)


def journal_job(
    url: str, job: str, unit: str, labels: dict, other_units: list[str], rewrites: bool, metrics: str, positions: str,
    user: str = "", password: str = "", bearer: str = "", tenant: str = "", wait: float = 20,
) -> tuple[str, bool]:  # fmt: skip
    """A line written now in the name of ``unit`` reaches Loki at ``url``; see `log_shipping.journal_job`."""
    loki = log_shipping.Loki(url, user, password, bearer, tenant)
    shipper = log_shipping.Shipper(positions, metrics)
    return log_shipping.journal_job(loki, shipper, job, unit, labels, other_units, rewrites, wait)


def file_job(
    url: str, path: str, labels: dict, rewrites: bool, metrics: str, positions: str,
    user: str = "", password: str = "", bearer: str = "", tenant: str = "", wait: float = 20,
) -> tuple[str, bool]:  # fmt: skip
    """The files of a glob are read to the end and their last line is in Loki; see `log_shipping.file_job`."""
    loki = log_shipping.Loki(url, user, password, bearer, tenant)
    return log_shipping.file_job(loki, log_shipping.Shipper(positions, metrics), path, labels, rewrites, wait)


def collector_queue(url: str, watched: float = 5) -> tuple[str, bool]:
    """The collector at the metrics page ``url`` sends what is in its queue; see `log_shipping.queue`."""
    return log_shipping.queue(log_shipping.Collector(url), watched)


def collector_journal(
    url: str, host: str, job: str, unit: str, service: str, metrics: str,
    user: str = "", password: str = "", bearer: str = "", authorities: str = "", wait: float = 20,
) -> tuple[str, bool | None]:  # fmt: skip
    """A line written now in the name of ``unit`` reaches ``url``; see `log_shipping.collected_unit`."""
    receiver = log_shipping.Receiver(url, user, password, bearer, authorities)
    collector = log_shipping.Collector(metrics)
    attributes = {"host.name": host, "service.name": service, "job": job}
    return log_shipping.collected_unit(receiver, collector, job, unit, attributes, wait)


def collector_files(
    url: str, host: str, job: str, path: str, service: str, metrics: str,
    user: str = "", password: str = "", bearer: str = "", authorities: str = "", wait: float = 20,
) -> tuple[str, bool | None]:  # fmt: skip
    """The last line of the newest file of a glob reached ``url``; see `log_shipping.collected_files`."""
    receiver = log_shipping.Receiver(url, user, password, bearer, authorities)
    collector = log_shipping.Collector(metrics)
    attributes = {"host.name": host, "service.name": service, "job": job}
    return log_shipping.collected_files(receiver, collector, job, path, attributes, wait)


def gpu(name: str = "", driver: str = "") -> tuple[str, bool]:
    """The driver answers, is of the branch ``driver`` (580), and the first GPU is a ``name``; any if empty."""
    try:
        found = nvidia_smi.read()
    except nvidia_smi.GpuError as error:
        return str(error), False
    first = found["gpus"][0]
    good = name in first["name"] and f"{found['driver_version']}.".startswith(f"{driver}." if driver else "")
    return f"{first['name']}, {first['total_mib']} MiB, driver {found['driver_version']}", good


def driver() -> tuple[str, bool]:
    """The driver answers, has the version of its library, and the kernel of the next boot has its module."""
    try:
        found = nvidia_driver.read()
    except nvidia_smi.GpuError as error:
        return str(error), False
    library = found["library_version"] or "unknown"
    return "; ".join([f"{found['driver_version']}, library {library}", *found["warnings"]]), not found["warnings"]


def device_nodes() -> tuple[str, bool]:
    """The device nodes of every GPU and of CUDA's unified memory exist."""
    try:
        count = len(nvidia_smi.read()["gpus"])
    except nvidia_smi.GpuError as error:
        return str(error), False
    missing = nvidia_driver.missing_nodes(count)
    return (f"{', '.join(missing)} not there", False) if missing else (f"those of {count} GPUs", True)


def swap(path: str, size_mib: int) -> tuple[str, bool]:
    """The swap file is in use with its declared size."""
    sizes = {name: size >> 20 for name, (size, _) in swap_file.Host().active().items()}
    if path not in sizes:
        return f"{path} is not in use", False
    return f"{sizes[path]} MiB", abs(sizes[path] - size_mib) <= 1


def apt_repository(source: str, uri: str) -> tuple[str, bool]:
    """The apt source file ``source`` registers the repository at ``uri``, and apt has its index."""
    try:
        text = Path(source).read_text()
    except OSError:
        return f"{source} is not there", False
    if not any((entry := keyring_repository.ENTRY.match(line)) and entry[1] == uri for line in text.splitlines()):
        return f"{uri} is not in {source}", False
    ages = [path.stat().st_mtime for path in APT_LISTS.glob(f"{keyring_repository.list_name(uri)}Packages*")]
    return (f"registered, index of {_ago(max(ages))}", True) if ages else (f"apt has no index of {uri}", False)


def tuning(**wanted) -> tuple[str, bool]:
    """The settings of kernel and GPU, options of `host_tuning.Wanted`, are in effect now and at the next boot."""
    try:
        seen = host_tuning.change(host_tuning.Host(), host_tuning.Wanted(**wanted))
    except UserError as error:
        return str(error), False
    faults = [*seen.differences(), *seen.warnings()]
    return "; ".join(faults) or f"{seen.settings} in force and at boot", not faults


def disk(free_mib: int) -> tuple[str, bool]:
    """Each disk that the services use has ``free_mib`` MiB free."""
    free = leftovers.free_space()
    return ", ".join(f"{mib} MiB free on {point}" for point, mib in free.items()), min(free.values()) >= free_mib


_CHECKS = (
    http, models, completion, at_once, gpu_memory, chat, metric, unit, sockets, pushes, remote_write, journal_job,
    file_job, collector_queue, collector_journal, collector_files, gpu, driver, device_nodes, swap, apt_repository,
    tuning, disk, watchdog, timer, backup, rules, notices,
)  # fmt: skip
KINDS = {function.__name__: function for function in _CHECKS}


def rows(checks: list[dict]) -> list[dict]:
    """Return the row of each check, in order. Several run at a time, those first that wait for something."""
    starting = sorted(range(len(checks)), key=lambda number: checks[number]["kind"] not in WAITING)
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        running = {number: pool.submit(run, checks[number]) for number in starting}
    return [running[number].result() for number in range(len(checks))]


def run(check: dict) -> dict:
    """Return the row of one check: ``{what, measured, ok, cure}``; ``cure`` is empty if it is ok."""
    try:
        measured, ok = KINDS[check["kind"]](**check["options"])
    except (OSError, ValueError, KeyError, TypeError, UserError) as error:
        where = f"{check['options']['url']}: " if "url" in check["options"] else ""
        measured, ok = f"{where}{error}", False
    return {"what": check["what"], "measured": measured, "ok": ok, "cure": check.get("cure", "") if ok is False else ""}


def shortened(text: str, limit: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= limit else text[: limit - 1] + "…"
