"""From a written release to one that serves: whether it must be restarted, the start, and the wait."""

from __future__ import annotations

import time
from pathlib import Path

from . import contents, probes, systemd_unit
from .description import PLACES, Refused, digest
from .store import Service

BEFORE_START_TIMEOUT = 60  # seconds: what the old process held is free soon after its end, or stuck
SHOWN_LINES = 400  # of the journal while a service starts
TIMER_STAMPS = Path("/var/lib/systemd/timers")  # systemd's notes of when each persistent timer last ran
END_LINES = 4000  # of a service that failed to start: eight workers of an engine write 2000


def restart_reason(service: Service, release: dict, differences: list[dict], before: str = "") -> str | None:
    """Return why the process must be restarted, or None if it runs the release on disk.

    ``before`` is an alternative digest of the same release, with which the process may have been started; see
    `digest_before`.
    """
    if release.get("timer"):
        return _timer_reason(service, differences)
    live = systemd_unit.show(service.unit)
    pid = int(live.get("MainPID") or 0)
    if not pid:
        return f"it was not running ({live.get('ActiveState', 'unknown')}, {live.get('SubState', 'unknown')})"
    if service.state()["altered"]:
        return "it was started while others had changed its unit"
    running = systemd_unit.running_release(pid)
    if running in (digest(release), before):
        return None
    changed = [difference["what"] for difference in differences if not difference["what"].endswith(contents.AT_BOOT)]
    if changed:
        return f"changed: {', '.join(changed)}"
    return "the running process was not started with what is written"


def _timer_reason(service: Service, differences: list[dict]) -> str | None:
    """Return why the timer of a service must be restarted; the service itself reads everything when it is started."""
    active = systemd_unit.show(service.timer).get("ActiveState", "unknown")
    if active != "active":
        return f"its timer was not running ({active})"
    changed = {difference["what"] for difference in differences}
    return f"changed: {service.timer_path}" if str(service.timer_path) in changed else None


def reload(service: Service, release: dict, differences: list[dict]) -> bool:
    """Make the process read its live files again if one was written; return whether it was asked to.

    A program whose unit has no ExecReload notices changes itself.
    """
    written = {difference["what"] for difference in differences} - {str(service.unit_path), str(service.environment)}
    others = {entry["path"] for part in PLACES for entry in release[part] if not entry.get("live")}
    if "\nExecReload=" not in release["unit"] or not any(what.startswith("/") for what in written - others):
        return False
    systemd_unit.run("systemctl", "reload", service.unit)
    return True


def stop(service: Service) -> None:
    """Stop a release that never served and has no predecessor; its files stay for inspection."""
    systemd_unit.run("systemctl", "disable", "--now", service.main_unit(), check=False)


def start(service: Service, conditions: list[dict] | None = None, regardless: bool = False) -> None:
    """Start the process (or the timer) with what is written; `poll` reports whether it stays up.

    ``conditions`` are probes that must succeed after the old process has stopped and before the new one starts. If
    they do not in time, the process is started only with ``regardless``. If it does not serve then, the failed
    condition is the reason.
    """
    blocked = None
    if conditions:
        systemd_unit.run("systemctl", "stop", service.unit, check=False, timeout=300)
        blocked = probes.awaited(conditions, BEFORE_START_TIMEOUT)
    systemd_unit.run("systemctl", "reset-failed", service.unit, check=False)
    journal_cursor = systemd_unit.journal_end()
    if regardless or not blocked:
        _count_as_run(service)
        systemd_unit.run("systemctl", "restart", service.main_unit(), check=False, timeout=300)
    # Read after the start, so that the stop and earlier restarts of the old process do not count against the new
    # one.
    service.note(
        since=time.monotonic(),
        journal_cursor=journal_cursor,
        restarts=_restarts(service),
        blocked=blocked,
        altered=False,
    )


def _count_as_run(service: Service) -> None:
    """Make a persistent timer begin with its next time: it would start the service now for one that it missed."""
    stamp = TIMER_STAMPS / f"stamp-{service.timer}"
    if service.main_unit() == service.timer and stamp.exists():
        stamp.touch()


def watch(service: Service) -> None:
    """Wait for a process that this run did not start; earlier restarts do not count against it."""
    begun = int(systemd_unit.show(service.unit).get("ExecMainStartTimestampMonotonic") or 0) / 1e6
    now = time.monotonic()
    journal_cursor = time.time() - (now - begun if begun else 0)
    service.note(since=now, journal_cursor=journal_cursor, restarts=_restarts(service), blocked=None)


def _restarts(service: Service) -> int:
    return int(systemd_unit.show(service.unit).get("NRestarts") or 0)


def poll(service: Service, questions: list[dict], seconds: float, limit: float) -> dict:
    """Watch the service for up to ``seconds``, and at most until ``limit`` seconds after its start.

    Returns ready, dead, why, elapsed and, if it is not ready, its journal since the start.
    """
    state = service.state()
    end = time.monotonic() + seconds
    while True:
        why = None
        dead = _left(service, state["restarts"])
        if not dead:
            within = limit - (time.monotonic() - state["since"])
            why = probes.first_failure(questions, max(within, 1))
            dead = _left(service, state["restarts"])
        why = (dead or why) and (state["blocked"] or dead or why)
        elapsed = time.monotonic() - state["since"]
        if not why or dead or time.monotonic() >= end or elapsed >= limit:
            # If several workers report an end, its cause is far above the last line.
            count = END_LINES if dead or elapsed >= limit else SHOWN_LINES
            lines = systemd_unit.journal(service.unit, state["journal_cursor"], count) if why else []
            return {
                "ready": not why,
                "dead": bool(dead),
                "why": why,
                "elapsed": round(elapsed, 1),
                "journal": lines,
            }
        time.sleep(0.3)


def _left(service: Service, restarts: int) -> str | None:
    """Return how the process ended since ``restarts`` was counted, or None while it runs.

    An exit during the start is a verdict: waiting for systemd's next attempt would only hide it.
    """
    main = service.main_unit()
    live = systemd_unit.show(main)
    again = live.get("SubState") == "auto-restart" or int(live.get("NRestarts") or 0) > restarts
    if live.get("ActiveState") not in ("failed", "inactive") and not again:
        return None
    if main == service.timer:
        return f"its timer is {live.get('ActiveState')} ({live.get('Result')})"
    return f"its process left ({live.get('Result')}, status {live.get('ExecMainStatus')})"


def set_rotation(service: Service, out: bool) -> dict:
    """Record whether this host is ``out`` of rotation. Raises `Refused` if the service is not on it."""
    before = service.state()
    if not before["current"]:
        raise Refused(f"{service.name} is not on this host, so nothing can be noted of it")
    service.note(out=out)
    return {"changed": before["out"] != out}
