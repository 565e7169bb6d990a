"""From a metric or a log line to a notification: rules, their inputs, and Alertmanager's receivers."""

from __future__ import annotations

import json
import time
from pathlib import Path
from urllib.parse import quote

import pytest
import yaml

from lab import builds

METRICS, LOGS, RULES, LOG_RULES, NOTICES = (f"http://127.0.0.1:{port}" for port in (8428, 9428, 8880, 8881, 9093))
UNITS = ("victoria_logs", "vmalert", "vmalert_logs", "alertmanager")
SCENARIO = Path(__file__).resolve().parents[1]
OWN_RULES = str(SCENARIO / "rules/metrics.yml")


def ask(host, url, body=None, headers=None):
    """Return the response from an address of the machine; empty without an answer."""
    program = (
        "import json, sys, urllib.request as u; url, body, headers = json.loads(sys.argv[1]); "
        "print(u.urlopen(u.Request(url, body.encode() if body else None, headers), timeout=10).read().decode())"
    )
    done = host.run("python3 -c %s %s", program, json.dumps([url, body, headers or {}]))
    assert body is None or done.rc == 0, done.stderr
    return done.stdout


def value(host, query):
    """Return the value of one series in the metrics store, None without one."""
    answer = json.loads(ask(host, f"{METRICS}/api/v1/query?query={quote(query)}"))["data"]["result"]
    return float(answer[0]["value"][1]) if answer else None


def lines(host, query):
    """Return the log store's lines for a query."""
    return [
        json.loads(line) for line in ask(host, f"{LOGS}/select/logsql/query?query={quote(query)}").splitlines() if line
    ]


def until(seen, within=30):
    """Call ``seen`` until it returns something, and return that."""
    deadline = time.monotonic() + within
    while True:
        found = seen()
        if found or time.monotonic() > deadline:
            return found
        time.sleep(0.5)


def received(host, path, since):
    """Return what the receiver got on a path since a time: attachments for Slack, bodies for others."""
    entries = [json.loads(line) for line in host.check_output("cat /var/lib/receiver.jsonl").splitlines()]
    bodies = [entry["body"] for entry in entries if entry["at"] >= since and entry["path"].startswith(f"/{path}/")]
    return [body["attachments"][0] if path == "slack" else body for body in bodies]


def now(host):
    return float(host.check_output("date +%s.%N"))


def pids(host, *units):
    return [host.check_output("systemctl show --property MainPID --value %s", unit) for unit in units or UNITS]


def push(host, service):
    """Write three lines of severity ERROR to the log store, with the collector's fields."""
    fields = {"_msg": f"line of {service}", "severity_text": "ERROR", "severity_number": "17"}
    line = json.dumps({**fields, "host.name": "machine", "service.name": service})
    where = f"{LOGS}/insert/jsonline?_stream_fields=host.name,service.name"
    ask(host, where, f"{line}\n" * 3, {"Content-Type": "application/stream+json"})


@pytest.mark.parametrize("unit", UNITS)
def test_each_runs_hardened_as_its_own_user(host, unit):
    score = host.check_output("systemd-analyze security --no-pager %s | tail -1", unit)
    assert float(score.split(": ")[1].split()[0]) <= 2.0, score
    process = host.process.get(pid=pids(host, unit)[0])
    assert process.user == ("vmalert" if unit == "vmalert_logs" else unit)
    assert "NoNewPrivs:\t1" in host.file(f"/proc/{process.pid}/status").content_string


def test_an_alert_fires_when_a_target_stops_reaches_slack_and_resolves(host):
    since = now(host)
    host.check_output("systemctl stop node_exporter")
    try:
        (fired,) = until(lambda: [one for one in received(host, "slack", since) if "node_exporter" in one["text"]][:1])
    finally:
        host.check_output("systemctl start node_exporter")
    assert fired["title"] == "FIRING (critical): TargetDown on machine"
    assert "node_exporter on machine does not answer" in fired["text"]
    assert until(lambda: any("resolved" in one["title"] for one in received(host, "slack", since)))


def test_the_alert_that_always_fires_is_a_heartbeat_and_no_notice(host):
    since = now(host)
    beats = until(lambda: received(host, "heartbeat", since)[1:])
    assert beats[0]["commonLabels"]["alertname"] == "DeadMansSwitch"
    assert [one for one in received(host, "slack", 0) if "DeadMansSwitch" in json.dumps(one)] == []


def test_a_line_is_found_and_a_rule_over_lines_fires(host):
    since = now(host)
    poet = f"poet-{since:.0f}"
    push(host, poet)
    assert len(until(lambda: lines(host, f'{{service.name="{poet}"}} severity_number:17 _time:5m'))) == 3
    (fired,) = until(lambda: [one for one in received(host, "slack", since) if poet in one["text"]][:1])
    assert fired["title"] == "FIRING (warning): ErrorLines"
    assert f"{poet}: 3 errors" in fired["text"]


def test_another_limit_and_another_host_are_read_without_a_restart(host, converge):
    before = pids(host)
    other = {"vmalert_limits": {"ttft_seconds": 2.5}, "vmalert_expected_hosts": ["machine", "gone"], "only": "vmalert"}
    outcome = converge(other, playbook="only.yml")
    assert (outcome.code, outcome.changed) == (0, ["released_service : Run vmalert"]), outcome.message
    assert until(lambda: value(host, "llm_limit_ttft_seconds") == 2.5)
    assert until(lambda: value(host, 'expected_host{host="gone"}') == 1)
    assert converge({"only": "vmalert"}, playbook="only.yml").code == 0
    assert until(lambda: value(host, "llm_limit_ttft_seconds") == 5)
    assert pids(host) == before


@pytest.mark.parametrize(
    "rule, sentence",
    [
        ({"alert": "Bad", "expr": "up == = 0"}, 'invalid expression for rule "Bad"'),
        pytest.param(
            {"alert": "Bad", "expr": "up", "annotations": {"summary": "{{ nosuch }}"}},
            'function "nosuch" not defined',
            marks=pytest.mark.full,
        ),
    ],
    ids=["expression", "template"],
)
def test_a_bad_rule_is_refused_before_the_switch(host, converge, tmp_path, rule, sentence):
    before, rules = pids(host), host.file("/etc/vmalert/rules.yml").content_string
    bad = tmp_path / "bad.yml"
    bad.write_text(yaml.safe_dump({"groups": [{"name": "bad", "rules": [rule]}]}))
    outcome = converge({"vmalert_rule_files": [OWN_RULES, str(bad)], "only": "vmalert"}, playbook="only.yml")
    assert outcome.code != 0
    assert "vmalert-prod refuses /etc/vmalert/rules.yml" in outcome.message
    assert sentence in outcome.message, outcome.message
    assert host.file("/etc/vmalert/rules.yml").content_string == rules
    assert pids(host) == before


def test_a_configuration_that_alertmanager_does_not_take_is_refused_before_the_switch(host, converge):
    before, text = pids(host), host.file("/etc/alertmanager/alertmanager.yml").content_string
    bad = {"alertmanager_receivers": [{"name": "own", "webhook_configs": [{"address": "http://x"}]}]}
    outcome = converge({**bad, "only": "alertmanager"}, playbook="only.yml")
    assert outcome.code != 0
    assert "amtool refuses /etc/alertmanager/alertmanager.yml" in outcome.message
    assert "field address not found" in outcome.message, outcome.message
    assert host.file("/etc/alertmanager/alertmanager.yml").content_string == text
    assert pids(host) == before


def test_no_secret_is_readable_by_others(host):
    for unit in ("alertmanager", "vmalert", "vmalert_logs"):
        assert "canary" not in host.check_output("cat /etc/systemd/system/%s.service", unit)
        assert "canary" not in host.file(f"/proc/{pids(host, unit)[0]}/cmdline").content_string
    assert "canary" not in host.file("/etc/alertmanager/alertmanager.yml").content_string
    assert host.run("grep -r canary /var/lib/llm-server/services").rc == 1
    for name in ("slack_webhook", "heartbeat_url"):
        file = host.file(f"/etc/alertmanager/secrets/{name}")
        assert (file.user, file.mode) == ("alertmanager", 0o400)
    # Not this command itself, which sudo logs.
    assert host.run("journalctl --no-pager | grep 'canary-of-the-[wh]'").rc == 1


@pytest.mark.full
@pytest.mark.parametrize(
    "only, variables, sentence",
    [
        (
            "alertmanager",
            {"alertmanager_slack_webhook": ""},
            "alertmanager_receivers is empty, and so are alertmanager_slack_webhook and alertmanager_email_to",
        ),
        (
            "alertmanager",
            {"alertmanager_receivers": [{"name": "x", "slack_configs": [{"api_url": "http://canary/"}]}]},
            "alertmanager_receivers[0] has api_url in it",
        ),
        ("alertmanager", {"alertmanager_email_to": ["a@b"]}, "alertmanager_email_to needs alertmanager_email_from"),
        ("vmalert", {"vmalert_limits": {"ttft": 1}}, "vmalert_limits has ttft, which no rule asks for"),
        ("vmalert", {"vmalert_rule_files": ["/none.yml"]}, "vmalert_rule_files: there is no file /none.yml"),
        ("vmalert", {"vmalert_notifier_urls": []}, "vmalert_notifier_urls is empty"),
        (
            "vmalert",
            {"vmalert_arguments": {"no.such": 1}},
            "vmalert_arguments: flag provided but not defined: -no.such",
        ),
        (
            "victoria_logs",
            {"victoria_logs_retention": "soon"},
            'victoria_logs_retention is "soon"; it must be a number',
        ),
        ("victoria_logs", {"victoria_logs_version": "1.0.0"}, "version 1.0.0 has no checksum"),
        ("victoria_logs", {"victoria_logs_user": "x"}, "victoria_logs_user and victoria_logs_password belong together"),
    ],
)
def test_bad_input_is_one_sentence(host, converge, only, variables, sentence):
    before = pids(host)
    outcome = converge({**variables, "only": only}, playbook="only.yml")
    assert outcome.code != 0
    assert sentence in outcome.message, outcome.message
    assert "canary" not in outcome.message
    assert pids(host) == before


@pytest.mark.full
def test_what_fires_goes_on_firing_after_a_restart_of_everything(host):
    state = 'ALERTS_FOR_STATE{alertname="TargetDown", job="node_exporter"}'
    host.check_output("systemctl stop node_exporter")
    try:
        since = now(host)
        assert until(lambda: any("node_exporter" in one["text"] for one in received(host, "slack", since)))
        begun = until(lambda: value(host, state))
        assert begun
        host.check_output("systemctl restart vmalert alertmanager")
        since = now(host)
        assert until(lambda: "vmalert_config" in ask(host, f"{RULES}/metrics"))
        time.sleep(5)
        # vmalert restores it after its first evaluation, which still writes another time.
        assert until(lambda: value(host, state) == begun)
        # A notification is not sent twice.
        again = [
            one for one in received(host, "slack", since) if "FIRING" in one["title"] and "node_exporter" in one["text"]
        ]
        assert again == []
    finally:
        host.check_output("systemctl start node_exporter")


MAILBOX = """
import socketserver, sys
class Server(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"220 mailbox\\r\\n")
        for line in self.rfile:
            if line.upper().startswith(b"DATA"):
                self.wfile.write(b"354 go on\\r\\n")
                with open("/run/mailbox", "ab") as kept:
                    for line in self.rfile:
                        if line == b".\\r\\n":
                            break
                        kept.write(line)
            self.wfile.write(b"250 ok\\r\\n")
socketserver.TCPServer.allow_reuse_address = True
socketserver.TCPServer(("127.0.0.1", 9525), Server).serve_forever()
"""


@pytest.mark.full
def test_a_mail_names_the_alert(host, converge):
    mail = {
        "alertmanager_slack_webhook": "", "alertmanager_email_to": ["oncall@example.org"], "only": "alertmanager",
        "alertmanager_email_from": "alerts@example.org", "alertmanager_email_smarthost": "127.0.0.1:9525",
        "alertmanager_email_tls": False,
    }  # fmt: skip
    host.check_output("systemd-run --unit mailbox python3 -c %s", MAILBOX)
    try:
        outcome = converge(mail, playbook="only.yml")
        assert outcome.code == 0, outcome.message
        host.check_output("systemctl stop node_exporter")
        subject = "Subject: FIRING (critical): TargetDown on machine"
        assert until(lambda: subject in host.run("cat /run/mailbox").stdout)
        # Alertmanager writes the headers in any order.
        mails = host.check_output("cat /run/mailbox")
        assert "To: oncall@example.org" in mails
        assert "node_exporter on machine does not answer" in mails.partition(subject)[2]
    finally:
        host.check_output("systemctl start node_exporter")
        host.run("systemctl stop mailbox; rm -f /run/mailbox")
        assert converge({"only": "alertmanager"}, playbook="only.yml").code == 0


@pytest.mark.full
def test_a_password_is_required_and_clients_with_it_work(host, converge):
    login = {
        "victoria_logs_user": "reader", "victoria_logs_password": "canary-of-the-logs",
        "vmalert_logs_user": "reader", "vmalert_logs_password": "canary-of-the-logs",
    }  # fmt: skip
    for only in ("victoria_logs", "vmalert"):
        outcome = converge({**login, "only": only}, playbook="only.yml")
        assert outcome.code == 0, outcome.message
        assert converge({**login, "only": only}, playbook="only.yml").changed == []
    assert ask(host, f"{LOGS}/select/logsql/query?query=%2A") == ""
    assert until(lambda: '"lastError":""' in ask(host, f"{LOG_RULES}/api/v1/rules"))
    assert "canary" not in host.check_output("ps -ef")
    for only in ("victoria_logs", "vmalert"):
        assert converge({"only": only}, playbook="only.yml").code == 0
    assert lines(host, "* | limit 1") != []


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize(
    ("change", "differing"),
    [
        ({}, []),
        ({"vmalert_interval": "29s", "vmagent_oom_score_adjust": 7}, ["vmalert", "vmagent"]),
    ],
)
def test_one_call_finds_the_programs_that_differ(converge, change, differing, check):
    outcome = converge({**change, "differing": differing}, playbook="compared.yml", check=check)
    assert (outcome.code, outcome.changed) == (0, []), outcome.message


def test_a_comparison_validates_the_variables(converge):
    outcome = converge({"vmalert_intervall": "29s"}, playbook="compared.yml")
    assert outcome.code != 0 and "vmalert_intervall; did you mean vmalert_interval?" in outcome.message


def test_a_comparison_finds_a_stopped_service_and_leaves_it(host, converge):
    host.check_output("systemctl stop vmalert_logs")
    try:
        outcome = converge({"differing": ["vmalert"]}, playbook="compared.yml")
        assert outcome.code == 0, outcome.message
        assert not host.service("vmalert_logs").is_running
    finally:
        host.check_output("systemctl start vmalert_logs")


@pytest.mark.full
def test_an_older_release_and_the_way_back(host, converge, build):
    """Alertmanager keeps its silences in both directions; 0.25 cannot read a heartbeat's address from a file."""
    older, until_later = builds.older("alertmanager"), "2099-01-01T00:00:00Z"
    silence = {
        "matchers": [{"name": "alertname", "value": "Nothing", "isRegex": False}], "startsAt": "2020-01-01T00:00:00Z",
        "endsAt": until_later, "createdBy": "test", "comment": "kept",
    }  # fmt: skip
    ask(host, f"{NOTICES}/api/v2/silences", json.dumps(silence), {"Content-Type": "application/json"})
    old = {
        "alertmanager_version": older, "alertmanager_checksums": build("alertmanager", older),
        "alertmanager_heartbeat_url": "", "only": "alertmanager",
    }  # fmt: skip
    outcome = converge(old, playbook="only.yml")
    assert outcome.code == 0, outcome.message
    assert f'version="{older}' in ask(host, f"{NOTICES}/metrics")
    assert "kept" in ask(host, f"{NOTICES}/api/v2/silences")
    assert converge({"only": "alertmanager"}, playbook="only.yml").changed == ["released_service : Run alertmanager"]
    assert "kept" in ask(host, f"{NOTICES}/api/v2/silences")


@pytest.mark.full
def test_an_older_vmalert_and_the_way_back(host, converge, build):
    older = builds.older("vmutils")
    old = {"vmalert_version": older, "vmalert_checksums": build("vmutils", older), "only": "vmalert"}
    outcome = converge(old, playbook="only.yml")
    assert outcome.code == 0, outcome.message
    for url in (RULES, LOG_RULES):
        assert f"vmalert-v{older}" in ask(host, f"{url}/metrics")
    back = converge({"only": "vmalert"}, playbook="only.yml")
    assert back.changed == ["released_service : Run vmalert", "released_service : Run vmalert_logs"]
    for url in (RULES, LOG_RULES):
        assert f"vmalert-v{builds.newest()['vmutils']}" in ask(host, f"{url}/metrics")


@pytest.mark.full
def test_without_a_store_of_logs_there_is_no_service_for_them(host, converge):
    before = pids(host, "vmalert")
    outcome = converge({"vmalert_logs_url": "", "only": "vmalert"}, playbook="only.yml")
    assert (outcome.code, outcome.changed) == (0, ["released_service : Remove vmalert_logs"]), outcome.message
    assert not host.file("/etc/systemd/system/vmalert_logs.service").exists
    assert pids(host, "vmalert") == before
    assert converge({"only": "vmalert"}, playbook="only.yml").code == 0
    assert host.service("vmalert_logs").is_running


@pytest.mark.full
def test_removal_keeps_what_was_collected(host, converge):
    push(host, "kept")
    assert until(lambda: lines(host, '{service.name="kept"}'))
    absent = {f"{role}_state": "absent" for role in ("victoria_logs", "vmalert", "alertmanager")}
    for only in ("vmalert", "alertmanager", "victoria_logs"):
        outcome = converge({**absent, "only": only}, playbook="only.yml")
        assert outcome.code == 0, outcome.message
        assert converge({**absent, "only": only}, playbook="only.yml").changed == []
    for unit in UNITS:
        assert not host.file(f"/etc/systemd/system/{unit}.service").exists
        assert not host.file(f"/etc/{unit}").exists
        assert not host.file(f"/opt/{unit}").exists
    assert not host.user("vmalert").exists
    for path in ("/var/lib/victoria_logs", "/var/lib/alertmanager"):
        assert host.file(path).is_directory
    for only in ("victoria_logs", "alertmanager", "vmalert"):
        assert converge({"only": only}, playbook="only.yml").code == 0
    assert until(lambda: lines(host, '{service.name="kept"}'))
    assert "kept" in ask(host, f"{NOTICES}/api/v2/silences")
