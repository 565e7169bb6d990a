"""What the collector's role promises, on a booted machine; its lines arrive at a receiver that counts them."""

from __future__ import annotations

import base64
import json
import os
import time
import uuid

import pytest

CONFIG, SECRET = "/etc/otel_collector/config.yaml", "/etc/otel_collector/authorization.env"
RUN = "released_service : Run otel_collector"
RECORDS = "/var/lib/receiver/records.jsonl"
ARRIVAL_TIMEOUT = 40
SOCKETS = {"127.0.0.1:8888", "127.0.0.1:13133"}


@pytest.fixture(scope="session")
def mark():
    """A word that occurs in no other run's lines."""
    return f"mark-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def arrived(host):
    """Wait for ``count`` records that contain a text, and return them."""

    def ask(text):
        lines = host.run("grep --fixed-strings %s %s", text, RECORDS).stdout.splitlines()
        return [json.loads(line) for line in lines]

    def wait(text, count):
        deadline = time.monotonic() + ARRIVAL_TIMEOUT
        while len(found := ask(text)) < count and time.monotonic() < deadline:
            time.sleep(1)
        return found

    return wait


def say(host, unit, text):
    """Make a service write a line to the journal."""
    host.run_test("systemd-run --quiet --wait --unit %s sh -c %s", unit, f"echo '{text}'; sleep 0.3")


def write(host, text, file="app.log"):
    host.run_test("umask 027; printf '%%b\\n' %s >> /var/log/apps/%s", text, file)


def pid(host):
    return host.check_output("systemctl show --property MainPID --value otel_collector")


def listening(host):
    """Return address:port of all sockets on which the service's process listens."""
    own = pid(host)
    rows = host.check_output("ss --no-header --listening --tcp --numeric --processes").splitlines()
    return {row.split()[3] for row in rows if f"pid={own}," in row}


def test_it_listens_on_loopback_only(host):
    assert listening(host) == SOCKETS


def test_it_runs_hardened_as_its_own_user(host):
    score = host.check_output("systemd-analyze security --no-pager otel_collector | tail -1")
    assert float(score.split(": ")[1].split()[0]) <= 2.0, score
    status = host.file(f"/proc/{pid(host)}/status").content_string
    assert "NoNewPrivs:\t1" in status
    assert "CapBnd:\t0000000000000000" in status
    assert host.check_output("ps -o user:32= -p %s", pid(host)).strip() == "otel_collector"
    # Its read access comes from groups of the unit, not of the user.
    assert host.user("otel_collector").groups == ["otel_collector"]


def test_only_root_and_its_user_can_read_its_configuration(host):
    config = host.file(CONFIG)
    assert (config.user, config.group, config.mode) == ("root", "otel_collector", 0o640)


def test_journal_lines_arrive_with_what_they_are_and_unmixed(host, arrived, mark):
    say(host, "alpha.service", f"(APIServer pid=7) WARNING 11-26 20:00:00 [x.py:1] {mark} from alpha")
    say(host, "beta.service", f"{mark} from beta user=eve")
    say(host, "gamma.service", f"{mark} from gamma")
    own = host.check_output("hostname")
    alpha, beta = sorted(arrived(f"{mark} from", 2), key=lambda record: record["resource"]["service.name"])
    expected = {"job": "alpha-journal", "service.name": "alpha", "systemd.unit": "alpha.service", "env": "test"}
    assert alpha["resource"] == {**expected, "host.name": own}
    assert (alpha["severity"], alpha["number"]) == ("WARN", 13)
    assert alpha["stream"] == "host.name,service.name"
    assert abs(alpha["time"] - time.time()) < 60
    expected = {"job": "beta", "service.name": "beta", "systemd.unit": "beta.service", "host.name": own}
    assert (beta["resource"], beta["severity"], beta["attributes"]["user"]) == (expected, "INFO", "eve")
    assert len(arrived(f"{mark} from", 2)) == 2


def test_lines_of_files_arrive_with_their_time_and_severity(host, arrived, mark):
    write(host, f"{mark} in a file")
    values = {"level": "ERROR", "message": f"{mark} in JSON", "timestamp": "2026-11-26T20:31:13.5+00:00", "n": 3}
    write(host, json.dumps(values))
    (plain,) = arrived(f"{mark} in a file", 1)
    assert (plain["body"], plain["resource"]["service.name"], plain["resource"]["job"]) == (
        f"{mark} in a file",
        "app",
        "applogs",
    )
    (read,) = arrived(f"{mark} in JSON", 1)
    assert (read["body"], read["severity"], read["time"]) == (f"{mark} in JSON", "ERROR", 1795725073.5)
    assert read["attributes"]["n"] == 3


def test_a_traceback_arrives_as_one_record(host, arrived, mark):
    stamp = "(EngineCore_DP0 pid=7) ERROR 11-26 20:00:00 [core.py:710]"
    engine = ["failed to start.", "Traceback (most recent call last):", '  File "x.py", line 3', "ValueError: no"]
    say(host, "alpha.service", "\\n".join(f"{stamp} {line}" for line in [f"{mark} engine {engine[0]}", *engine[1:]]))
    raw = ["Traceback (most recent call last):", f'  File "{mark}.py", line 5', "    run()", "KeyError: 3"]
    say(host, "beta.service", "\\n".join(raw))
    (one,) = arrived(f"{mark} engine", 1)
    assert one["body"].count("\n") == 3 and one["body"].endswith("ValueError: no")
    assert one["severity"] == "ERROR"
    (two,) = arrived(f"{mark}.py", 1)
    assert (two["body"], two["severity"]) == ("\n".join(raw), "ERROR")


def test_outages_and_kills_lose_and_repeat_no_line(host, arrived, mark):
    outage = 120 if os.environ.get("FULL") == "1" else 20
    program = (
        f"n=0; while [ $n -lt {outage * 20} ]; do n=$((n+1)); echo {mark} long $n.; echo {mark} file $n. >> "
        "/var/log/apps/app.log; [ $((n % 200)) = 0 ] && mv /var/log/apps/app.log /var/log/apps/app.log.$((n / 200)); "
        "sleep 0.05; done"
    )
    host.run_test("systemctl stop receiver")
    host.run_test("systemd-run --quiet --unit alpha.service sh -c %s", program.replace("$", "$$"))
    try:
        for _ in range(2):
            time.sleep(outage / 3)
            host.run_test("systemctl kill --kill-whom=main --signal=KILL otel_collector")
        time.sleep(outage / 3)
    finally:
        host.run_test("systemctl start receiver")
    host.run_test("while systemctl is-active --quiet alpha; do sleep 1; done")
    count = outage * 20
    for kind in ("long", "file"):
        bodies = [record["body"] for record in arrived(f"{mark} {kind} ", count)]
        time.sleep(3)
        bodies = [record["body"] for record in arrived(f"{mark} {kind} ", count)]
        missing = {f"{mark} {kind} {number}." for number in range(1, count + 1)} - set(bodies)
        # The journal's position is stored just before its line, so a kill may lose one line.
        assert len(missing) <= (2 if kind == "long" else 0), missing
        assert len(bodies) == len(set(bodies))


def test_a_second_run_changes_nothing_and_sends_no_request(host, converge, mirror_requests):
    before = pid(host)
    outcome = converge()
    assert (outcome.code, outcome.changed) == (0, []), outcome.message
    assert mirror_requests() == []
    assert pid(host) == before


def test_what_the_program_refuses_is_not_switched_to(host, converge):
    before, config = pid(host), host.file(CONFIG).content_string
    job = {"job": "x", "path": "/var/log/apps/*.log", "operators": [{"type": "no_such"}]}
    outcome = converge({"otel_collector_file_jobs": [job]})
    assert outcome.code != 0 and outcome.changed == []
    assert "no_such" in outcome.message
    assert (pid(host), host.file(CONFIG).content_string) == (before, config)


@pytest.mark.full
@pytest.mark.parametrize(
    "variables, sentence",
    [
        ({"otel_collector_journal_jobs": [{"job": "x", "unit": "x.service",
                                           "pipeline_stages": [{"pack": {}}]}]}, "promtail's stage pack has no"),
        ({"otel_collector_begin": "yesterday"}, "otel_collector_begin: 'yesterday' is neither a time"),
        ({"otel_collector_endpoint": "http://u:geheim@x:1/otlp"}, "take them out and give otel_collector_user"),
        ({"otel_collector_file_jobs": [{"job": "x", "path": "/var/none/*"}]}, "otel_collector_file_jobs: /var/none/*"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_and_the_old_release_still_runs(host, converge, variables, sentence):
    before, config = pid(host), host.file(CONFIG).content_string
    outcome = converge(variables)
    assert outcome.code != 0 and outcome.changed == []
    assert sentence in outcome.message
    assert "geheim" not in outcome.message
    assert (pid(host), host.file(CONFIG).content_string) == (before, config)


@pytest.fixture
def units(host):
    """Start the services of the journal jobs."""
    host.run_test("for unit in alpha beta; do systemd-run --quiet --unit $unit.service sleep 600; done")
    yield
    host.run_test("systemctl stop alpha beta")


def test_the_checklist_follows_a_line_of_each_job(host, converge, units, mark):
    write(host, f"{mark} last of the file")
    outcome = converge(playbook="verify.yml")
    assert outcome.code == 0, outcome.message
    assert "a line written now was read and sent" in outcome.text
    assert "nothing here answers whether the last line of /var/log/apps/app.log arrived" in outcome.text


@pytest.mark.full
def test_the_checklist_reports_that_nothing_is_sent(host, converge, units):
    host.run_test("systemctl stop receiver")
    try:
        outcome = converge(playbook="verify.yml")
    finally:
        host.run_test("systemctl start receiver")
    assert outcome.code != 0
    assert "was read and not sent" in outcome.message
    assert "open its port for" in outcome.message


def test_a_receiver_that_requires_a_key(host, converge, arrived, mark):
    user, password = "shipper", "laboratory=pass%word"
    key = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    host.run_test("install -m 0600 /dev/null /var/lib/receiver/key; printf %%s %s > /var/lib/receiver/key", key)
    given = {"otel_collector_user": user, "otel_collector_password": password}
    try:
        outcome = converge(given, verbose=True)
        assert outcome.code == 0, outcome.message
        write(host, f"{mark} with a password")
        assert len(arrived(f"{mark} with a password", 1)) == 1
        secret = host.file(SECRET)
        assert (secret.user, secret.group, secret.mode) == ("root", "root", 0o600)
        texts = [outcome.text, host.check_output("journalctl --no-pager -q | grep -v ' sudo'")]
        texts += [host.check_output("cat /etc/systemd/system/otel_collector.service %s", CONFIG)]
        texts += [host.check_output("tr '\\0' ' ' < /proc/%s/cmdline", pid(host))]
        texts += [host.check_output("grep -r . /var/lib/llm-server/services/otel_collector")]
        secrets = (password, key.split()[1])
        assert not [text for text in texts for each in secrets if each in text]
    finally:
        host.run_test("rm /var/lib/receiver/key")
        taken_away = converge({"otel_collector_state": "absent"})
    assert taken_away.code == 0, taken_away.message
    assert not host.file(SECRET).exists


def test_it_takes_over_from_promtail_and_not_beside_it(host, converge, arrived, mark):
    """It refuses a host where the other shipper's unit runs; then it continues from the time where that one ended."""
    host.run_test("systemd-run --quiet --unit promtail sleep 600")
    try:
        outcome = converge()
    finally:
        host.run_test("systemctl stop promtail")
    assert outcome.code != 0
    assert "promtail runs on this host" in outcome.message and "otel_collector_begin" in outcome.message
    assert not host.file(CONFIG).exists
    old = {"level": "INFO", "message": f"{mark} shipped by the other", "timestamp": "2026-11-26T20:00:00+00:00"}
    write(host, json.dumps(old))
    say(host, "alpha.service", f"{mark} shipped before")
    time.sleep(1.5)
    begin = host.check_output("date --utc +%Y-%m-%dT%H:%M:%SZ")
    time.sleep(1.5)
    say(host, "alpha.service", f"{mark} not shipped yet")
    write(
        host,
        json.dumps({**old, "message": f"{mark} not shipped from the file yet", "timestamp": "2126-01-01T00:00:00Z"}),
    )
    outcome = converge({"otel_collector_begin": begin})
    assert outcome.code == 0, outcome.message
    assert len(arrived(f"{mark} not shipped yet", 1)) == 1
    assert len(arrived(f"{mark} not shipped from the file yet", 1)) == 1
    found = host.run("grep --count --extended-regexp %s %s", f"{mark} shipped (by|before)", RECORDS).stdout.strip()
    assert found == "0"


@pytest.mark.full
def test_traces_are_accepted_on_loopback_on_request(host, converge):
    assert converge({"otel_collector_traces_endpoint": "http://127.0.0.1:4320/traces"}).code == 0
    assert listening(host) == {*SOCKETS, "127.0.0.1:4318"}
    assert converge().code == 0
    assert listening(host) == SOCKETS


@pytest.mark.full
def test_removal_leaves_the_host_as_it_was(host, converge):
    assert converge({"otel_collector_state": "absent"}).code == 0
    everything = "find /etc /opt /usr /var/lib -path /var/lib/private -prune -o -print | grep -c otel_collector"
    assert host.run(everything).stdout.strip() == "0"
    assert not host.user("otel_collector").exists
    assert host.file("/var/log/apps/app.log").exists
    assert converge({"otel_collector_state": "absent"}).changed == []
    assert converge().code == 0
