"""What promtail's role promises, on a booted machine; its lines arrive in the laboratory's Loki."""

from __future__ import annotations

import base64
import json
import time
import urllib.parse
import urllib.request
import uuid

import pytest

from lab import builds

CONFIG = "/etc/promtail/promtail.yml"
RUN = "released_service : Run promtail"
ARRIVAL_TIMEOUT = 40
NEWEST, OLDER = builds.newest()["promtail"], builds.older("promtail")


@pytest.fixture(scope="session")
def mark():
    """A word that occurs in no other run's lines."""
    return f"mark-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def arrived(services, host):
    """Wait for ``count`` lines of this machine that contain a text, and return ``[(labels, line)]``."""
    own = host.check_output("hostname")

    def ask(text, loki, headers):
        query = {"query": f'{{host="{own}"}} |= "{text}"', "limit": 1000, "start": int((time.time() - 3600) * 1e9)}
        url = f"{loki}/loki/api/v1/query_range?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=30) as answer:
            streams = json.load(answer)["data"]["result"]
        return [(stream["stream"], line) for stream in streams for _, line in stream["values"]]

    def wait(text, count, loki=services["loki"], **headers):
        deadline = time.monotonic() + ARRIVAL_TIMEOUT
        while len(found := ask(text, loki, headers)) < count and time.monotonic() < deadline:
            time.sleep(1)
        return found

    return wait


def say(host, unit, text):
    """Make a service write a line to the journal."""
    host.run_test("systemd-run --quiet --wait --unit %s sh -c %s", unit, f"echo '{text}'; sleep 0.5")


def write(host, text):
    host.run_test("umask 027; echo %s >> /var/log/apps/app.log", text)


def listening(host):
    """Return address:port of all sockets on which the service's process listens."""
    pid = host.check_output("systemctl show --property MainPID --value promtail")
    rows = host.check_output("ss --no-header --listening --tcp --numeric --processes").splitlines()
    return {row.split()[3] for row in rows if f"pid={pid}," in row}


def running_since(host):
    return host.check_output("systemctl show --property ExecMainStartTimestampMonotonic --value promtail")


def test_it_listens_on_loopback_only(host):
    assert listening(host) == {"127.0.0.1:9080", "127.0.0.1:9095"}


def test_it_runs_hardened_as_its_own_user(host):
    score = host.check_output("systemd-analyze security --no-pager promtail | tail -1")
    assert float(score.split(": ")[1].split()[0]) <= 2.0, score
    process = host.process.get(comm="promtail")
    assert process.user == "promtail"
    assert host.file(f"/proc/{process.pid}/oom_score_adj").content_string == "1000\n"
    status = host.file(f"/proc/{process.pid}/status").content_string
    assert "NoNewPrivs:\t1" in status
    assert "CapBnd:\t0000000000000000" in status
    # Its read access comes from groups of the unit, not of the user.
    assert host.user("promtail").groups == ["promtail"]


def test_only_root_and_its_user_can_read_its_configuration(host):
    config = host.file(CONFIG)
    assert (config.user, config.group, config.mode) == ("root", "promtail", 0o640)


def test_journal_lines_arrive_with_their_labels_and_unmixed(host, arrived, mark):
    say(host, "alpha.service", f"{mark} from alpha")
    say(host, "beta.service", f"{mark} from beta level=warn")
    say(host, "gamma.service", f"{mark} from gamma")
    own = host.check_output("hostname")
    labels = {line: labels for labels, line in arrived(f"{mark} from", 2)}
    assert sorted(labels) == [f"{mark} from alpha", f"{mark} from beta level=warn"]
    alpha, beta = labels[f"{mark} from alpha"], labels[f"{mark} from beta level=warn"]
    expected = {"job": "alpha-journal", "service": "alpha", "unit": "alpha.service", "env": "test", "host": own}
    assert expected.items() <= alpha.items()
    expected = {"job": "beta", "service": "beta", "unit": "beta.service", "level": "warn", "host": own}
    assert expected.items() <= beta.items()


def test_a_file_of_a_group_arrives(host, arrived, mark):
    write(host, f"{mark} in a file")
    ((labels, line),) = arrived(f"{mark} in a file", 1)
    assert line == f"{mark} in a file"
    assert (labels["job"], labels["service"], labels["host"]) == ("applogs", "app", host.check_output("hostname"))


def test_no_line_is_sent_twice_after_a_kill(host, arrived, mark):
    for number in range(5):
        write(host, f"{mark} before {number}")
    say(host, "alpha.service", f"{mark} before the kill")
    assert len(arrived(f"{mark} before", 6)) == 6
    time.sleep(2)  # positions are written to disk after one second
    host.run_test("systemctl kill --signal=KILL promtail")
    write(host, f"{mark} after 0")
    say(host, "alpha.service", f"{mark} after the kill")
    assert len(arrived(f"{mark} after", 2)) == 2
    time.sleep(3)
    assert sorted(line for _, line in arrived(mark + " before", 6)) == [
        *(f"{mark} before {number}" for number in range(5)),
        f"{mark} before the kill",
    ]
    assert len(arrived(f"{mark} after", 2)) == 2


def test_a_second_run_changes_nothing_and_sends_no_request(host, converge, mirror_requests):
    before = running_since(host)
    outcome = converge()
    assert (outcome.code, outcome.changed) == (0, []), outcome.message
    assert mirror_requests() == []
    assert running_since(host) == before


def test_a_bad_stage_is_rolled_back(host, converge, arrived, mark):
    stages = [{"regex": {"expression": "(unclosed"}}]
    jobs = [{"job": "alpha", "unit": "alpha.service", "pipeline_stages": stages}]
    outcome = converge({"promtail_journal_jobs": jobs})
    assert outcome.code != 0
    assert "pipeline_stages" in outcome.message
    assert "(unclosed" in outcome.message
    assert "serves again" in outcome.message
    say(host, "alpha.service", f"{mark} after the bad stage")
    assert len(arrived(f"{mark} after the bad stage", 1)) == 1
    assert converge().changed == []


def test_a_port_as_text_and_a_loki_that_is_down(host, converge):
    # This address never answers; there are no files to ship either.
    unreachable = {"promtail_loki_url": "http://192.0.2.1:3100/", "promtail_file_jobs": []}
    outcome = converge({"promtail_port": "9081", **unreachable})
    assert (outcome.code, outcome.changed) == (0, [RUN]), outcome.message
    assert listening(host) == {"127.0.0.1:9081", "127.0.0.1:9095"}
    assert "url: http://192.0.2.1:3100/loki/api/v1/push" in host.file(CONFIG).content_string.replace('"', "")
    start = time.monotonic()
    assert converge().code == 0
    assert time.monotonic() - start < 60
    assert listening(host) == {"127.0.0.1:9080", "127.0.0.1:9095"}


def test_it_listens_where_an_interface_is(host, converge):
    address = host.check_output("hostname -I").split()[0]
    outcome = converge({"promtail_listen_address": "eth0"})
    assert (outcome.code, outcome.changed) == (0, [RUN]), outcome.message
    assert listening(host) == {f"{address}:9080", "127.0.0.1:9095"}
    assert converge({"promtail_listen_address": address}).changed == []
    assert converge().code == 0
    assert listening(host) == {"127.0.0.1:9080", "127.0.0.1:9095"}


def test_a_taken_port_is_named_before_anything_changes(host, converge):
    before = running_since(host)
    host.run_test("systemd-run --unit squatter --property Type=exec python3 -m http.server 9085")
    try:
        host.run_test("until ss -Hltn 'sport = :9085' | grep -q .; do sleep 0.2; done")
        outcome = converge({"promtail_port": 9085})
    finally:
        host.run_test("systemctl stop squatter")
    assert outcome.code != 0
    assert "port 9085 is taken by python3" in outcome.message
    assert "9085" not in host.file(CONFIG).content_string
    assert running_since(host) == before
    assert converge().changed == []


@pytest.fixture
def closed(host):
    """Create log files and a directory that promtail may not read, and a directory without a journal."""
    host.run_test("install -d -m 0700 /var/log/closed && install -m 0600 /dev/null /var/log/apps/closed.log")
    host.run_test("install -d /var/log/no-journal")
    yield
    host.run_test("rm -r /var/log/closed /var/log/no-journal; rm -f /var/log/apps/closed.log")


def test_sources_that_it_cannot_read_are_refused_before_anything_changes(host, converge, closed):
    before = running_since(host)
    jobs = [{"job": "x", "path": path} for path in ("/var/log/closed/*.log", "/var/log/apps/*.log", "/var/none/*")]
    outcome = converge({"promtail_journal_path": "/var/log/no-journal", "promtail_file_jobs": jobs})
    assert outcome.code != 0 and outcome.changed == []
    for sentence in (
        "promtail_journal_path: /var/log/no-journal gets no new lines",
        "promtail_file_jobs: /var/log/closed/*.log: promtail cannot access /var/log/closed (drwx------ ",
        "promtail_file_jobs: /var/log/apps/*.log: promtail cannot read /var/log/apps/closed.log (-rw------- ",
        "promtail_file_jobs: /var/none/*: there is no directory /var/none; correct the path",
    ):
        assert sentence in outcome.message
    assert "no-journal" not in host.file(CONFIG).content_string
    assert running_since(host) == before


def test_a_journal_that_is_kept_in_memory_is_named(host, converge):
    """As with Storage=volatile: the content of /var/log/journal is old."""
    drop_in = "/etc/systemd/journald.conf.d/volatile.conf"
    host.run_test("mkdir -p /etc/systemd/journald.conf.d && printf '[Journal]\\nStorage=volatile\\n' > %s", drop_in)
    host.run_test("systemctl restart systemd-journald")
    try:
        outcome = converge({"promtail_port": 9086})
        assert outcome.code != 0
        assert "promtail_journal_path: /var/log/journal gets no new lines" in outcome.message
        assert "set promtail_journal_path to /run/log/journal" in outcome.message
        assert converge({"promtail_journal_path": "/run/log/journal"}).code == 0
    finally:
        host.run_test("rm %s && systemctl restart systemd-journald && journalctl --flush", drop_in)
    assert converge().code == 0


@pytest.fixture
def units(host):
    """Start the services of the journal jobs."""
    host.run_test("for unit in alpha beta; do systemd-run --quiet --unit $unit.service sleep 600; done")
    yield
    host.run_test("systemctl stop alpha beta")


def test_the_checklist_finds_a_line_of_each_job(host, converge, units, mark):
    write(host, f"{mark} last of the file")
    outcome = converge(playbook="verify.yml")
    assert outcome.code == 0, outcome.message
    for row in (
        "journal of alpha-journal: a line written now",
        "journal of beta: a line written now",
        "files of applogs: 1",
    ):
        assert f"Loki: {row}" in outcome.text
    host.run_test("install -m 0600 /dev/null /var/log/apps/closed.log && echo x > /var/log/apps/closed.log")
    outcome = converge(playbook="verify.yml")
    host.run_test("rm /var/log/apps/closed.log")
    assert outcome.code != 0
    assert "1 of 2 files not read to the end, such as /var/log/apps/closed.log" in outcome.message
    assert "journal of" not in outcome.message


def test_a_loki_that_requires_credentials(host, converge, services, arrived, units, mark):
    loki = services["guarded_loki"]
    given = {"promtail_loki_url": loki["url"], "promtail_loki_tenant": loki["tenant"]}
    basic = {**given, "promtail_loki_user": loki["user"], "promtail_loki_password": loki["password"]}
    outcome = converge(basic, verbose=True)
    assert outcome.code == 0, outcome.message
    write(host, f"{mark} with a password")
    pair = base64.b64encode(f"{loki['user']}:{loki['password']}".encode()).decode()
    keys = {"Authorization": f"Basic {pair}", "X-Scope-OrgID": loki["tenant"]}
    assert len(arrived(f"{mark} with a password", 1, loki["url"], **keys)) == 1
    checked = converge(basic, playbook="verify.yml")
    assert checked.code == 0, checked.message
    secret = host.file("/etc/promtail/loki_password")
    assert (secret.user, secret.group, secret.mode) == ("promtail", "promtail", 0o400)
    assert converge(basic).changed == []

    # This token may push but not query: the checklist reports what it could prove.
    token = {**given, "promtail_loki_token": loki["token"]}
    assert converge(token).code == 0
    write(host, f"{mark} with a token")
    assert len(arrived(f"{mark} with a token", 1, loki["url"], **keys)) == 1
    result = converge(token, playbook="verify.yml")
    assert result.code == 0, result.message
    assert "Loki answers no questions (403)" in result.text

    address = loki["url"].replace("://", f"://{loki['user']}:{loki['token']}@")
    refused = converge({"promtail_loki_url": address})
    assert refused.code != 0
    assert "give promtail_loki_user and promtail_loki_password, or promtail_loki_token" in refused.message
    assert converge().code == 0

    texts = [outcome.text, checked.text, result.text, refused.message, host.check_output("journalctl --no-pager -q")]
    texts += [host.check_output("cat /etc/systemd/system/promtail.service /etc/promtail/promtail.yml")]
    texts += [host.check_output("grep -r . /var/lib/llm-server/services/promtail")]
    assert not [text for text in texts for key in (loki["password"], loki["token"]) if key in text]


def test_it_does_not_run_beside_the_collector(host, converge):
    before = running_since(host)
    host.run_test("systemd-run --quiet --unit otel_collector sleep 600")
    try:
        outcome = converge()
    finally:
        host.run_test("systemctl stop otel_collector")
    assert outcome.code != 0 and outcome.changed == []
    assert "otel_collector runs on this host" in outcome.message and "promtail_state to absent" in outcome.message
    assert running_since(host) == before


@pytest.mark.full
def test_a_stop_without_loki_is_short_and_loses_no_position(host, converge, arrived, mark):
    assert converge({"promtail_loki_url": "http://192.0.2.1:3100"}).code == 0
    say(host, "alpha.service", f"{mark} while Loki is away")
    time.sleep(2)
    start = time.monotonic()
    host.run_test("systemctl stop promtail")
    assert time.monotonic() - start < 25
    positions = host.file("/var/lib/promtail/positions.yaml").content_string
    assert "cursor-alpha-journal" in positions
    assert "/var/log/apps/app.log" in positions
    assert converge().code == 0
    say(host, "alpha.service", f"{mark} since Loki is back")
    assert len(arrived(f"{mark} since Loki is back", 1)) == 1


@pytest.mark.full
def test_a_run_that_was_killed_before_the_start_is_healed_by_the_next(host, converge):
    shim = "/usr/local/bin/systemctl"
    text = '#!/bin/sh\\n[ "$1" = restart ] && kill -9 $PPID && exit 1\\nexec /usr/bin/systemctl "$@"\\n'
    host.run_test("printf '%%b' %s > %s && chmod 755 %s", text, shim, shim)
    moved = {"promtail_port": 9082}
    try:
        assert converge(moved).code != 0
    finally:
        host.run_test("rm %s", shim)
    assert "9082" in host.file(CONFIG).content_string
    assert "127.0.0.1:9080" in listening(host)
    outcome = converge(moved)
    assert (outcome.code, outcome.changed) == (0, [RUN])
    assert "the running process was not started with what is written" in outcome.text
    assert "127.0.0.1:9082" in listening(host)
    assert converge().code == 0


@pytest.mark.full
@pytest.mark.parametrize(
    "variables, sentence",
    [
        ({"promtail_version": "3.99.0"}, "promtail_version: version 3.99.0 has no checksum"),
        ({"promtail_loki_url": "loki:3100"}, 'promtail_loki_url is "loki:3100"; it must be an http(s) address'),
        ({"promtail_loki_url": "http://loki:3100/loki/api/v1/push"}, "promtail_loki_url must be the base"),
        ({"promtail_port": "many"}, "promtail_port"),
        ({"promtail_listen_address": "wlan7"}, "promtail_listen_address: 'wlan7' is neither an IP address nor an"),
        ({"promtail_journal_jobs": [{"job": "x"}]}, "unit"),
        ({"promtail_file_jobs": [{"job": "x", "path": "/x", "pipeline_stages": [{"regexp": {}}]}]}, "pipeline_stages"),
        ({"promtail_groups": ["systemd-journal", "nowhere"]}, "there is no group nowhere on this host"),
        ({"promtail_journal_path": "/var/log/nowhere"}, "promtail_journal_path"),
        ({"promtail_grpc_port": 22}, "port 22 is taken by sshd"),
    ],
)
def test_bad_input_is_one_sentence_and_what_ran_still_runs(host, converge, variables, sentence):
    outcome = converge(variables)
    assert outcome.code != 0
    assert sentence in outcome.message
    assert listening(host) == {"127.0.0.1:9080", "127.0.0.1:9095"}
    assert converge().changed == []


@pytest.mark.full
@pytest.mark.parametrize(
    "fault, sentence",
    [
        ("corrupt", "do not use it before you know why"),
        ("truncated", "the download broke off after"),
        ("stall", "the download broke off"),
    ],
)
def test_a_bad_download_leaves_what_runs(host, converge, services, build, fault, sentence):
    before = running_since(host)
    old = {"promtail_version": OLDER, "promtail_checksums": build("promtail", OLDER)}
    start = time.monotonic()
    outcome = converge({**old, "promtail_mirror": f"{services['mirror']}/faults/{fault}"})
    # Three tries of 15 seconds without a byte, and the pauses between them.
    assert time.monotonic() - start < 90
    assert outcome.code != 0
    assert outcome.message.startswith(f"promtail {OLDER} from http://")
    assert sentence in outcome.message
    assert not host.file(f"/opt/promtail/{OLDER}").exists
    assert running_since(host) == before


@pytest.mark.full
def test_a_full_disk_leaves_what_runs(host, converge, build, cramped):
    old = {"promtail_version": OLDER, "promtail_checksums": build("promtail", OLDER)}
    before = running_since(host)
    cramped("/opt/promtail", 0)
    outcome = converge(old)
    assert outcome.code != 0
    assert "has 0 MiB free" in outcome.message, outcome.message
    assert not host.file(f"/opt/promtail/{OLDER}").exists
    assert running_since(host) == before


@pytest.mark.full
def test_an_upgrade_and_a_downgrade(host, converge, build):
    old = {"promtail_version": OLDER, "promtail_checksums": build("promtail", OLDER)}
    assert converge(old).changed == [RUN]
    assert f"version {OLDER}" in host.check_output("/opt/promtail/current/promtail --version")
    assert converge().changed == [RUN]
    assert f"version {NEWEST}" in host.check_output("/opt/promtail/current/promtail --version")


@pytest.mark.full
def test_removal_leaves_the_host_as_it_was(host, converge):
    def everything():
        return host.check_output("find /etc /opt /usr /var/lib -path /var/lib/private -prune -o -print | sort")

    assert converge({"promtail_state": "absent"}).code == 0
    bare = everything()
    assert "promtail" not in bare
    assert "llm-server" not in bare
    assert not host.user("promtail").exists
    assert host.file("/var/log/apps/app.log").exists
    assert converge({"promtail_state": "absent"}).changed == []
    assert converge().code == 0
    assert converge({"promtail_state": "absent"}).code == 0
    assert everything() == bare
    assert converge().code == 0


def test_a_group_that_the_host_does_not_have_is_refused_by_name_before_anything_is_touched(host, converge):
    before = host.check_output("systemctl show --property ExecMainStartTimestampMonotonic --value promtail")
    outcome = converge({"promtail_groups": ["adm", "logreaders"]})
    assert outcome.code != 0
    assert "there is no group logreaders on this host for the service to join" in outcome.message
    assert "promtail_groups" in outcome.message
    after = host.check_output("systemctl show --property ExecMainStartTimestampMonotonic --value promtail")
    assert (outcome.changed, after) == ([], before)
