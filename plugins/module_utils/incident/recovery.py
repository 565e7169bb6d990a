"""Restarts a service that does not serve, once, within the watchdog's budget, and leaves others alone.

The caller holds the service's lock. The action plugin waits for the start and does the rollback, by steps of a service.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from .. import host_text
from ..engines import engine_states
from ..release import checks, contents, probes, serving, systemd_unit
from ..release.store import Service
from ..watch import metrics_page

WATCHDOG = (
    "/usr/bin/python3", "-I", "/usr/local/lib/llm-watchdog/watchdog.py", "/etc/llm-watchdog/settings.json",
)  # fmt: skip
METRICS = "/var/lib/llm-watchdog/metrics/watchdog.prom"
SPEND_TIMEOUT = 120  # seconds: the evidence is kept meanwhile
PAUSE_LIMIT = 90  # seconds to wait at most for the pause between two restarts
ANSWER_WITHIN = 20  # seconds for one probe
WATCHED = 10  # seconds in which a busy engine shows that it produces tokens
STALE = 60  # seconds after which the watchdog's page is about this process
START_TIMEOUT = 600
PRODUCED = ("vllm:iteration_tokens_total_count", "vllm:prompt_tokens_total", "vllm:generation_tokens_total")


def recover(service: Service, metrics: str | None, check_mode: bool) -> dict:
    """Return what was found and done: ``serves``, ``found``, ``did``, ``await`` and the ``release``.

    ``serves`` is None if the service is not on this host; ``next`` says what a person should do if nothing could be
    done.
    """
    state, release = service.state(), service.release(service.state()["current"])
    result = {
        "release": state["current"],
        "serves": False,
        "did": "nothing",
        "next": "",
        "await": False,
        "changed": False,
    }
    if not release:
        return {**result, "serves": None, "found": "no run of this project put it here"}
    serving_instead = other_serves(service.name)
    if serving_instead:
        return {**result, "serves": None, "found": serving_instead}
    start_timeout = service.proof_of(state["current"])["start_timeout"] or START_TIMEOUT
    result["start_timeout"] = start_timeout
    before = produced(metrics)
    began = time.monotonic()
    why = failing(service)
    changed = [each["what"] for each in contents.differences(service, release)]
    beside = f"; not as its release wrote it: {', '.join(changed)}" if changed else ""
    if not why:
        return {**result, "serves": True, "found": f"it serves{beside}", "next": "run site.yml" if changed else ""}
    result["found"] = f"{why}{beside}"
    obstacles = in_the_way(service, release)
    if obstacles:
        return {**result, "found": f"{result['found']}; {'; '.join(obstacles)}", "next": "cure that, then run site.yml"}
    age = running_for(service)
    if age is not None and age < start_timeout and not has_served(service, age):
        return {**result, "did": f"waited for its start, {age:.0f} s ago", "await": not check_mode, "watch": True}
    if before is not None and "no answer in time" in why:
        time.sleep(max(0.0, WATCHED - (time.monotonic() - began)))
        after = produced(metrics)
        if age is not None and after is not None and after > before:
            return {**result, "serves": True, "found": f"it is busy and produces tokens ({why})"}
    if check_mode:
        return {**result, "did": "would restart it", "changed": True}
    granted = spend(service.unit)
    if not granted["granted"]:
        return {**result, "did": f"no restart: {granted['why']}"}
    return {**result, **restarted(service, granted)}


def other_serves(name: str, host: host_text.Tree | None = None) -> str:
    """Return a sentence if another engine of its group serves instead of this engine; "" for any other service."""
    try:
        note = engine_states.noted(host or host_text.Tree()).get(name)
    except engine_states.EngineStateError:
        return ""
    return f"it is {note['state']}, {note['instead']} serves instead" if note else ""


def restarted(service: Service, granted: dict) -> dict:
    """Restart the service; return what was done, with the restarts that are left."""
    conditions = service.proof_of(service.state()["current"])["before_start"]
    serving.start(service, conditions, regardless=True)
    blocked = service.state()["blocked"]
    waited = "" if not conditions else f", GPU memory was not free: {blocked}" if blocked else ", GPU memory was free"
    left = f" ({granted['left']} restarts left)" if "left" in granted else ""
    return {"did": f"restarted it{waited}{left}", "await": True, "changed": True, "evidence": granted.get("evidence")}


def failing(service: Service) -> str | None:
    """Return why the service does not serve, or None."""
    live = systemd_unit.show(service.unit)
    if live.get("ActiveState") != "active":
        return f"{service.unit} is {live.get('ActiveState')} ({live.get('Result')})"
    return probes.first_failure(service.proof_of(service.state()["current"])["probes"], ANSWER_WITHIN)


def in_the_way(service: Service, release: dict) -> list[str]:
    """Return obstacles that no restart removes: a unit changed by others, a missing program."""
    faults, _ = checks.altered(service, release)
    missing = [link["target"] for link in release["links"] if not Path(link["target"]).exists()]
    return [*faults, *(f"{target} is gone" for target in missing)]


def running_for(service: Service) -> float | None:
    """Return for how many seconds the process has run; None if there is none."""
    live = systemd_unit.show(service.unit)
    begun = int(live.get("ExecMainStartTimestampMonotonic") or 0) / 1e6
    return time.monotonic() - begun if live.get("ActiveState") == "active" and begun else None


def has_served(service: Service, age: float) -> bool:
    """Return whether the watchdog has seen this process serve."""
    try:
        page = Path(METRICS).read_text()
    except OSError:
        return False
    return metrics_page.by_label(page, "llm_watchdog_ready", "unit").get(service.unit) == 1 and age > STALE


def produced(metrics: str | None) -> float | None:
    """Return a sum that grows with every token of an engine; None if its metrics cannot be read."""
    if not metrics:
        return None
    try:
        status, page = probes.ask(metrics)
        return sum(metrics_page.total(page, name) for name in PRODUCED) if status == 200 else None
    except (OSError, ValueError):
        return None


def spend(unit: str) -> dict:
    """Take a restart from the watchdog's budget, waiting for the pause between two restarts; see its `--spend`."""
    if not Path(WATCHDOG[2]).exists():
        return {"granted": True}
    end = time.monotonic() + PAUSE_LIMIT
    while True:
        try:
            done = subprocess.run(
                [*WATCHDOG, "--spend", unit], capture_output=True, text=True, errors="replace", check=False,
                timeout=SPEND_TIMEOUT, stdin=subprocess.DEVNULL,
            )  # fmt: skip
            told = json.loads(done.stdout)
        except (OSError, ValueError, subprocess.TimeoutExpired) as error:
            why = f"the watchdog's budget cannot be asked ({error}); run site.yml -t watchdog"
            return {"granted": False, "why": why}
        if told["granted"] or "wait" not in told:
            return told
        if time.monotonic() + told["wait"] > end:
            return {"granted": False, "why": f"it was restarted a moment ago; run again in {told['wait']} s"}
        time.sleep(told["wait"])
