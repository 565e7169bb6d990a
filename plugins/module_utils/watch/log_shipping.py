"""Follow one line from where it is written to where logs are stored, for each job of a log shipper.

For a job of the journal a new line is written in the name of its unit. A log file belongs to the program that writes
it, so for a file its current last line is looked for. If Loki accepts lines but answers no queries, only the shipper's
own metrics are available, and the result says so. Plain Python; needs root.
Sources: "Native Journal Protocol" of systemd, unix(7), Loki's HTTP API, promtail's positions file, VictoriaLogs'
/select/logsql/query, the OpenTelemetry Collector's internal telemetry.
"""

from __future__ import annotations

import json
import os
import re
import socket
import struct
import time
import urllib.parse
import uuid
from dataclasses import dataclass
from pathlib import Path

from ..release import probes, systemd_unit
from . import metrics_page

JOURNAL = "/run/systemd/journal/socket"
CLOSED = (401, 403, 404, 405)  # a gateway that accepts lines but answers no queries
HOUR, WEEK = 3600, 7 * 24 * 3600
TAIL = 1 << 16  # bytes at the end of a file that are searched for its last line
SHOWN = 200  # characters of a line that are enough to find it


@dataclass(frozen=True)
class Loki:
    """Where lines are sent, and the login for queries."""

    url: str
    user: str = ""
    password: str = ""
    bearer: str = ""
    tenant: str = ""

    def ask(self, labels: dict, text: str, start: float, timeout: float) -> tuple[int, list]:
        """Return the status and the streams with these labels whose lines contain ``text``, since a Unix time."""
        chosen = ",".join(f"{name}={json.dumps(value)}" for name, value in sorted(labels.items()))
        query = f"{{{chosen}}}" + (f" |= {json.dumps(text)}" if text else "")
        span = {"start": int(max(start, time.time() - WEEK) * 1e9), "end": int((time.time() + 600) * 1e9)}
        query_string = urllib.parse.urlencode({"query": query, **span, "limit": 500, "direction": "backward"})
        url = f"{self.url.rstrip('/')}/loki/api/v1/query_range?{query_string}"
        status, body = probes.ask(url, self.bearer or None, timeout=timeout, headers=self.headers)
        return status, json.loads(body)["data"]["result"] if status == 200 else [body]

    @property
    def headers(self) -> dict:
        known = {**probes.login(self.user, self.password), "X-Scope-OrgID": self.tenant}
        return {name: value for name, value in known.items() if value}


@dataclass(frozen=True)
class Receiver:
    """Where a collector sends lines; VictoriaLogs, recognized by its address, can be queried for them."""

    url: str
    user: str = ""
    password: str = ""
    bearer: str = ""
    authorities: str = ""

    @property
    def answers(self) -> bool:
        return "/insert/opentelemetry" in self.url

    def ask(self, attributes: dict, text: str, start: float, timeout: float) -> tuple[int, list]:
        """Return the status and the records with these attributes whose text contains ``text``, since a Unix time."""
        chosen = " ".join(f"{json.dumps(name)}:={json.dumps(value)}" for name, value in sorted(attributes.items()))
        begin = f"{max(start, time.time() - WEEK):.3f}"
        query_string = {"query": f"{chosen} {json.dumps(text, ensure_ascii=False)}", "start": begin, "limit": 10}
        url = f"{self.url.partition('/insert/')[0]}/select/logsql/query?{urllib.parse.urlencode(query_string)}"
        headers = probes.login(self.user, self.password)
        status, body = probes.ask(
            url, self.bearer or None, timeout=timeout, headers=headers, authorities=self.authorities
        )
        return status, [json.loads(line) for line in body.splitlines() if line] if status == 200 else [body]


@dataclass(frozen=True)
class Collector:
    """The figures on the metrics page of an OpenTelemetry Collector."""

    metrics: str
    timeout: float = 5

    def counts(self, receiver: str = "") -> dict:
        """Return how many lines a receiver has read, and how many were sent, wait, may wait, and were lost."""
        status, page = probes.ask(self.metrics, timeout=self.timeout)
        if status != 200:
            raise OSError(f"{self.metrics} answered {status} instead of 200")

        def sent_to(name: str) -> float:
            return metrics_page.total(page, f"otelcol_exporter_{name}", exporter="otlp_http/logs")

        return {
            "read": metrics_page.total(page, "otelcol_receiver_accepted_log_records", receiver=receiver),
            "sent": sent_to("sent_log_records"),
            "waiting": sent_to("queue_size"),
            "room": sent_to("queue_capacity"),
            "lost": sent_to("send_failed_log_records"),
        }


@dataclass(frozen=True)
class Shipper:
    """promtail's own state: its positions file and its page of metrics."""

    positions: str
    metrics: str
    timeout: float = 5

    def position(self, name: str) -> str:
        """Return the position of a file, or the cursor of a journal job; empty if there is none."""
        text = Path(self.positions).read_text(errors="replace") if Path(self.positions).exists() else ""
        found = re.search(rf'^[ \t]+"?{re.escape(name)}"?: "?([^"\n]*)"?$', text, re.MULTILINE)
        return found[1] if found else ""

    def moment(self, job: str) -> float:
        """Return the Unix time of the last line that a journal job has read; 0 if there is none."""
        found = re.search(r"(?:^|;)t=([0-9a-f]+)(?:;|$)", self.position(f"cursor-{job}"))
        return int(found[1], 16) / 1e6 if found else 0

    def counts(self) -> tuple[float, float]:
        """Return how many lines were sent and how many were lost."""
        status, page = probes.ask(self.metrics, timeout=self.timeout)
        if status != 200:
            raise OSError(f"{self.metrics} answered {status} instead of 200")
        return tuple(metrics_page.total(page, f"promtail_{name}_entries_total") for name in ("sent", "dropped"))


def write_as(unit: str, text: str) -> bool:
    """Write a line into the journal in the name of ``unit``'s main process; return False if it has none."""
    pid = int(systemd_unit.show(unit).get("MainPID") or 0)
    if not pid:
        return False
    owner = Path(f"/proc/{pid}").stat()
    message = f"MESSAGE={text}\nPRIORITY=6\nSYSLOG_IDENTIFIER=checklist\n".encode()
    # Root may write for another process; the journal then records the line under that process's unit.
    sender = struct.pack("iII", pid, owner.st_uid, owner.st_gid)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.connect(JOURNAL)
        journal.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_CREDENTIALS, sender)])
    return True


def last_of(unit: str) -> tuple[str, float] | None:
    """Return the last line of ``unit`` in the journal with its Unix time, None if there is none."""
    output = systemd_unit.run(
        "journalctl", f"_SYSTEMD_UNIT={unit}", "--lines=1", "--output=json", "--quiet", "--no-pager", check=False
    ).stdout
    if not output.strip():
        return None
    line = json.loads(output)
    return str(line.get("MESSAGE")), int(line["__REALTIME_TIMESTAMP"]) / 1e6


def journal_job(
    loki: Loki, shipper: Shipper, job: str, unit: str, labels: dict, other_units: list[str], rewrites: bool, wait: float
) -> tuple[str, bool]:
    """A line written now in the name of ``unit`` arrives, and none of ``other_units`` is among the job's lines.

    ``rewrites`` says that the job's stages may drop or change a line. For a unit that does not run no line can be
    written: then its last line is looked for.
    """
    before, begun, text = shipper.counts(), time.time(), f"checklist {uuid.uuid4().hex}"
    what = "a line written now"
    fresh = write_as(unit, text)
    if not fresh:
        known = last_of(unit)
        if not known:
            return f"{unit} does not run and has no line in the journal", False
        (text, begun), what = known, f"the last line of {unit}, which does not run,"
    # Positions are written once a second, so a line is often in Loki before they show that it was read.
    asking = fresh and not rewrites

    def read() -> bool:
        nonlocal asking
        status, found = loki.ask(labels, text, begun - HOUR, shipper.timeout) if asking else (0, [])
        asking = asking and status == 200
        return bool(asking and found) or shipper.moment(job) >= begun - 0.001

    if not _until(read, wait):
        return f"{what} was not read by the job {job}", False
    return _arrived(loki, shipper, before, what, text, begun, labels, other_units, rewrites, wait)


def file_job(loki: Loki, shipper: Shipper, path: str, labels: dict, rewrites: bool, wait: float) -> tuple[str, bool]:
    """Every file of the glob ``path`` is read to its end, and the last line of the newest file arrives."""
    before = shipper.counts()
    files = {file: _last_line(file) for file in matching(path)}
    if not files:
        return f"no file matches {path}", False

    def behind() -> list[str]:
        places = {file: shipper.position(file) for file in files}
        return [file for file, (_, end) in files.items() if int(places[file] or -1) < end and end]

    if not _until(lambda: not behind(), wait):
        late = behind()
        return f"{len(late)} of {len(files)} files not read to the end, such as {late[0]}", False
    summary = f"{len(files)} file{'s' * (len(files) > 1)} read to the end"
    newest = max((file for file, (line, _) in files.items() if line), key=_written, default=None)
    if newest is None:
        return f"{summary}, without a line yet", True
    written = _written(newest)
    if written < time.time() - WEEK:
        return f"{summary}; the last line is older than a week", True
    text = max(re.findall(r"[ -~]+", files[newest][0]), key=len, default="")[:SHOWN]
    measured, good = _arrived(
        loki, shipper, before, f"the last line of {newest}", text, written, labels, [], rewrites, wait
    )
    return f"{summary}; {measured}", good


def matching(path: str) -> list[str]:
    """Return the regular files of a glob; it may contain ``**``."""
    return sorted(str(file) for file in Path("/").glob(path.lstrip("/")) if file.is_file())


def _written(file: str) -> float:
    return Path(file).stat().st_mtime


def _last_line(file: str) -> tuple[str, int]:
    """Return the last complete line of a file and where it ends; ("", 0) if there is none."""
    with Path(file).open("rb") as handle:
        start = max(0, handle.seek(0, os.SEEK_END) - TAIL)
        handle.seek(start)
        tail = handle.read()
    end = tail.rfind(b"\n") + 1
    line = next((line for line in reversed(tail[:end].split(b"\n")) if line.strip()), b"")
    return line.decode(errors="replace").strip(), start + end if end else 0


def _until(holds, wait: float) -> bool:
    deadline, pause = time.monotonic() + wait, 0.1
    while not (held := holds()) and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(pause * 1.1, 0.5)
    return bool(held)


def _arrived(
    loki: Loki, shipper: Shipper, before, what: str, text: str, written: float, labels: dict, other_units: list[str],
    rewrites: bool, wait: float,
) -> tuple[str, bool]:  # fmt: skip
    """Look for a line that was read; ``before`` are the counts from before it was written."""
    found: list = []
    status = 0

    def there() -> bool:
        nonlocal status, found
        status, found = loki.ask(labels, text, written - HOUR, shipper.timeout)
        return bool(found) or status != 200

    _until(there, 0 if rewrites else wait)
    lost = shipper.counts()[1] - before[1]
    if status in CLOSED:
        if lost or not _until(lambda: shipper.counts()[0] > 0, wait):
            return f"{what} was read and not sent; {lost:.0f} lines were lost meanwhile", False
        return f"{what} was read, and nothing was lost; Loki answers no questions ({status})", True
    if status != 200:
        return f"Loki answered {status}: {' '.join(str(found[0]).split())[:60]}", False
    if not found and rewrites:
        return f"{what} was read, and is not in Loki as it is; the job's pipeline_stages may change it", not lost
    if not found:
        return f"{what} is not in Loki", False
    foreign = _foreign(loki, labels, other_units, shipper.timeout)
    return (f"{what} is in Loki, mixed with {foreign}", False) if foreign else (f"{what} is in Loki", True)


def _foreign(loki: Loki, labels: dict, other_units: list[str], timeout: float) -> str:
    """Return which of ``other_units`` have lines under these labels in the last hour."""
    _, streams = loki.ask(labels, "", time.time() - HOUR, timeout) if other_units else (200, [])
    return ", ".join(sorted({stream["stream"].get("unit", "") for stream in streams} & set(other_units)))


# -- the collector ----------------------------------------------------------------------------------------------------


def queue(collector: Collector, watched: float) -> tuple[str, bool]:
    """Lines queued on disk get fewer or are sent, there is room for more, and none is lost during the check."""
    before, end = collector.counts(), time.monotonic() + watched
    after = before
    while (after["waiting"] or after["lost"]) and time.monotonic() < end:
        time.sleep(0.5)
        after = collector.counts()
        if after["sent"] > before["sent"] and not after["lost"]:
            break
    moves = not after["waiting"] or after["sent"] > before["sent"]
    text = f"{after['sent']:.0f} lines sent since its start, {after['waiting']:.0f} of {after['room']:.0f} wait"
    text += f", {after['lost']:.0f} lost" * bool(after["lost"]) + "; none is sent" * (not moves)
    return text, moves and after["waiting"] < 0.8 * after["room"] and after["lost"] == before["lost"]


def collected_unit(receiver: Receiver, collector: Collector, job: str, unit: str, attributes: dict, wait: float):
    """A line written now in the name of ``unit`` is read, sent, and found if the receiver can be queried."""
    source = f"journald/{job}"
    before, begun, text = collector.counts(source), time.time(), f"checklist {uuid.uuid4().hex}"
    if not write_as(unit, text):
        return f"{unit} does not run, so no line can be written in its name", None
    if not _until(lambda: collector.counts(source)["read"] > before["read"], wait):
        return f"a line written now was not read by the job {job}", False
    return _sent(receiver, collector, before, "a line written now", text, begun, attributes, wait)


def collected_files(receiver: Receiver, collector: Collector, job: str, path: str, attributes: dict, wait: float):
    """The last line of the newest file of the glob ``path`` is found if the receiver can be queried."""
    counts = collector.counts(f"file_log/{job}")
    files = {file: _last_line(file)[0] for file in matching(path)}
    if not files:
        return f"no file matches {path}", False
    summary = f"{len(files)} file{'s' * (len(files) > 1)}, {counts['read']:.0f} lines read since the start"
    newest = max((file for file, line in files.items() if line), key=_written, default=None)
    if newest is None or _written(newest) < time.time() - WEEK:
        return f"{summary}; no line of the last week", True
    text = max(re.findall(r"[ -~]+", _message(files[newest])), key=len, default="")[:SHOWN]
    what = f"the last line of {newest}"
    if not receiver.answers:
        return f"{summary}; nothing here answers whether {what} arrived", None
    measured, good = _sent(receiver, collector, {"sent": -1, "lost": 0}, what, text, _written(newest), attributes, wait)
    return f"{summary}; {measured}", good


def _message(line: str) -> str:
    """Return the text that the collector stores for a line: of JSON its message."""
    try:
        read = json.loads(line)
    except ValueError:
        return line
    messages = [read.get(name) for name in ("message", "msg")] if isinstance(read, dict) else []
    return next((text for text in messages if isinstance(text, str)), line)


def _sent(
    receiver: Receiver, collector: Collector, before: dict, what: str, text: str, written: float, attributes: dict,
    wait: float,
) -> tuple[str, bool]:  # fmt: skip
    """Look for a line that was read; ``before`` are the counts from before it was written."""
    if not _until(lambda: collector.counts()["sent"] > before["sent"], wait):
        after = collector.counts()
        lost = after["lost"] - before.get("lost", 0)
        refused = f"; the receiver refused {lost:.0f} for good, with a status such as 401 or 404" if lost > 0 else ""
        return f"{what} was read and not sent; {after['waiting']:.0f} lines wait{refused}", False
    status, found = 0, []

    def there() -> bool:
        nonlocal status, found
        status, found = receiver.ask(attributes, text, written - HOUR, collector.timeout)
        return bool(found) or status != 200

    if not receiver.answers:
        return f"{what} was read and sent, and the receiver took it", True
    _until(there, wait)
    if status in CLOSED:
        return f"{what} was read and sent; the receiver answers no questions ({status})", True
    if status != 200:
        return f"the receiver answered {status}: {' '.join(str(found[0]).split())[:60]}", False
    return (f"{what} has arrived", True) if found else (f"{what} was sent and is not there", False)
