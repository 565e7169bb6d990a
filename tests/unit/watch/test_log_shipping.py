"""A log line is followed to Loki, job by job: with the stand-in of Loki, and a shipper that is a few files."""

from __future__ import annotations

import json
import os
import threading
import time
import urllib.parse
import urllib.request
from urllib.error import HTTPError

import pytest

from lab import services
from lab.stand_ins import loki as stand_in
from plugins.module_utils.release import checklist
from plugins.module_utils.watch import log_shipping

LABELS = {"host": "h", "job": "app"}


class Shipping:
    """Promtail as seen on this host: what it read, sent and lost."""

    def __init__(self, folder, server):
        self.positions, self.server, self.folder = folder / "positions.yaml", server, folder
        self.marks: list[tuple[str, str]] = []
        self.counted(0)

    def counted(self, sent, lost=0):
        page = f'promtail_sent_entries_total{{host="l"}} {sent}\npromtail_dropped_entries_total{{reason="x"}} {lost}\n'
        self.server.pages["/metrics"] = (200, page)

    def reads(self, **places):
        lines = [f'  {name.replace("__", "-")}: "{place}"' for name, place in places.items()]
        self.positions.write_text("positions:\n" + "\n".join(lines) + "\n")

    def at(self, file, place):
        self.positions.write_text(f'positions:\n  {file}: "{place}"\n  cursor-app: s=1;t=5\n')

    def options(self, url, **more):
        own = {"url": url, "metrics": f"{self.server.url}/metrics", "positions": str(self.positions)}
        return {**own, "labels": LABELS, "rewrites": False, "wait": 0, **more}

    def journal(self, url, **more):
        return checklist.journal_job(
            **self.options(url, job="app", unit="app.service", other_units=["other.service"], **more)
        )

    def files(self, url, **more):
        return checklist.file_job(**self.options(url, path=str(self.folder / "*.log"), **more))


@pytest.fixture
def shipping(tmp_path, server):
    return Shipping(tmp_path, server)


@pytest.fixture
def loki(tmp_path):
    """Start a stand-in of Loki; returns its address."""
    running = []

    def start(callers=None):
        (tmp_path / "loki").mkdir(exist_ok=True)
        running.append(stand_in.serve(tmp_path / "loki", ("127.0.0.1", 0), callers))
        threading.Thread(target=running[-1].serve_forever, args=[0.02], daemon=True).start()
        return f"http://127.0.0.1:{running[-1].server_port}"

    yield start
    for each in running:
        each.shutdown()
        each.server_close()


def push(url, line, labels=None, **headers):
    body = {"streams": [{"stream": labels or LABELS, "values": [[str(time.time_ns()), line]]}]}
    headers = {"Content-Type": "application/json", **{name.replace("_", "-"): value for name, value in headers.items()}}
    request = urllib.request.Request(f"{url}/loki/api/v1/push", json.dumps(body).encode(), headers)
    urllib.request.urlopen(request, timeout=5).close()


@pytest.fixture
def unit_ships(monkeypatch, shipping):
    """Make lines of a unit read by the shipper, and pushed to an address if one is given."""

    def ship(url=None, read=True, lost=0, runs=True):
        def write_as(unit, text):
            assert unit == "app.service"
            if read:
                shipping.reads(cursor__app=f"s=1;i=2;t={int((time.time() + 1) * 1e6):x};x=3")
            if url:
                push(url, text)
            shipping.counted(1, lost)
            return runs

        monkeypatch.setattr(log_shipping, "write_as", write_as)

    return ship


class TestAJobOfTheJournal:
    def test_a_line_that_is_written_now_arrives(self, shipping, loki, unit_ships):
        url = loki()
        unit_ships(url)
        assert shipping.journal(url) == ("a line written now is in Loki", True)

    def test_earlier_lines_prove_nothing(self, shipping, loki, unit_ships):
        url = loki()
        push(url, "checklist of yesterday")
        unit_ships()
        assert shipping.journal(url) == ("a line written now is not in Loki", False)
        unit_ships(read=False)
        shipping.reads(cursor__app="s=1;t=5")
        assert shipping.journal(url) == ("a line written now was not read by the job app", False)

    def test_a_line_in_loki_was_read_whatever_the_positions_say(self, shipping, loki, unit_ships):
        """They are written only once a second. With stages that change lines, only they say what was read."""
        url = loki()
        unit_ships(url, read=False)
        shipping.reads(cursor__app="s=1;t=5")
        assert shipping.journal(url) == ("a line written now is in Loki", True)
        told = ("a line written now was not read by the job app", False)
        assert shipping.journal(url, rewrites=True) == told

    def test_an_earlier_equal_line_does_not_show_that_the_last_one_was_read(
        self, shipping, loki, unit_ships, monkeypatch
    ):
        url = loki()
        push(url, "good night")
        unit_ships(runs=False, read=False)
        shipping.reads(cursor__app="s=1;t=5")
        monkeypatch.setattr(log_shipping, "last_of", lambda unit: ("good night", time.time()))
        told = "the last line of app.service, which does not run, was not read by the job app"
        assert shipping.journal(url) == (told, False)

    def test_a_gateway_without_queries_is_asked_once_while_a_line_is_read(self, shipping, unit_ships, monkeypatch):
        asked = []
        monkeypatch.setattr(log_shipping.Loki, "ask", lambda *_: asked.append(1) or (403, ["no"]))
        unit_ships(read=False)
        shipping.reads(cursor__app="s=1;t=5")
        monkeypatch.setattr(log_shipping.time, "sleep", lambda _: None)
        assert shipping.journal("http://x", wait=0.2) == ("a line written now was not read by the job app", False)
        assert len(asked) == 1

    def test_lines_of_other_units_are_reported(self, shipping, loki, unit_ships):
        url = loki()
        unit_ships(url)
        push(url, "x", {**LABELS, "unit": "other.service"})
        assert shipping.journal(url) == ("a line written now is in Loki, mixed with other.service", False)

    @pytest.mark.parametrize("lost, ok", [(0, True), (3, False)])
    def test_stages_that_drop_lines_limit_the_check_to_what_was_read(self, shipping, loki, unit_ships, lost, ok):
        unit_ships(lost=lost)
        measured, passed = shipping.journal(loki(), rewrites=True)
        assert "was read, and is not in Loki as it is" in measured and passed == ok

    def test_the_last_line_of_a_unit_that_does_not_run(self, shipping, loki, unit_ships, monkeypatch):
        url = loki()
        unit_ships(runs=False)
        monkeypatch.setattr(log_shipping, "last_of", lambda unit: None)
        assert shipping.journal(url) == ("app.service does not run and has no line in the journal", False)
        monkeypatch.setattr(log_shipping, "last_of", lambda unit: ("good night", time.time() - 60))
        assert not shipping.journal(url)[1]
        push(url, "good night")
        assert shipping.journal(url) == ("the last line of app.service, which does not run, is in Loki", True)


class TestAJobOfFiles:
    def test_the_last_line_of_the_newest_file(self, shipping, loki):
        url = loki()
        assert shipping.files(url) == (f"no file matches {shipping.folder}/*.log", False)
        log = shipping.folder / "a.log"
        log.write_bytes(b"one\ncaf\xe9 two\nhalf")
        shipping.at(log, 4)
        assert shipping.files(url) == (f"1 of 1 files not read to the end, such as {log}", False)
        shipping.at(log, len(b"one\ncaf\xe9 two\n"))
        push(url, "one")
        message = f"1 file read to the end; the last line of {log} is"
        assert shipping.files(url) == (f"{message} not in Loki", False)
        push(url, "caf\ufffd two")
        assert shipping.files(url) == (f"{message} in Loki", True)

    def test_files_without_lines_and_old_ones(self, shipping, loki):
        log = shipping.folder / "a.log"
        log.touch()
        assert shipping.files(loki()) == ("1 file read to the end, without a line yet", True)
        log.write_text("long ago\n")
        os.utime(log, (0, 0))
        shipping.at(log, 9)
        assert shipping.files(loki()) == ("1 file read to the end; the last line is older than a week", True)


class TestALokiThatAsksForCredentials:
    def test_with_credentials_the_line_is_found(self, shipping, loki, unit_ships):
        url = loki(services.CALLERS)
        known = {"user": services.USER, "password": services.PASSWORD, "tenant": services.TENANT}
        unit_ships()
        header = {"Authorization": services.CALLERS[0]["authorization"], "X_Scope_OrgID": services.TENANT}
        push(url, "seen", **header)
        found = log_shipping.Loki(url, **known).ask(LABELS, "seen", time.time() - 60, 5)
        assert found[0] == 200 and found[1][0]["values"][0][1] == "seen"
        with pytest.raises(HTTPError, match="401"):
            push(url, "seen")

    @pytest.mark.parametrize("lost, ok", [(0, True), (2, False)])
    def test_a_receiver_without_queries_is_reported(self, shipping, loki, unit_ships, lost, ok):
        url = loki(services.CALLERS)
        unit_ships(lost=lost)
        measured, passed = shipping.journal(url, bearer=services.TOKEN, tenant=services.TENANT)
        assert passed == ok
        assert measured.endswith("Loki answers no questions (403)" if ok else "2 lines were lost meanwhile")


@pytest.mark.parametrize("key", ["/var/log/a b.log", "cursor-x"])
def test_positions(tmp_path, key):
    (tmp_path / "p").write_text(f'positions:\n  {key}: "12"\n  other: "3"\n')
    assert log_shipping.Shipper(str(tmp_path / "p"), "").position(key) == "12"
    assert log_shipping.Shipper(str(tmp_path / "none"), "").position(key) == ""


class Collecting:
    """A collector as seen on this host, and VictoriaLogs at the same address."""

    def __init__(self, server):
        self.server, self.metrics = server, f"{server.url}/metrics"
        self.store = f"{server.url}/insert/opentelemetry"
        self.counted()

    def counted(self, read=0, sent=0, waiting=0, lost=0):
        page = f'otelcol_receiver_accepted_log_records{{receiver="journald/app",transport=""}} {read}\n'
        page += 'otelcol_receiver_accepted_log_records{receiver="journald/other",transport=""} 900\n'
        for name, value in {
            "sent_log_records": sent, "queue_size": waiting, "queue_capacity": 100, "send_failed_log_records": lost
        }.items():  # fmt: skip
            page += f'otelcol_exporter_{name}{{exporter="otlp_http/logs",url_path="/v1/logs"}} {value}\n'
            page += f'otelcol_exporter_{name}{{exporter="otlp_http/traces"}} 7\n'
        self.server.pages["/metrics"] = (200, page)

    def has(self, status=200, *lines):
        self.server.pages["/select/logsql/query"] = (
            status,
            "".join(json.dumps({"_msg": line}) + "\n" for line in lines),
        )

    def journal(self, url):
        own = {"host": "h", "job": "app", "unit": "app.service", "service": "app"}
        return checklist.collector_journal(url=url, metrics=self.metrics, wait=0, **own)

    def files(self, url, path):
        own = {"host": "h", "job": "app", "path": str(path), "service": "app"}
        return checklist.collector_files(url=url, metrics=self.metrics, wait=0, **own)


@pytest.fixture
def collecting(server):
    return Collecting(server)


@pytest.fixture
def unit_writes(monkeypatch, collecting):
    """Make a line of a unit change the collector's counters."""

    def write(runs=True, **counts):
        def write_as(unit, text):
            collecting.counted(**counts)
            return runs

        collecting.counted()
        monkeypatch.setattr(log_shipping, "write_as", write_as)

    return write


class TestTheCollector:
    @pytest.mark.parametrize(
        "counts, message, good",
        [
            ({"sent": 5}, "5 lines sent since its start, 0 of 100 wait", True),
            ({"sent": 5, "waiting": 3}, "5 lines sent since its start, 3 of 100 wait; none is sent", False),
            ({"sent": 5, "lost": 2}, "5 lines sent since its start, 0 of 100 wait, 2 lost", True),
        ],
    )
    def test_the_queue(self, collecting, counts, message, good):
        collecting.counted(**counts)
        assert checklist.collector_queue(collecting.metrics, watched=0) == (message, good)

    def test_a_line_that_is_written_now_is_followed_as_far_as_it_can_be(self, collecting, unit_writes):
        unit_writes(read=1, sent=1)
        message = "a line written now was read and sent, and the receiver took it"
        assert collecting.journal("http://loki:3100/otlp") == (message, True)
        unit_writes(read=1, sent=1)
        collecting.has(200, "checklist")
        assert collecting.journal(collecting.store) == ("a line written now has arrived", True)
        unit_writes(read=1, sent=1)
        collecting.has(200)
        assert collecting.journal(collecting.store) == ("a line written now was sent and is not there", False)
        unit_writes(read=1, sent=1)
        collecting.has(401)
        message = "a line written now was read and sent; the receiver answers no questions (401)"
        assert collecting.journal(collecting.store) == (message, True)

    def test_the_place_where_lines_stop_is_reported(self, collecting, unit_writes):
        unit_writes()
        assert collecting.journal(collecting.store) == ("a line written now was not read by the job app", False)
        unit_writes(read=1, waiting=4)
        assert collecting.journal(collecting.store) == ("a line written now was read and not sent; 4 lines wait", False)
        unit_writes(read=1, lost=2)
        message = "; the receiver refused 2 for good, with a status such as 401 or 404"
        assert collecting.journal(collecting.store)[0].endswith(f"0 lines wait{message}")
        unit_writes(runs=False)
        message = "app.service does not run, so no line can be written in its name"
        assert collecting.journal(collecting.store) == (message, None)

    def test_files(self, collecting, tmp_path):
        assert collecting.files(collecting.store, tmp_path / "*.log") == (f"no file matches {tmp_path}/*.log", False)
        (tmp_path / "a.log").write_text('{"message": "from JSON"}\n')
        collecting.counted(sent=1)
        collecting.has(200, "from JSON")
        measured, good = collecting.files(collecting.store, tmp_path / "*.log")
        assert good and measured.endswith(f"the last line of {tmp_path}/a.log has arrived")
        request = urllib.parse.unquote_plus(collecting.server.asked[-1][0])
        assert '"from JSON"' in request and '"host.name":="h" "job":="app" "service.name":="app"' in request
        assert collecting.files("http://loki:3100/otlp", tmp_path / "*.log")[1] is None


def test_it_asks_soon_at_first_and_never_waits_long(monkeypatch):
    pauses: list[float] = []
    answers = iter([False] * 30 + [True])
    monkeypatch.setattr(log_shipping.time, "sleep", pauses.append)
    assert log_shipping._until(lambda: next(answers), wait=60)
    assert (pauses[0], max(pauses), len(pauses)) == (0.1, 0.5, 30) and pauses == sorted(pauses)
