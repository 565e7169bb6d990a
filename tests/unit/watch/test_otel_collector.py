"""The collector's configuration, from promtail's jobs; the scenario tests it with the real program."""

from __future__ import annotations

import json
import re
import subprocess

import pytest
from ansible.errors import AnsibleFilterError

from plugins.filter import otel_collector as plugin
from plugins.module_utils.watch import otel_collector as collector

FILTERS = plugin.FilterModule().filters()
STAMP = "(EngineCore_DP0 pid=7) ERROR 11-26 20:00:00 [core.py:710]"


def settings(**more):
    return {
        "journal_jobs": [{"job": "vllm", "unit": "vllm.service"}],
        "file_jobs": [{"job": "app", "path": "/var/log/app/*.log"}],
        "journal_path": "/var/log/journal",
        "begin": "12h",
        "host": "gpu1",
        "endpoint": "http://watch:9428/insert/opentelemetry/",
        "ca_path": "",
        "headers": {},
        "authorized": False,
        "queue_size": 1000,
        "address": "127.0.0.1",
        "port": 8888,
        "health_port": 13133,
        "traces_endpoint": "",
        "traces_port": 4318,
        **more,
    }


class TestTheConfiguration:
    def test_one_receiver_a_job_and_none_of_another_unit(self):
        jobs = [{"job": "a", "unit": "a.service"}, {"job": "b", "unit": "b.service"}]
        written = collector.configuration(settings(journal_jobs=jobs))
        receivers = written["service"]["pipelines"]["logs"]["receivers"]
        assert receivers == ["journald/a", "journald/b", "file_log/app"] == list(written["receivers"])
        assert written["receivers"]["journald/a"]["matches"] == [{"_SYSTEMD_UNIT": "a.service"}]

    def test_what_proved_to_lose_nothing(self):
        written = collector.configuration(settings())
        queue = written["exporters"]["otlp_http/logs"]["sending_queue"]
        assert (queue["block_on_overflow"], queue["storage"], queue["queue_size"]) == (True, "file_storage", 1000)
        assert written["exporters"]["otlp_http/logs"]["retry_on_failure"]["max_elapsed_time"] == 0
        assert written["extensions"]["file_storage"]["fsync"] is False
        for receiver in written["receivers"].values():
            assert receiver["storage"] == "file_storage"
            assert receiver["retry_on_failure"] == {"enabled": True, "max_elapsed_time": 0}
        assert written["receivers"]["file_log/app"]["include"][0] == "/var/log/app/*.log"
        assert "/var/log/app/*.log.[0-9]" in written["receivers"]["file_log/app"]["include"]
        assert "/var/log/app/*.log*.gz" in written["receivers"]["file_log/app"]["exclude"]

    def test_the_endpoint_its_key_and_its_headers(self):
        (one,) = collector.configuration(settings(authorized=True, headers={"X-Scope-OrgID": "a$b"}))[
            "exporters"
        ].values()
        assert one["endpoint"] == "http://watch:9428/insert/opentelemetry"
        assert one["headers"] == {
            "VL-Stream-Fields": "host.name,service.name",
            "X-Scope-OrgID": "a$$b",
            "Authorization": "${env:OTEL_COLLECTOR_AUTHORIZATION}",
        }
        (one,) = collector.configuration(settings(ca_path="/etc/ca.pem"))["exporters"].values()
        assert "Authorization" not in one["headers"] and one["tls"] == {"ca_file": "/etc/ca.pem"}

    def test_nothing_of_the_inventory_is_expanded(self):
        job = {"job": "a", "unit": "a.service", "labels": {"env": "${env:HOME}"}}
        text = json.dumps(collector.configuration(settings(journal_jobs=[job])))
        assert re.findall(r"(?<!\$)\$(?!\$)", text.replace("$$", "")) == []
        assert "$${env:HOME}" in text

    def test_traces_are_accepted_on_request(self):
        assert "otlp" not in collector.configuration(settings())["receivers"]
        written = collector.configuration(settings(traces_endpoint="http://t:4318", authorized=True))
        assert written["receivers"]["otlp"] == {"protocols": {"http": {"endpoint": "127.0.0.1:4318"}}}
        assert written["service"]["pipelines"]["traces"]["exporters"] == ["otlp_http/traces"]
        # The key is only for the receiver of logs.
        assert "Authorization" not in written["exporters"]["otlp_http/traces"]["headers"]
        alone = collector.configuration(settings(journal_jobs=[], file_jobs=[], traces_endpoint="http://t:4318"))
        assert list(alone["service"]["pipelines"]) == ["traces"]


@pytest.mark.parametrize(
    "job, expected",
    [
        ({"job": "vllm", "unit": "vllm.service"}, {"service.name": "vllm", "systemd.unit": "vllm.service"}),
        ({"job": "x", "unit": "vllm@a.service"}, {"service.name": "vllm@a", "systemd.unit": "vllm@a.service"}),
        ({"job": "x", "unit": "a.service", "service": "s"}, {"service.name": "s", "systemd.unit": "a.service"}),
        ({"job": "x", "path": "/x"}, {"service.name": "x"}),
        ({"job": "x", "path": "/x", "labels": {"service": "s", "n": 1}}, {"service.name": "s", "n": "1"}),
    ],
)
def test_what_every_line_of_a_job_carries(job, expected):
    assert collector.resource_of(job) == {"job": job["job"], **expected}


class TestTracebacks:
    """The operators' expressions are RE2; Python's syntax covers all that is used here."""

    @pytest.mark.parametrize(
        "line, held, continues",
        [
            ("INFO 11-26 20:00:00 [x.py:1] fine", False, False),
            ("(APIServer pid=7) INFO 11-26 20:00:00 [x.py:1]   indented", False, False),
            (f"{STAMP} EngineCore failed to start.", True, False),
            (f"{STAMP} Traceback (most recent call last):", True, True),
            (f'{STAMP}   File "x.py", line 3, in run', True, True),
            (f"{STAMP} torch.OutOfMemoryError: CUDA out of memory.", True, True),
            (STAMP, True, True),
            ("Traceback (most recent call last):", True, False),
            ("(EngineCore_DP0 pid=7) Traceback (most recent call last):", True, False),
            ("(EngineCore_DP0 pid=7)     foo()", True, True),
            ("KeyError: 'x'", True, True),
            ("KeyboardInterrupt", True, True),
            ("During handling of the above exception, another exception occurred:", True, True),
            ("Errors were seen", False, False),
            ("a line that ends with an Error", False, False),
            ("", False, False),
        ],
    )
    def test_what_is_held_and_what_continues(self, line, held, continues):
        assert bool(re.search(collector.HELD, line)) == held
        assert bool(re.search(collector.CONTINUES, line)) == continues


@pytest.mark.parametrize(
    "line, level",
    [
        ("INFO 11-26 20:00:00 [x.py:1] fine", "INFO"),
        ("(APIServer pid=7) WARNING 11-26 20:00:00 [x.py:1] x", "WARNING"),
        ("INFO:     Started server process [1]", "INFO"),
        ("INFORMATION 11-26", None),
        ("this is an ERROR: no", None),
    ],
)
def test_the_level_of_a_line(line, level):
    found = re.search(collector.LEVEL_OF_LINE, line)
    assert (found and found["log_level"]) == level


class TestBegin:
    @pytest.mark.parametrize(
        "value, moment, since",
        [
            ("12h", 0, "-12h"),
            ("1h30m", 0, "-1h30m"),
            ("2026-11-26T20:00:00Z", 1795723200, "@1795723200"),
            ("2026-11-26T21:00:00+01:00", 1795723200, "@1795723200"),
        ],
    )
    def test_a_time_and_a_span(self, value, moment, since):
        assert (collector.moment(value), collector.since(value)) == (moment, since)
        assert collector.begin_problem(value) == ""

    @pytest.mark.parametrize("value", ["yesterday", "12", "2026-11-26T20:00:00", "", "12h; reboot"])
    def test_what_is_neither(self, value):
        assert "neither a time" in collector.begin_problem(value)

    def test_the_script_adds_a_begin_where_there_is_no_position(self, tmp_path):
        jobs = [{"job": "a", "unit": "a.service"}, {"job": "b", "unit": "b.service", "max_age": "1h"}]
        script = tmp_path / "script"
        script.write_text(collector.begin_script(jobs, "2026-11-26T20:00:00Z"))
        (tmp_path / "journalctl").write_text('#!/bin/sh\necho "$@"\n')
        (tmp_path / "journalctl").chmod(0o755)

        def run(*words):
            environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
            return subprocess.run(["sh", str(script), *words], capture_output=True, text=True, env=environment).stdout

        assert run("--follow", "_SYSTEMD_UNIT=a.service", "--all") == (
            "--since=@1795723200 --follow _SYSTEMD_UNIT=a.service --all\n"
        )
        assert run("_SYSTEMD_UNIT=b.service") == "--since=-1h _SYSTEMD_UNIT=b.service\n"
        assert run("_SYSTEMD_UNIT=aa.service") == "_SYSTEMD_UNIT=aa.service\n"
        position = ("_SYSTEMD_UNIT=a.service", "--after-cursor", "s=1;i=2")
        assert run(*position) == " ".join(position) + "\n"

    def test_lines_of_files_before_it_are_left_out(self):
        def filters(begin):
            written = collector.configuration(settings(begin=begin))["receivers"]["file_log/app"]["operators"]
            return [operator["expr"] for operator in written if operator["type"] == "filter"]

        assert filters("12h") == []
        assert filters("2026-11-26T20:00:00Z") == ["timestamp.Unix() > 0 && timestamp.Unix() < 1795723200"]


class TestStages:
    def test_those_that_have_a_counterpart(self):
        stages = [{"regex": {"expression": "user=(?P<user>[a-z]+)"}}, {"labels": {"user": None}},
                  {"static_labels": {"env": "x"}}, {"json": {"expressions": {"a": "a"}}}]  # fmt: skip
        parser, label = collector.stages({"job": "x", "unit": "x.service", "pipeline_stages": stages})
        assert (parser["type"], parser["regex"]) == ("regex_parser", "user=(?P<user>[a-z]+)")
        assert "user=(?:[a-z]+)" in parser["if"]
        assert (label["field"], label["value"]) == ('resource["env"]', "x")

    def test_lines_of_a_file_are_put_together_by_its_first(self):
        job = {"job": "x", "path": "/x", "pipeline_stages": [{"multiline": {"firstline": "^\\d"}}]}
        written = collector.file_receiver(job, settings())
        assert written["multiline"] == {"line_start_pattern": "^\\d"}
        assert "recombine" not in [operator["type"] for operator in written["operators"]]

    @pytest.mark.parametrize("stage", [{"pack": {}}, {"multiline": {"firstline": "x"}}])
    def test_those_that_have_none_are_refused_by_name(self, stage):
        job = {"job": "x", "unit": "x.service", "pipeline_stages": [stage]}
        (sentence,) = collector.problems(settings(journal_jobs=[job]))
        assert sentence.startswith("otel_collector_journal_jobs: job x: ") and next(iter(stage)) in sentence
        with pytest.raises(AnsibleFilterError):
            FILTERS["collector_configuration"](settings(journal_jobs=[job]))


@pytest.mark.parametrize(
    "wrong, sentence",
    [
        ({"begin": "soon"}, "otel_collector_begin: 'soon' is neither a time such as"),
        ({"journal_jobs": [{"job": "a", "unit": "a.service"}] * 2}, "otel_collector_journal_jobs: a occurs twice"),
        ({"journal_jobs": [{"job": "a/b", "unit": "a.service"}]}, "'a/b' must be a name of letters"),
        ({"journal_jobs": [{"job": "a", "unit": "a b"}]}, "'a b' is no name of a unit"),
        ({"journal_jobs": [{"job": "a", "unit": "a.service", "max_age": "x"}]}, "_jobs, a: max_age: 'x' is neither"),
    ],
)
def test_what_jobs_cannot_have(wrong, sentence):
    assert collector.problems(settings()) == []
    (message,) = collector.problems(settings(**wrong))
    assert sentence in message


def test_the_key_stands_in_a_file_of_its_own():
    assert FILTERS["collector_authorization"]("", "", "") == ""
    assert FILTERS["collector_authorization"]("u", "p", "") == 'OTEL_COLLECTOR_AUTHORIZATION="Basic dTpw"\n'
    assert FILTERS["collector_authorization"]("", "", "t") == 'OTEL_COLLECTOR_AUTHORIZATION="Bearer t"\n'


def test_a_row_of_the_checklist_a_job():
    jobs = [{"job": "a", "unit": "a.service"}, {"job": "f", "path": "/f", "labels": {"service": "s"}}]
    first, second = FILTERS["collector_checks"](jobs, {"url": "u"}, {"password": "p"}, "cure")
    assert first == {
        "what": "logs: journal of a",
        "kind": "collector_journal",
        "options": {"url": "u", "job": "a", "unit": "a.service", "service": "a"},
        "cure": "cure",
        "password": "p",
    }
    assert (second["kind"], second["options"]["path"], second["options"]["service"]) == ("collector_files", "/f", "s")
