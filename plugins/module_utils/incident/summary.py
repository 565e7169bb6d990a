"""Summarizes in a few rows what was found on a host, what was done, and which command comes next."""

from __future__ import annotations

RECOVER = "ansible-playbook playbooks/incident.yml -e step=recover"
ESCALATE = "ansible-playbook playbooks/incident.yml -e step=escalate"
CONSOLE = (
    "look at the machine's console; a machine that is off: playbooks/gcp_start.yml on Google Cloud; "
    "then step=look again"
)


def row(what: str, measured: str, ok: bool | None = True, following: str = "") -> dict:
    """Return a row in the checklist's form: `following` is what comes next."""
    return {"what": what, "measured": measured, "ok": ok, "cure": following}


def found(host: str, gathered: dict, report: dict | None) -> list[dict]:
    """Return the rows of a look: how each service answers, and the diagnosis."""
    rows = []
    for name, answer in gathered["answers"].items():
        outcome = answer or {"ok": False, "says": "it could not be asked"}
        recoverable = gathered.get("kinds", {}).get(name, name) in RECOVERABLE
        following = f"{RECOVER} -l {host}" if outcome["ok"] is False and recoverable else ""
        rows.append(row(name, outcome["says"], outcome["ok"], following))
    if report:
        first = report["causes"][0] if report["causes"] else None
        text = f"{first['service']}: {first['says']}" if first else report["report"][0]
        rows.append(row("diagnosis", text, report["healthy"], first["cure"] if first else ""))
    rows += [row("not gathered", problem, False) for problem in gathered["problems"]]
    return rows


# What step=recover restarts: engines of these kinds, and the application.
RECOVERABLE = ("vllm", "llama_cpp", "ai-server")


def unreachable(host: str, why: str) -> list[dict]:
    return [row("host", f"it cannot be looked at: {why}", False, CONSOLE)]


def text(host: str, rows: list[dict], report: dict | None) -> str:
    """Return the summary that is put into the archive and sent."""
    marks = {True: "ok", False: "NOT OK", None: "-"}
    lines = [f"Incident on {host}", ""]
    lines += [f"{marks[each['ok']]:<7} {each['what']}: {each['measured']}" for each in rows]
    return "\n".join([*lines, "", *(report["report"] if report else [])]) + "\n"


def escalated(evidence: list[dict], rotation: dict, notice: dict) -> list[dict]:
    """Return the rows of an escalation: the look, the result for the rotation, and who was notified."""
    return [*evidence, _rotation(rotation), _notice(notice)]


def _rotation(result: dict) -> dict:
    if result.get("skipped"):
        text = "the host was left in: rotation_drain_command is not set"
        return row(
            "rotation",
            text,
            None,
            "set rotation_drain_command and rotation_restore_command, or take the host out by hand",
        )
    if "rotation" not in result:
        return row("rotation", str(result.get("msg") or "no answer"), False, "take the host out by hand")
    beside = f"; {result['unnoted']}" if result.get("unnoted") else ""
    taken = "it would be taken out" if result["rotation"] == "would leave" else "taken out"
    done = taken if result.get("changed") else "it was out already"
    return row("rotation", f"{done}{beside}", True, "put it back by hand once it serves" if beside else "")


def _notice(result: dict) -> dict:
    if "told" in result:
        return row("receiver", result["told"])
    return row("receiver", str(result.get("msg") or "no answer"), False, "correct it and run step=escalate again")


def after(host: str) -> list[str]:
    """Return the next steps for a person, as lines."""
    return [
        "Another host in: playbooks/gcp_start.yml for machines that are stopped, playbooks/gcp_provision.yml for",
        "declared ones that are not there, then site.yml.",
        f"This host back: correct the inventory and run site.yml -l {host}; where a change is the cause, before that",
        f"playbooks/rollback.yml -e service=vllm -l {host}.",
    ]
