#!/usr/bin/python3
"""Restart services that run but do not serve; report when a person is needed.

A service is at fault if its health route has not answered for `silent_after` seconds, if requests are pending and no
token was produced for `stalled_after` seconds, or if it has not served within `ready_within` seconds of its start.
This does not apply while Ansible works on it or its host is out of rotation; a server that still produces tokens is
busy, not at fault. Evidence is saved before a restart. After `restarts` attempts the watchdog gives up until the
service serves again or a person restarts it.

The argument is the path of its settings (JSON); `--check` only validates them. Other programs that restart a service
first call `--spend UNIT`, which takes the restart from the same budget and saves the evidence. `--night` does the
planned restarts, each when the service is idle, or logs why not; they do not use the budget. Needs root.

Its metrics also contain the release of each service on this host and the expiry of the certificates in the settings.
"""

import argparse
import calendar
import fcntl
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path

STORE = Path("/var/lib/llm-server/services")  # release records of the module service_release
LOCKS = Path("/run")  # locks of the same module
AWAY = Path("/var/lib/llm-server/engines.json")  # engines that another engine replaces now
TIMEOUT = 5  # s for one request
COLLECT_TIMEOUT = 10  # s for one piece of evidence
RESTART_TIMEOUT = 300  # s, longer than a unit takes to stop
NIGHT_OUT = "night-out"  # file next to the state
ROTATION_TIMEOUT = 600  # s; a load balancer may take minutes to drain connections
JOURNAL_LINES = 1000
REMIND = 600  # s between two warnings about the same thing
REREAD = 600  # s after which certificates are read again
TIMES = ("silent_after", "stalled_after", "ready_within")  # settings of a service
BUDGET = ("restarts", "window", "pause")
PROCESSES = 3  # how many of the largest a memory warning names

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class Seen:
    """The result of one look at a service."""

    process: str | None  # ID of the running process; None if the unit does not run
    by_systemd: bool = False  # systemd restarted it
    answers: bool = False
    pending: float | None = None  # requests that run or wait; None if unknown
    progress: float | None = None  # a sum that grows with every token
    hands_off: str | None = None  # why it must not be restarted now


@dataclass
class Service:
    """One service and its state between two looks. Times are seconds of the monotonic clock."""

    unit: str
    silent_after: float
    stalled_after: float
    ready_within: float
    process: str | None = None  # the last one seen
    running: bool = False
    ready: bool = False  # this process has served
    known: bool = False  # some process has served, so the health route is correct
    begun: float = 0
    answered: float = 0
    progress: float | None = None
    moved: float = 0
    attempts: list[float] = field(default_factory=list)
    restarted: int = 0  # by this program since boot
    given_up: bool = False
    planned: int = 0  # nightly restarts since boot
    lent: bool = False  # another program restarts it, as planned or from this budget

    def remember(self, known: dict) -> None:
        """Load the service's state from the record."""
        self.attempts, self.given_up = known.get("attempts", []), known.get("given_up", False)
        self.process, self.ready = known.get("process"), known.get("ready", False)
        self.known, self.restarted = known.get("known", False), known.get("restarted", 0)
        self.lent, self.planned = known.get("lent", False), known.get("planned", 0)

    def count(self, spent: list[float]) -> None:
        """Count restarts that other programs took from the budget."""
        self.attempts, self.restarted = [*self.attempts, *spent], self.restarted + len(spent)
        self.lent = self.lent or bool(spent)

    def expect(self, planned: int) -> None:
        """Expect a new process after a planned restart, which neither uses nor restores the budget."""
        self.planned += planned
        self.lent = self.lent or bool(planned)

    def fault(self, seen: Seen, now: float) -> str | None:
        """Update the state with the result of a look; return what is wrong with the service, or None."""
        self.running = seen.process is not None
        if not self.running:
            return None  # systemd restarts it, or a person stopped it
        if seen.process != self.process:
            self._replaced(seen, now)
        alive = seen.progress is not None and seen.progress != self.progress
        if seen.answers:
            self.ready = self.known = True
        if seen.answers or alive:
            self.answered = now
        # Unknown progress is not a fault.
        if alive or not seen.pending or seen.progress is None:
            self.moved = now
        self.progress = seen.progress if seen.progress is not None else self.progress
        if seen.hands_off:
            self.begun = self.answered = self.moved = now
            return None
        if not self.ready:
            self.answered = self.moved = now
            waited = now - self.begun
            late = self.known and waited >= self.ready_within
            return f"it has not served since its start {waited:.0f} s ago" if late else None
        if now - self.answered >= self.silent_after:
            return f"its health route has not answered for {now - self.answered:.0f} s"
        if now - self.moved >= self.stalled_after:
            return f"{seen.pending:.0f} requests are pending and no token was produced for {now - self.moved:.0f} s"
        if seen.answers:
            self.given_up = False
        return None

    def _replaced(self, seen: Seen, now: float) -> None:
        if self.process and not seen.by_systemd and not self.lent:
            self.attempts, self.given_up = [], False  # a person or a playbook started it
        self.lent = False
        self.begin(seen.process, now)

    def begin(self, process: str | None, now: float) -> None:
        """Start the observation of a new process."""
        self.process, self.ready, self.progress = process, False, None
        self.begun = self.answered = self.moved = now

    def may_restart(self, now: float, restarts: int, window: float, pause: float) -> bool:
        """Return whether the budget allows a restart now; when it is used up, `given_up` is set and stays."""
        self.attempts = [then for then in self.attempts if now - then < window]
        self.given_up = self.given_up or len(self.attempts) >= restarts
        return not self.given_up and (not self.attempts or now - self.attempts[-1] >= pause)


# -- looking ----------------------------------------------------------------------------------------------------------


def key_in(path):
    """Return the value of API_KEY in a file of lines NAME=value, as systemd reads it; "" if there is none."""
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError:
        return ""
    found = ""
    for line in lines:
        name, equals, value = line.partition("=")
        if equals and name.strip() == "API_KEY":
            value = value.strip()
            quoted = len(value) > 1 and value[0] in "\"'" and value[0] == value[-1]
            found = value[1:-1] if quoted else value
    return found


def fetch(url, bearer_file=""):
    """Return ``(status, text)``; the status is 0 if there is no answer in time."""
    try:
        headers = {"Authorization": f"Bearer {key_in(bearer_file)}"} if bearer_file else {}
        with _DIRECT.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as answer:
            return answer.status, answer.read().decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        with error:
            return error.code, ""
    except (OSError, ValueError, HTTPException):
        return 0, ""


def metrics_of(settings):
    """Return ``(status, text)`` of a service's metrics."""
    return fetch(settings["metrics"], *filter(None, [settings.get("bearer_file")]))


def total(page, names):
    """Return the sum of all series of ``names`` on a Prometheus page; None if it has none of them."""
    values = []
    for line in page.split("\n"):
        if line.split("{")[0].split(" ")[0] not in names:
            continue
        _, brace, rest = line.rpartition("}")
        try:
            values.append(float((rest if brace else line.partition(" ")[2]).split()[0]))
        except (ValueError, IndexError):
            continue
    return sum(values) if values else None


def run(*argv, timeout=COLLECT_TIMEOUT):
    """Return the output of a command, or a sentence if it could not run or timed out."""
    try:
        done = subprocess.run(
            argv, capture_output=True, timeout=timeout, check=False, env={**os.environ, "LC_ALL": "C"}
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{argv[0]}: {error}\n"
    return (done.stdout + done.stderr).decode("utf-8", "replace")


def unit_state(unit):
    names = "ActiveState,SubState,MainPID,NRestarts,InvocationID"
    out = run("systemctl", "show", unit, "--property", names)
    return dict(line.split("=", 1) for line in out.split("\n") if "=" in line)


def process_of(state):
    """Return an ID of the running process of a unit: systemd's ID of this start, or else the PID."""
    return state.get("InvocationID") or state.get("MainPID")


def hands_off(unit):
    """Return why a service must not be restarted now, or None."""
    out = out_of_rotation(unit) or away(unit)
    if out:
        return out
    with held(unit.removesuffix(".service")) as free:
        return None if free else "an Ansible run is changing it"


def out_of_rotation(unit):
    """Return a message if an Ansible run has taken the host out of rotation, or None."""
    try:
        note = json.loads((STORE / unit.removesuffix(".service") / "state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return "its host is out of rotation" if note.get("out") else None


def away(unit):
    """Return a message if another engine serves instead, or None: a restart would wake a sleeping engine."""
    try:
        note = json.loads(AWAY.read_text(encoding="utf-8"))[unit.removesuffix(".service")]
        return f"it is {note['state']}, {note['instead']} serves instead"
    except (OSError, ValueError, KeyError, TypeError):
        return None


class held:
    """The lock that Ansible runs hold while they change a service; yields False if one holds it now."""

    def __init__(self, name):
        self.path = LOCKS / f"llm-server-{name}.lock"

    def __enter__(self):
        self.handle = self.path.open("w")
        try:
            fcntl.flock(self.handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def __exit__(self, *_):
        self.handle.close()


def look(settings):
    """Return the result of one look at a service of the settings."""
    state = unit_state(settings["unit"])
    if state.get("ActiveState") != "active":
        return Seen(None)
    seen = Seen(process_of(state), by_systemd=int(state.get("NRestarts") or 0) > 0)
    seen.answers = fetch(settings["health"])[0] == 200
    status, page = metrics_of(settings) if settings["metrics"] else (0, "")
    if status == 200:
        seen.pending = total(page, settings["pending"])
        seen.progress = total(page, settings["progress"])
    seen.hands_off = hands_off(settings["unit"])
    return seen


# -- evidence ---------------------------------------------------------------------------------------------------------


def keep_evidence(settings, directory, limit_mib):
    """Save what a restart would destroy in a new folder below ``directory``; return the folder."""
    unit, pid = settings["unit"], unit_state(settings["unit"]).get("MainPID", "0")
    folder = Path(directory) / f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{unit.removesuffix('.service')}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    pieces = {
        "unit.txt": lambda: run("systemctl", "status", "--no-pager", "--full", "--lines", "0", unit),
        "journal.txt": lambda: run("journalctl", "--unit", unit, "--lines", str(JOURNAL_LINES), "--no-pager"),
        "metrics.txt": lambda: metrics_of(settings)[1] if settings["metrics"] else "",
        "threads.txt": lambda: threads(unit),
        "stacks.txt": lambda: stacks(unit, pid),
        "memory.txt": lambda: Path("/proc/meminfo").read_text(encoding="utf-8"),
        "gpu.txt": lambda: run("nvidia-smi") if shutil.which("nvidia-smi") else "",
    }
    for name, piece in pieces.items():
        try:
            text = piece()
        except (OSError, ValueError) as error:
            text = f"{error}\n"
        if text:
            (folder / name).write_text(text, encoding="utf-8", errors="replace")
    prune(Path(directory), limit_mib)
    return folder


def processes(unit):
    """Return the process ids of a unit."""
    group = run("systemctl", "show", unit, "--property", "ControlGroup", "--value").strip()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and group and f"{group}\n" in (entry / "cgroup").read_text(encoding="utf-8"):
                found.append(entry.name)
        except OSError:
            continue
    return found


def threads(unit):
    """Return a line for each thread of a unit: process, thread, name, state, and where it waits in the kernel."""
    lines = []
    for pid in processes(unit):
        for task in Path(f"/proc/{pid}/task").iterdir():
            try:
                name = (task / "comm").read_text(encoding="utf-8", errors="replace").strip()
                state = (task / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
                lines.append(f"{pid} {task.name} {name} {state} {(task / 'wchan').read_text(encoding='utf-8')}")
            except (OSError, IndexError):
                continue
    return "".join(f"{line}\n" for line in lines)


def stacks(unit, pid):
    """Return the Python stacks of a unit's processes; "" unless py-spy is next to their interpreter or on the PATH."""
    try:
        interpreter = Path(f"/proc/{pid}/exe").readlink()
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    except OSError:
        return ""
    beside = [str(Path(place).parent / "py-spy") for place in (command, str(interpreter))]
    found = next(
        (place for place in [*beside, shutil.which("py-spy") or ""] if place and os.access(place, os.X_OK)), ""
    )
    return "".join(run(found, "dump", "--nonblocking", "--pid", one) for one in processes(unit)) if found else ""


def prune(directory, limit_mib):
    """Remove the oldest evidence folders until the rest is within the limit; the newest always stays."""
    folders = sorted(path for path in directory.iterdir() if path.is_dir())
    sizes = {path: sum(file.stat().st_size for file in path.iterdir()) for path in folders}
    while len(folders) > 1 and sum(sizes[path] for path in folders) > limit_mib << 20:
        shutil.rmtree(folders.pop(0))


# -- memory -----------------------------------------------------------------------------------------------------------


def memory_warning(limit_mib, gpu_limit_mib):
    """Return a warning if the host or a GPU has less free memory than its limit, or None."""
    parts = []
    free = available_mib()
    if free < limit_mib:
        named = ", ".join(f"{name} (pid {pid}) {mib} MiB" for mib, pid, name in largest())
        parts.append(f"{free} MiB of memory are available, less than {limit_mib}; the largest processes: {named}")
    if gpu_limit_mib and shutil.which("nvidia-smi"):
        for line in run("nvidia-smi", "--query-gpu=index,memory.free", "--format=csv,noheader,nounits").split("\n"):
            index, _, mib = line.partition(",")
            if mib.strip().isdigit() and int(mib) < gpu_limit_mib:
                owners = run("nvidia-smi", "--query-compute-apps=pid,used_memory,name", "--format=csv,noheader")
                named = "; ".join(owners.strip().split("\n"))
                parts.append(f"GPU {index} has {mib.strip()} MiB free, less than {gpu_limit_mib}; held by: {named}")
    return "; ".join(parts) or None


def available_mib():
    for line in Path("/proc/meminfo").read_text(encoding="utf-8").split("\n"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) >> 10
    return 0


def largest():
    """Return ``(MiB, pid, name)`` of the processes with the most memory."""
    page, found = os.sysconf("SC_PAGE_SIZE"), []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit():
                pages = int((entry / "statm").read_text(encoding="utf-8").split()[1])
                name = (entry / "comm").read_text(encoding="utf-8", errors="replace").strip()
                found.append((pages * page >> 20, entry.name, name))
        except (OSError, IndexError):
            continue
    return sorted(found, reverse=True)[:PROCESSES]


# Metrics of each service: type, help, value.
SERIES = {
    "up": ("gauge", "1 if the unit runs.", lambda one: one.running),
    "ready": ("gauge", "1 if the process has served.", lambda one: one.running and one.ready),
    "restarts_total": ("counter", "Restarts by the watchdog since boot.", lambda one: one.restarted),
    "planned_restarts_total": ("counter", "Nightly restarts since boot.", lambda one: one.planned),
    "person_needed": ("gauge", "1 if restarts did not help.", lambda one: one.given_up),
}


# -- releases and certificates ----------------------------------------------------------------------------------------


def releases():
    """Return ``(service, release, program)`` of each service that Ansible deployed here; see service_release.

    The program is named by its links and inputs, such as its version, so hosts with other settings have the same name.
    """
    found = []
    for path in sorted(STORE.glob("*/state.json")):
        try:
            current = json.loads(path.read_text(encoding="utf-8"))["current"]
            release = json.loads((path.parent / "releases" / f"{current}.json").read_text(encoding="utf-8"))
            links = sorted(Path(link["target"]).name for link in release["links"])
            inputs = [str(value)[:12] for _, value in sorted((release.get("inputs") or {}).items())]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
        if links or inputs:
            found.append((path.parent.name, current, " ".join(links + inputs)))
    return found


def certificate_end(path):
    """Return the Unix time at which the first certificate of a PEM file expires; 0 if it cannot be read."""
    try:
        text = Path(path).read_text(encoding="ascii", errors="replace")
        begin = text.index("-----BEGIN CERTIFICATE-----")
        end = text.index("-----END CERTIFICATE-----", begin)
        return not_after(ssl.PEM_cert_to_DER_cert(text[begin:end] + "-----END CERTIFICATE-----\n"))
    except (OSError, ValueError, IndexError):
        return 0


def not_after(der):
    """Return the end of a certificate's validity: RFC 5280, section 4.1."""
    _, at, _ = element(der, 0)  # Certificate
    _, at, _ = element(der, at)  # TBSCertificate
    tag, _, behind = element(der, at)
    at = behind if tag == 0xA0 else at  # the version is optional
    for _ in ("serialNumber", "signature", "issuer"):
        _, _, at = element(der, at)
    _, at, _ = element(der, at)  # Validity
    _, _, at = element(der, at)  # notBefore
    tag, at, behind = element(der, at)
    text = der[at:behind].decode("ascii")
    if tag == 0x17:  # UTCTime has a year of two digits
        text = ("20" if text < "5" else "19") + text
    return calendar.timegm(time.strptime(text, "%Y%m%d%H%M%SZ"))


def element(der, at):
    """Return ``(tag, start of the content, end of the content)`` of the DER element at an offset."""
    tag, length, begin = der[at], der[at + 1], at + 2
    if length & 0x80:
        size = length & 0x7F
        length, begin = int.from_bytes(der[begin : begin + size], "big"), begin + size
    if begin + length > len(der):
        raise ValueError("a certificate is truncated")
    return tag, begin, begin + length


def labels(**named):
    """Return labels in Prometheus' text format."""
    escaped = {
        name: value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for name, value in named.items()
    }
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped.items()) + "}"


# -- restarts and reports ---------------------------------------------------------------------------------------------


class Watchdog:
    """All services of the settings and their state."""

    def __init__(self, settings):
        self.settings = settings
        self.services = [Service(entry["unit"], *(entry[name] for name in TIMES)) for entry in settings["services"]]
        self.state = Path(settings["state"])
        self.warned = self.read = float("-inf")
        self.certificates = {}
        noted = record(self.state)
        for service in self.services:
            service.remember(noted["services"].get(service.unit) or {})
            service.begun = service.answered = service.moved = time.monotonic()

    def round(self):
        """Look at every service and the memory once, and act."""
        for entry, service in zip(self.settings["services"], self.services, strict=True):
            seen, gave_up = look(entry), service.given_up
            self.note()  # counts restarts that others took from the budget before their new process is evaluated
            fault = service.fault(seen, time.monotonic())
            if fault:
                self.heal(entry, service, fault)
            if service.given_up and not gave_up:
                tried = self.settings["restarts"]
                say(3, f"{service.unit}: {fault}, and {tried} restarts did not help. A person is needed.")
            elif gave_up and not service.given_up:
                say(5, f"{service.unit} serves again.")
        self.watch_memory()
        self.note()
        self.tell()

    def heal(self, entry, service, fault):
        if not service.may_restart(time.monotonic(), *(self.settings[name] for name in BUDGET)):
            return
        with held(service.unit.removesuffix(".service")) as free:
            if not free:
                return
            folder = keep_evidence(entry, self.settings["evidence"], self.settings["evidence_mib"])
            say(4, f"{service.unit}: {fault}; restarting it. Evidence is in {folder}.")
            service.attempts.append(time.monotonic())
            service.restarted += 1
            # Saved first, so that the attempt counts even if this program is stopped now.
            self.note()
            run("systemctl", "restart", service.unit, timeout=RESTART_TIMEOUT)
            service.begin(process_of(unit_state(service.unit)), time.monotonic())

    def watch_memory(self):
        warning = memory_warning(self.settings["memory_mib"], self.settings["gpu_memory_mib"])
        if warning and time.monotonic() - self.warned >= REMIND:
            say(4, warning)
            self.warned = time.monotonic()

    def note(self):
        """Count the restarts of other programs and write the record."""
        with alone(self.state):
            noted = record(self.state)["services"]
            for service in self.services:
                known = noted.get(service.unit) or {}
                service.count(known.get("spent", []))
                service.expect(known.get("coming", 0))
            names = ("attempts", "given_up", "process", "ready", "known", "restarted", "planned", "lent")
            known = {one.unit: {name: getattr(one, name) for name in names} for one in self.services}
            replace(self.state, json.dumps({"boot": boot(), "services": known}))

    def tell(self):
        """Write the metrics for node_exporter's textfile collector."""
        lines = ["# HELP llm_watchdog_last_look_seconds Unix time of the last look."]
        lines += ["# TYPE llm_watchdog_last_look_seconds gauge", f"llm_watchdog_last_look_seconds {int(time.time())}"]
        for name, (kind, text, value) in SERIES.items():
            lines += [f"# HELP llm_watchdog_{name} {text}", f"# TYPE llm_watchdog_{name} {kind}"]
            lines += [f'llm_watchdog_{name}{{unit="{one.unit}"}} {value(one):d}' for one in self.services]
        lines += ["# HELP llm_release_info The release of a service, and the program that it runs."]
        lines += ["# TYPE llm_release_info gauge"]
        for service, release, program in releases():
            lines.append(f"llm_release_info{labels(unit=f'{service}.service', release=release, program=program)} 1")
        lines += self.certificate_lines()
        replace(Path(self.settings["textfile"]), "\n".join(lines) + "\n")

    def certificate_lines(self):
        """Return the metrics of the certificates, which are read again every REREAD seconds."""
        if time.monotonic() - self.read >= REREAD:
            self.certificates = {path: certificate_end(path) for path in self.settings.get("certificates", [])}
            self.read = time.monotonic()
        lines = ["# HELP llm_certificate_end_seconds Unix time at which a certificate ends; 0 if it cannot be read."]
        lines += ["# TYPE llm_certificate_end_seconds gauge"]
        lines += [f"llm_certificate_end_seconds{labels(path=path)} {end}" for path, end in self.certificates.items()]
        return lines if self.certificates else []


@contextmanager
def alone(state):
    """Lock the record against other writers."""
    with state.with_suffix(".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def record(state):
    """Return the record of this boot, or an empty one: clock and budget start again with each boot."""
    try:
        noted = json.loads(state.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        noted = {}
    return noted if noted.get("boot") == boot() else {"boot": boot(), "services": {}}


def spend(settings, unit):
    """Take a restart of ``unit`` from its budget for the caller and save the evidence; return whether it is granted.

    If not, `why` or `wait` (seconds) has the reason. A unit that is not watched has no budget: ``counted`` is false.
    """
    entry = next((each for each in settings["services"] if each["unit"] == unit), None)
    if entry is None:
        return {"granted": True, "counted": False}
    state, now = Path(settings["state"]), time.monotonic()
    service = Service(unit, *(entry[name] for name in TIMES))
    with alone(state):
        noted = record(state)
        known = noted["services"].setdefault(unit, {})
        service.remember(known)
        service.count(known.get("spent", []))
        if not service.may_restart(now, *(settings[name] for name in BUDGET)):
            if service.given_up:
                return {"granted": False, "why": f"{settings['restarts']} restarts did not help"}
            return {"granted": False, "wait": round(service.attempts[-1] + settings["pause"] - now + 0.5)}
        known["spent"] = [*known.get("spent", []), now]
        replace(state, json.dumps(noted))
    folder = keep_evidence(entry, settings["evidence"], settings["evidence_mib"])
    return {"granted": True, "counted": True, "left": settings["restarts"] - len(service.attempts) - 1,
            "evidence": str(folder)}  # fmt: skip


# -- nightly restart --------------------------------------------------------------------------------------------------


@dataclass
class Quiet:
    """Tracks for how long some services have been idle."""

    needed: float
    since: float = 0
    progress: list | None = None
    why: str = ""  # reason for not being idle long enough

    def long_enough(self, busy: str | None, progress: list, now: float) -> bool:
        """Add a sample (why services are busy, their progress); return whether they were idle long enough."""
        if busy or progress != self.progress:
            self.since = now
        self.progress, self.why = progress, busy or f"the services were never idle for {self.needed:.0f} s"
        return not busy and now - self.since >= self.needed


def in_the_way(entry: dict, seen: Seen, known: dict) -> str | None:
    """Return why a service must not be restarted as planned now, or None."""
    if seen.process is None:
        return "it is not running"
    if known.get("given_up"):
        return "a person is needed for it"
    if seen.hands_off:
        return seen.hands_off
    if not seen.answers:
        return "it does not answer"
    if entry["metrics"] and seen.pending is None:
        return "its metrics cannot be read, so it may be busy"
    return f"{seen.pending:.0f} requests are running or waiting" if seen.pending else None


class Night:
    """The planned restart of the services in the settings, one after the other."""

    def __init__(self, settings):
        self.settings, self.plan, self.state = settings, settings["night"], Path(settings["state"])
        by_unit = {entry["unit"]: entry for entry in settings["services"]}
        self.entries = [by_unit[unit] for unit in self.plan["units"]]
        self.mark = self.state.with_name(NIGHT_OUT)  # exists while this program keeps the host out of rotation

    def run(self):
        """Restart the services once they are idle; return whether they serve again and the host is back."""
        end = time.monotonic() + self.plan["patience"]
        blocked = next((why for entry in self.entries if (why := out_of_rotation(entry["unit"]))), None)
        if blocked:
            say(4, f"no restart tonight: {blocked}.")
            return True
        good = False
        try:
            good = self.leave() and self.each(end)
        finally:  # also after a signal
            good = self.rejoin() and good
        return good

    def each(self, end):
        """Restart one service after the other; return whether every restarted one serves again."""
        for number, entry in enumerate(self.entries):
            # A service without metrics counts as idle when all others are idle.
            others = self.entries[number + 1 :] if entry["metrics"] else [one for one in self.entries if one != entry]
            why = self.once([entry, *others], end)
            if why:
                say(4, f"{entry['unit']}: no restart tonight: {why}.")
                return True
            if not self.serves(entry):
                return False
        return True

    def once(self, entries, end):
        """Restart the first of ``entries`` once all of them are idle; return None, or why it was not restarted."""
        quiet = Quiet(self.plan["quiet"])
        # Leave enough time even if the previous service took long to serve again.
        end = max(end, time.monotonic() + 2 * self.plan["quiet"])
        while not (self.quiet(quiet, entries) and self.restart(entries[0]["unit"])):
            if time.monotonic() >= end:
                return quiet.why
            time.sleep(self.settings["interval"])
        return None

    def serves(self, entry):
        """Wait until a restarted service serves again; log the outcome and return it."""
        begun = time.monotonic()
        while time.monotonic() - begun < entry["ready_within"]:
            if fetch(entry["health"])[0] == 200 and unit_state(entry["unit"]).get("ActiveState") == "active":
                say(5, f"{entry['unit']} serves again, {time.monotonic() - begun:.0f} s after its planned restart.")
                return True
            time.sleep(min(self.settings["interval"], 1))
        say(3, f"{entry['unit']} has not served since its planned restart {entry['ready_within']} s ago.")
        return False

    def quiet(self, quiet, entries):
        seen = [look(entry) for entry in entries]
        known = record(self.state)["services"]
        found = zip(entries, seen, strict=True)
        ways = [(entry["unit"], in_the_way(entry, each, known.get(entry["unit"]) or {})) for entry, each in found]
        busy = next((f"{unit}: {why}" for unit, why in ways if why), None)
        return quiet.long_enough(busy, [each.progress for each in seen], time.monotonic())

    def restart(self, unit):
        """Restart a service unless something else works on it; return whether it was restarted."""
        with held(unit.removesuffix(".service")) as free:
            if not free:
                return False
            say(5, f"{unit}: planned restart after {self.plan['quiet']} s without requests.")
            with alone(self.state):
                noted = record(self.state)
                known = noted["services"].setdefault(unit, {})
                known["coming"] = known.get("coming", 0) + 1
                replace(self.state, json.dumps(noted))
            run("systemctl", "restart", unit, timeout=RESTART_TIMEOUT)
        return True

    def leave(self):
        """Take the host out of rotation if a command is set; return whether the run may continue."""
        if not self.plan["drain_command"]:
            return True
        self.mark.touch()
        problem = command(self.plan["drain_command"])
        if problem:
            say(3, f"no restart tonight: the host could not be taken out of rotation: {problem}.")
        return not problem

    def rejoin(self):
        """Put the host back if this program took it out, and no Ansible run keeps it out; return False on failure."""
        if not self.mark.exists():
            return True
        wanted_out = any(out_of_rotation(entry["unit"]) for entry in self.entries)
        problem = None if wanted_out else command(self.plan["restore_command"])
        if problem:
            say(3, f"the host could not be put back into rotation: {problem}.")
            return False
        self.mark.unlink()
        return True


def end_of_night(settings):
    """Put the host back if a reboot interrupted a nightly restart; warn if nightly restarts are switched off now."""
    if not settings["night"]:
        mark = Path(settings["state"]).with_name(NIGHT_OUT)
        if mark.exists():
            say(
                3,
                f"a nightly restart left the host out of rotation and is off now: put the host back, then rm {mark}.",
            )
        return
    with held("night") as free:
        if free:
            Night(settings).rejoin()


def command(argv):
    """Run a command of the settings; return None, or its last line of output if it failed."""
    try:
        done = subprocess.run(argv, capture_output=True, timeout=ROTATION_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    last_line = (done.stderr + done.stdout).decode("utf-8", "replace").strip().split("\n")[-1]
    return (last_line or f"{argv[0]}: exit code {done.returncode}") if done.returncode else None


def replace(path, text):
    """Write a file atomically."""
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    beside.chmod(0o644)
    beside.replace(path)


def boot():
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()


def say(priority, text):
    """Write a line to the journal with a syslog priority: 3 error, 4 warning, 5 notice."""
    print(f"<{priority}>{text}", flush=True)


def notify(text):
    """Send a state to systemd; see sd_notify(3)."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as talk:
            talk.sendto(text.encode(), f"\0{address[1:]}" if address.startswith("@") else address)


def check(settings):
    """Return the error in the settings, or None."""
    units = [service["unit"] for service in settings["services"]]
    twice = sorted({unit for unit in units if units.count(unit) > 1})
    if twice:
        return f"{', '.join(twice)} occurs twice"
    unknown = [unit for unit in (settings["night"] or {"units": []})["units"] if unit not in units]
    if unknown:
        return f"{', '.join(unknown)} is in the night units but not among the services"
    bare = [service["unit"] for service in settings["services"] if service["metrics"] and not service["progress"]]
    return f"{', '.join(bare)} has metrics but no progress series" if bare else None


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("settings", type=Path)
    parser.add_argument("--check", action="store_true", help="only say whether the settings are in order")
    parser.add_argument("--spend", metavar="UNIT", help="take a restart of UNIT from its budget; the answer is JSON")
    parser.add_argument("--night", action="store_true", help="restart services as planned, each when it is idle")
    options = parser.parse_args()
    settings = json.loads(options.settings.read_text(encoding="utf-8"))
    problem = check(settings)
    if problem:
        sys.exit(problem)
    if options.check:
        return
    if options.spend:
        print(json.dumps(spend(settings, options.spend)))
        return
    if options.night:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped before it finished"))
        with held("night"):
            sys.exit(not Night(settings).run())
    end_of_night(settings)
    watchdog = Watchdog(settings)
    while True:
        watchdog.round()
        notify("READY=1\nWATCHDOG=1")
        time.sleep(settings["interval"])


if __name__ == "__main__":
    main()
