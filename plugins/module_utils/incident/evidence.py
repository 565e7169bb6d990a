"""Collects the evidence of an incident on a machine, as texts without secrets.

Changes nothing. Every piece has a time limit and may fail: then the reason is in its place, and the rest continues.
Needs root for other users' files and processes.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from ..diagnosis import host
from ..engines import engine_states
from ..errors import UserError
from ..redaction import Redaction
from ..release import probes, store, systemd_unit

COMMAND_LIMIT = 8  # seconds that a command may take
LIMIT = 30  # seconds for everything together
WORKERS = 12
JOURNAL_LINES = 1000
KERNEL_LINES = 300
LOG_BYTES = 200_000  # at the end of a log file
LOGS = 4  # newest files of a pattern
PAGE_BYTES = 1_000_000
# Of a host that an earlier version set up, whose backup has no release.
BACKUP_SECRETS = Path("/etc/llm-backup/secrets.env")
CLIPPED = "\n… cut here\n"

Piece = Callable[[], str]


def command(*argv: str) -> str:
    """Return a command's output, including errors. Raises OSError if it is missing or does not end in time."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=COMMAND_LIMIT, check=False,
            stdin=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C", "COLUMNS": "400"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise OSError(f"{argv[0]} gave no answer within {COMMAND_LIMIT} s") from None
    return done.stdout + (f"\n{done.stderr}" if done.stderr else "")


def several(*commands: tuple[str, ...]) -> str:
    """Return the output of several commands, each below its own line, or why a command cannot run."""
    results = []
    for argv in commands:
        try:
            text = command(*argv)
        except OSError as error:
            text = f"{error}\n"
        results.append(f"$ {' '.join(argv)}\n{text}")
    return "\n".join(results)


def known(services: list[dict]) -> dict[str, dict]:
    """Return the services to check by name: those that are given and those that this project installed here."""
    stored = sorted(path.name for path in store.STORE.glob("*") if path.is_dir())
    named = {each["name"]: each for each in [*({"name": name} for name in stored), *services]}
    # An engine that does not run because another one of its group serves is in its intended state.
    inactive = engine_states.away()
    return {name: each for name, each in named.items() if name not in inactive}


def unit_of(name: str, given: dict) -> str:
    """Return the unit of a service: what is given, or the timer of one that a timer starts."""
    try:
        return given.get("unit") or store.Service(name).main_unit()
    except (UserError, OSError, ValueError):  # a damaged release is evidence, too, and stops nothing
        return f"{name}.service"


def secrets_of_host(given: list[str] | None = None) -> Redaction:
    """Return the secrets of this host: what the caller names, and what is in the services' files of secrets."""
    redaction = Redaction(given or [])
    for path in store.STORE.glob("*/releases/*.json"):
        try:
            files = json.loads(path.read_text()).get("secrets") or []
        except (OSError, ValueError):
            continue
        for file in files:
            text = _text(Path(file["path"]))
            if file.get("whole"):
                redaction.add_file(text)
            else:
                redaction.add_lines(text, file.get("plain") or ())
    redaction.add_lines(_text(BACKUP_SECRETS), ("RESTIC_REPOSITORY",))
    # A lost release store must not reveal secrets that are next to a unit.
    for unit in store.UNITS.glob("*.service"):
        for named in re.findall(r"^EnvironmentFile=-?(/\S+)$", _text(unit), re.MULTILINE):
            place = Path(named)
            if place.is_file() and not place.stat().st_mode & 0o077 and place.name != "environment":
                redaction.add_lines(_text(place))
    return redaction


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


# -- pieces -----------------------------------------------------------------------------------------------------------


def unit(name: str) -> str:
    properties = (
        "LoadState,ActiveState,SubState,Result,ExecMainCode,ExecMainStatus,MainPID,NRestarts,MemoryCurrent,MemoryPeak,"
        "TasksCurrent,CPUUsageNSec,ActiveEnterTimestamp,InactiveEnterTimestamp,UnitFileState,DropInPaths,"
        "NeedDaemonReload"
    )
    return several(
        ("systemctl", "status", "--no-pager", "--full", "--lines=0", name),
        ("systemctl", "show", name, f"--property={properties}"),
    )


def journal(name: str) -> str:
    return command(
        "journalctl", "--unit", name, f"--lines={JOURNAL_LINES}", "--output=short-iso", "--no-pager", "--quiet"
    )


def kernel() -> str:
    return command("journalctl", "--dmesg", f"--lines={KERNEL_LINES}", "--output=short-iso", "--no-pager", "--quiet")


def answer(name: str, unit: str) -> dict:
    """Return how a service answers: ``ok`` and ``says``; ``ok`` is None if it is not on this host."""
    service = store.Service(name)
    current = service.state()["current"]
    # No completion: the engine's queue must not get longer.
    questions = [each for each in service.proof_of(current)["probes"] if not each.get("completion")] if current else []
    if not questions:
        shown = systemd_unit.show(unit)
        if shown.get("LoadState") != "loaded":
            return {"ok": None, "says": "it is not installed"}
        return {"ok": shown.get("ActiveState") == "active", "says": f"{unit} is {shown.get('ActiveState')}"}
    why = probes.first_failure(questions, COMMAND_LIMIT / 2)
    return {"ok": not why, "says": why or f"answers {len(questions)} of {len(questions)} probes"}


def releases(name: str) -> str:
    """Return what earlier runs recorded about a service; it contains no secret."""
    state = store.Service(name).state()
    return json.dumps({key: state[key] for key in ("current", "verified", "failed", "blocked", "out")}, indent=1)


def log_file(pattern: str) -> str:
    """Return the ends of the newest files of a pattern."""
    places = sorted(Path("/").glob(pattern.lstrip("/")), key=lambda path: path.stat().st_mtime)
    lines = []
    for place in places[-LOGS:]:
        with place.open("rb") as handle:
            handle.seek(max(0, place.stat().st_size - LOG_BYTES))
            if handle.tell():
                handle.readline()  # the first partial line may begin inside a secret
            lines.append(f"== {place}\n{handle.read(LOG_BYTES).decode(errors='replace')}")
    return "\n".join(lines)


def page(url: str) -> str:
    status, text = probes.ask(url, timeout=COMMAND_LIMIT / 2)
    return text if status == 200 else f"{url} answered {status}\n"


def resources() -> str:
    files = [
        Path("/proc/loadavg"),
        Path("/proc/meminfo"),
        Path("/proc/swaps"),
        *sorted(Path("/proc/pressure").glob("*")),
    ]
    parts = [f"== {path}\n{_text(path)}" for path in files]
    disks = several(
        ("uptime",), ("df", "--portability", "--human-readable"), ("df", "--portability", "--inodes"),
        ("systemctl", "list-units", "--failed", "--no-legend", "--no-pager", "--plain"), ("systemctl", "list-jobs"),
    )  # fmt: skip
    return "\n".join([*parts, disks])


def processes() -> str:
    # Without the environments of processes, which hold secrets.
    return command("ps", "-e", "--sort=-rss", "-o", "user,pid,ppid,stat,etimes,pcpu,pmem,rss,nlwp,unit,args")


def sockets() -> str:
    return several(("ss", "--tcp", "--listening", "--numeric", "--processes"), ("ss", "--summary"))


def gpu() -> str:
    if not shutil.which("nvidia-smi"):
        return "nvidia-smi is not installed\n"
    owners = "--query-compute-apps=pid,used_memory,name"
    return several(
        ("nvidia-smi",), ("nvidia-smi", owners, "--format=csv"), ("nvidia-smi", "-q", "-d", "MEMORY,ECC,PERFORMANCE")
    )


def watchdog() -> str:
    """Return the watchdog's record, its metrics and the evidence it has kept."""
    home = Path("/var/lib/llm-watchdog")
    if not home.is_dir():
        return "no watchdog runs here\n"
    folders = sorted(path.name for path in (home / "evidence").glob("*"))
    kept = "\n".join([f"== {home}/evidence", *folders])
    return f"{_text(home / 'state.json')}\n{_text(home / 'metrics/watchdog.prom')}\n{kept}\n"


# -- all together -----------------------------------------------------------------------------------------------------


def pieces(services: dict[str, dict], logs: list[str]) -> dict[str, Piece]:
    """Return the function that creates each file of the archive, by its name."""
    made: dict[str, Piece] = {
        "resources.txt": resources,
        "processes.txt": processes,
        "sockets.txt": sockets,
        "gpu.txt": gpu,
        "kernel.txt": kernel,
        "watchdog.txt": watchdog,
    }
    for name, given in services.items():
        own = unit_of(name, given)
        made[f"units/{name}.txt"] = lambda own=own: unit(own)
        made[f"journals/{name}.txt"] = lambda own=own: journal(own)
        if own.endswith(".timer"):
            started = f"{name}.service"
            made[f"units/{name}.service.txt"] = lambda started=started: unit(started)
            made[f"journals/{name}.service.txt"] = lambda started=started: journal(started)
        made[f"releases/{name}.json"] = lambda name=name: releases(name)
        if given.get("metrics"):
            made[f"metrics/{name}.txt"] = lambda url=given["metrics"]: page(url)
    for pattern in logs:
        name = re.sub(r"\W+", "_", pattern).strip("_")
        made[f"logs/{name}.txt"] = lambda pattern=pattern: log_file(pattern)
    return made


def gather(
    services: list[dict], gpu_wanted: bool, upstreams: list[dict], logs: list[str], secrets: list[str] | None = None
) -> dict:
    """Return the evidence of this machine.

    It has ``files`` (name to text, without secrets), ``kinds`` (of services), ``answers``, ``diagnosis``, ``problems``
    and ``seconds``. `services` and `upstreams` are those of `diagnosis.host.look`, whose evidence is ``diagnosis``.
    """
    begun = time.monotonic()
    redaction = secrets_of_host([*(secrets or []), *(each["bearer"] for each in upstreams if each.get("bearer"))])
    here = known(services)
    texts = pieces(here, logs)
    jobs = {"diagnosis": lambda: host.look(services, gpu_wanted, upstreams)}  # first: it takes longest
    jobs |= {f"answer of {name}": lambda name=name: answer(name, unit_of(name, here[name])) for name in here} | texts
    found, problems = host.side_by_side(jobs, LIMIT, WORKERS)
    return {
        "files": {name: clipped(redaction(found[name])) for name in texts if name in found},
        "kinds": {name: here[name].get("kind") or name for name in here},
        "answers": {name: _without_secrets(found.get(f"answer of {name}"), redaction) for name in here},
        "diagnosis": _without_secrets(found.get("diagnosis"), redaction),
        "problems": [redaction(problem) for problem in problems],
        "seconds": round(time.monotonic() - begun, 1),
    }


def clipped(text: str) -> str:
    """Return at most the last `PAGE_BYTES` characters of a text, which are the newest."""
    return text if len(text) <= PAGE_BYTES else f"{CLIPPED}{text[-PAGE_BYTES:]}"


def _without_secrets(value, redaction: Redaction):
    """Return the same value with every text in it redacted."""
    if isinstance(value, dict):
        return {key: _without_secrets(each, redaction) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_secrets(each, redaction) for each in value]
    return redaction(value) if isinstance(value, str) else value
