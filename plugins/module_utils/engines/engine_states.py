"""Which engines of a host should not serve now; how one is stopped, put to sleep and woken up.

At most one engine of a group runs. The others are in a record on the host, which ai-server, the watchdog and the
playbooks read. An engine that is not in it serves. The record is written before the engine is touched, so that the next
run completes one that was interrupted between the two. Plain Python.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from .. import host_text
from ..errors import UserError
from ..gpu import nvidia_smi
from ..release import probes, systemd_unit
from .engines import resting

NOTE = "/var/lib/llm-server/engines.json"
# For node_exporter: an engine that is away on purpose raises no alert.
METRICS = "/var/lib/llm-server/metrics/engines.prom"
AWAY = ("stopped", "asleep")
# MiB that a sleeping engine may keep on each GPU; 925 were measured (docs/gpu-memory.md, "Sleep mode").
KEPT_MIB = 2048
# Tolerance in MiB for a GPU's use while an engine leaves: other engines and the driver allocate meanwhile.
SLACK_MIB = 256
FREED_WITHIN = 60  # seconds; 0.6 s were measured after a stop, 1.7 s in sleep mode
ANSWER_WITHIN = 300  # seconds for one request: tens of GiB of weights are copied to the host's memory
NO_GPU = ("no_nvidia_smi", "no_driver", "no_gpu")


class EngineStateError(UserError):
    """An engine could not be brought into a state; the text says why and what to do."""


class Host(host_text.Tree):
    """The machine: its files, systemd, GPUs and engines."""

    def show(self, unit: str) -> dict:
        return systemd_unit.show(unit)

    def run(self, *argv: str, timeout: float = 120) -> None:
        systemd_unit.run(*argv, timeout=timeout)

    def gpus(self) -> list[dict]:
        """Return the GPUs with their processes; [] if the host has no GPU."""
        try:
            return nvidia_smi.read()["gpus"]
        except nvidia_smi.GpuError as error:
            if error.kind in NO_GPU:
                return []
            raise EngineStateError(str(error)) from None

    def ask(self, url: str, key: str, body: dict | None = None, post: bool = True) -> tuple[int, str]:
        """Return ``(status, text)`` of a request; a POST without ``body`` has an empty body."""
        return probes.ask(url, key, ({} if body is None else body) if post else None, timeout=ANSWER_WITHIN)

    def secret(self, file: str, variable: str) -> str:
        return probes.secret(file, variable)

    def now(self) -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

    clock: Callable[[], float] = staticmethod(time.monotonic)
    sleep: Callable[[float], None] = staticmethod(time.sleep)


@dataclass(frozen=True)
class Wanted:
    """An engine and its wanted state: ``serving``, ``stopped`` or ``asleep``.

    ``url`` is the engine's root URL, ``level`` vLLM's sleep level, ``timeout`` the seconds that a stop may take.
    """

    name: str
    state: str
    instead: str = ""
    url: str = ""
    level: int = 1
    timeout: float = 120
    key_file: str = ""
    key_variable: str = "VLLM_API_KEY"

    @property
    def unit(self) -> str:
        return f"{self.name}.service"


@dataclass(frozen=True)
class Change:
    """The change to make: the steps in order, and the record before and after."""

    steps: tuple[str, ...]
    before: dict
    after: dict

    @property
    def needed(self) -> bool:
        return bool(self.steps)


# -- the record -------------------------------------------------------------------------------------------------------


def noted(host: host_text.Tree) -> dict[str, dict]:
    """Return the engines that should not serve: ``{name: {state, instead, since}}``, and ``level`` if asleep."""
    text = host.read(NOTE)
    try:
        found = json.loads(text) if text else {}
        if all(each["state"] in AWAY for each in found.values()):
            return dict(found)
    except (ValueError, AttributeError, KeyError, TypeError):
        pass
    raise EngineStateError(
        f"{NOTE} is damaged; remove it and run playbooks/switch.yml -e to=NAME with the engine that is to serve"
    )


def away(host: host_text.Tree | None = None) -> list[str]:
    """Return the names of the engines that should not serve; [] if the record cannot be read."""
    try:
        return sorted(noted(host or Host()))
    except EngineStateError:
        return []


def text_of(note: Mapping) -> str:
    """Return the text of the record file, empty if every engine serves."""
    return json.dumps(note, indent=1, sort_keys=True) + "\n" if note else ""


def metrics_of(note: Mapping) -> str:
    """Return the page of metrics about the record."""
    lines = ["# HELP llm_engine_away 1 for an engine that is off because another engine of its group serves.",
             "# TYPE llm_engine_away gauge"]  # fmt: skip
    lines += [f'llm_engine_away{{service="{name}",state="{note[name]["state"]}"}} 1' for name in sorted(note)]
    return "\n".join(lines) + "\n" if note else ""


def memory_of(host: Host, names: list[str]) -> dict[str, int]:
    """Return the MiB that each of ``names`` holds on all GPUs; {} if the host has no GPU."""
    gpus = host.gpus()
    return {name: sum(nvidia_smi.memory_of_units(gpu, [name]) for gpu in gpus) for name in names} if gpus else {}


def runs(host: Host, unit: str) -> bool:
    return host.show(unit).get("ActiveState") not in ("inactive", "failed", None)


# -- one engine -------------------------------------------------------------------------------------------------------


def change(host: Host, wanted: Wanted) -> Change:
    """Compare an engine with its wanted state. Raises `EngineStateError` if it cannot be asked."""
    before = noted(host)
    mine, running = before.get(wanted.name), runs(host, wanted.unit)
    rest = {name: each for name, each in before.items() if name != wanted.name}
    if wanted.state == "serving":
        wakes = ("wake",) if mine and mine["state"] == "asleep" and running else ()
        return Change((*wakes, *(("note",) if mine else ())), before, rest)
    # An engine that does not run cannot sleep.
    asleep = wanted.state == "asleep" and running
    entry = {"state": "asleep" if asleep else "stopped", "instead": wanted.instead}
    if asleep:
        entry["level"] = mine["level"] if mine and mine["state"] == "asleep" else wanted.level
    same = mine is not None and {key: value for key, value in mine.items() if key != "since"} == entry
    steps = [] if same else ["note"]
    if asleep and not _sleeps(host, wanted):
        steps.append("sleep")
    # At boot systemd would start it, and it would be awake.
    enabled = host.show(wanted.unit).get("UnitFileState") == "enabled"
    if enabled and asleep:
        steps.append("disable")
    if not asleep and (enabled or running):
        steps.append("stop")
    entry["since"] = mine["since"] if mine and mine["state"] == entry["state"] else host.now()
    return Change(tuple(steps), before, {**rest, wanted.name: entry})


def carry_out(host: Host, wanted: Wanted, planned: Change) -> str:
    """Make the change; return a warning or "".

    Raises `EngineStateError` if it fails; the text names who still holds GPU memory. An engine that does not wake is
    stopped, and its role starts it again.
    """
    warning = ""
    held = host.gpus() if {"stop", "sleep"} & set(planned.steps) else []
    for step in planned.steps:
        if step == "note":
            write(host, planned.after)
        elif step == "wake":
            try:
                _wake(host, wanted, planned.before[wanted.name].get("level", wanted.level))
            except EngineStateError as error:
                warning = f"{error}; it did not wake up and will be restarted"
                host.run("systemctl", "stop", wanted.unit, timeout=wanted.timeout)
        elif step == "sleep":
            _fall_asleep(host, wanted)
        elif step == "disable":
            host.run("systemctl", "disable", wanted.unit)
        elif step == "stop":
            host.run("systemctl", "disable", "--now", wanted.unit, timeout=wanted.timeout)
    if held:
        await_freed(host, wanted.unit, held, KEPT_MIB if "sleep" in planned.steps else 0)
    return warning


def write(host: host_text.Tree, note: Mapping) -> None:
    """Write the record and its metrics; without an entry both files are removed."""
    host.keep(NOTE, text_of(note))
    host.keep(METRICS, metrics_of(note))


def _key(host: Host, wanted: Wanted) -> str:
    try:
        return host.secret(wanted.key_file or f"/etc/{wanted.name}/secrets.env", wanted.key_variable)
    except OSError as error:
        raise EngineStateError(f"{wanted.name}: its key cannot be read: {error}; run site.yml") from None


def _ask(host: Host, wanted: Wanted, path: str, body: dict | None = None, post: bool = True) -> str:
    url = f"{wanted.url}{path}"
    try:
        status, text = host.ask(url, _key(host, wanted), body, post)
    except OSError as error:
        raise EngineStateError(f"{wanted.name}: {url}: {error}") from None
    if status == 404:
        raise EngineStateError(
            f"{wanted.name}: {url} answered 404, so it runs without sleep mode; write sleep: 0 for its group in "
            "engine_groups, or run site.yml, which starts it with vllm_sleep_mode"
        )
    if status != 200:
        raise EngineStateError(f"{wanted.name}: {url} answered {status} instead of 200: {' '.join(text.split())[:200]}")
    return text


def _sleeps(host: Host, wanted: Wanted) -> bool:
    try:
        return bool(json.loads(_ask(host, wanted, "/is_sleeping", post=False))["is_sleeping"])
    except (ValueError, KeyError, TypeError):
        raise EngineStateError(f"{wanted.name}: {wanted.url}/is_sleeping gave an unexpected answer") from None


def _fall_asleep(host: Host, wanted: Wanted) -> None:
    _ask(host, wanted, f"/sleep?level={wanted.level}")
    if not _sleeps(host, wanted):
        raise EngineStateError(f"{wanted.name}: it does not sleep after {wanted.url}/sleep; read its journal")


def _wake(host: Host, wanted: Wanted, level: int) -> None:
    """Wake a sleeping engine; at level 2 its weights are gone and are loaded again.

    Source: vLLM 0.32.0, docs/features/sleep_mode.md and v1/worker/gpu_worker.py (wake_up, reload_weights).
    """
    if not _sleeps(host, wanted):
        return
    if level < 2:
        _ask(host, wanted, "/wake_up")
        return
    _ask(host, wanted, "/wake_up?tags=weights")
    _ask(host, wanted, "/collective_rpc", {"method": "reload_weights"})
    _ask(host, wanted, "/wake_up?tags=kv_cache")


# -- the memory of the GPU --------------------------------------------------------------------------------------------


def await_freed(host: Host, unit: str, before: list[dict], kept_mib: int = 0) -> None:
    """Wait until what ``unit`` held on each GPU of ``before`` is free except ``kept_mib``.

    Raises `EngineStateError` that names who still holds memory.
    """
    begun = host.clock()
    while True:
        now = host.gpus()
        why = still_held(unit, before, now, kept_mib)
        waited = host.clock() - begun
        if not why:
            return
        if waited >= FREED_WITHIN:
            who = nvidia_smi.holders(now)
            raise EngineStateError(
                f"{unit}: {why} after {waited:.0f} s{f' (held by {who})' if who else ''}; end the process that still "
                "holds it, or restart the host, then run again"
            )
        host.sleep(1)


def still_held(unit: str, before: list[dict], now: list[dict], kept_mib: int = 0) -> str:
    """Return which memory is not free yet, "" if all is. If the driver reports no sizes, only processes count."""
    left = []
    found = {gpu["index"]: gpu for gpu in now}
    for was in before:
        mine = {each["pid"] for each in was["processes"] if each.get("unit") == unit}
        gpu = found.get(was["index"])
        if not mine or gpu is None:
            continue
        label = f"GPU {was['index']}"
        if not kept_mib and mine & {each["pid"] for each in gpu["processes"]}:
            left.append(f"{label} still has a process of it")
            continue
        held = nvidia_smi.memory_of_units(was, [unit])
        if None in (was["used_mib"], gpu["used_mib"]) or held <= kept_mib:
            continue
        most = was["used_mib"] - held + kept_mib + SLACK_MIB
        if gpu["used_mib"] > most:
            left.append(f"{label} has {gpu['used_mib']} MiB in use instead of at most {most}")
    return "; ".join(left)


# -- a group ----------------------------------------------------------------------------------------------------------


def switched(engines: list[dict], note: Mapping, groups: Mapping, to: str) -> dict:
    """Return what switching to the engine ``to`` of a host does; ``engines`` are those of `engines.resolved`.

    ``to`` and ``back`` are the engine that should serve and the one that serves now, None if they are the same.
    ``others`` make room, as ``{name, url, sleep, stop}``: their sleep level, 0 to stop, and the seconds that this may
    take. ``members`` are the names of all engines of the group.
    """
    target = next(each for each in engines if each["name"] == to)
    members = [each for each in engines if each["group"] == target["group"]]
    level = (groups.get(target["group"]) or {}).get("sleep", 0)
    now = serving(members, note)
    back = None if now == target else now
    others = [
        {"name": each["name"], "url": each["url"], "sleep": level, "stop": stop_seconds(each)}
        for each in members
        if each != target
    ]
    return {
        "to": target,
        "back": back,
        "others": others,
        "members": [each["name"] for each in members],
    }


def stop_seconds(engine: Mapping) -> int:
    """Return how many seconds a stop of an engine's unit may take: its own limit plus systemd's time to kill."""
    return int(engine["settings"].get(f"{engine['kind']}_stop_timeout", 30)) + 90


def serving(members: list[dict], note: Mapping) -> dict:
    """Return the engine of a group that serves."""
    rest = resting(members, note)
    return next(each for each in members if each["name"] not in rest)


def resting_instead(engines: list[dict], note: Mapping) -> list[dict]:
    """Return ``{name, instead}`` of the engines that should not serve now."""
    rest, found = resting(engines, note), []
    for each in engines:
        if each["name"] in rest:
            members = [one for one in engines if one["group"] == each["group"]]
            found.append({"name": each["name"], "instead": serving(members, note)["name"]})
    return found


def refused(hosts: Mapping[str, list[dict]], to: str) -> str:
    """Return why no host can switch to the engine ``to``, "" if one can; ``hosts`` has the engines of each host."""
    engines = [each for one in hosts.values() for each in one]
    grouped = list(dict.fromkeys(f"{each['name']} ({each['group']})" for each in engines if each["group"]))
    if not grouped:
        return "No engine of this inventory has a group; write group: NAME to those in engines that take turns."
    cure = f"give one of {', '.join(grouped)}, such as -e to={grouped[0].split(' ')[0]}."
    if not to:
        return f"to is missing; {cure}"
    mine = [each for each in engines if each["name"] == to]
    if not mine:
        return f"to is {to}, which is no engine of this inventory; {cure}"
    if not any(each["group"] for each in mine):
        return f"to is {to}, which has no group, so it always serves; {cure}"
    return ""


def group_refused(hosts: Mapping[str, list[dict]], group: str) -> str:
    """Return why no host has engines of ``group``, "" if one has."""
    groups = list(dict.fromkeys(each["group"] for one in hosts.values() for each in one if each["group"]))
    if not groups:
        return "No engine of this inventory has a group; write group: NAME to those in engines that take turns."
    if group in groups:
        return ""
    problem = f"group is {group}, which no engine of this inventory has" if group else "group is missing"
    return f"{problem}; give one of {', '.join(groups)}, such as -e group={groups[0]}."


def rows(names: list[str], note: Mapping, active: Mapping[str, bool], memory: Mapping[str, int]) -> list[dict]:
    """Return the engines of a group as checklist rows; ``memory`` in MiB, {} without a GPU."""
    result = []
    for name in names:
        mine, runs_now = note.get(name), active.get(name, False)
        held = f", {memory[name]} MiB on the GPU" if name in memory else ""
        if not mine:
            result.append({"what": name, "measured": ("serves" if runs_now else "does not run") + held, "ok": runs_now})
            continue
        asleep = mine["state"] == "asleep"
        state = f"{mine['state']} since {mine['since']}, {mine['instead']} serves instead"
        # After a reboot an engine that slept is stopped.
        wrong = "; its unit runs" if runs_now and not asleep else ""
        result.append({"what": name, "measured": f"{state}{wrong}{held}", "ok": False if wrong else None})
    return result
