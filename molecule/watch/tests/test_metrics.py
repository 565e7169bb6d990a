"""What the metrics store and its agent promise, on a booted machine."""

from __future__ import annotations

import itertools
import json
import time
from urllib.parse import quote

import pytest

from lab import builds

STORE, AGENT = "http://127.0.0.1:8428", "http://127.0.0.1:8429"
SERVICES = ("victoria_metrics", "vmagent")
ASK = """
import sys, urllib.request
data = sys.argv[2].encode() if len(sys.argv) > 2 else None
print(urllib.request.urlopen(urllib.request.Request(sys.argv[1], data=data), timeout=10).read().decode())
"""


def page(host, url, data=None):
    """Return the response of a URL, requested on the machine; empty without an answer."""
    return host.run("python3 -c %s %s" + (" %s" if data else ""), ASK, url, *([data] if data else [])).stdout


def query(host, expression, url=STORE):
    """Return the series of an expression, as pairs of labels and value."""
    answer = page(host, f"{url}/api/v1/query?query={quote(expression)}&nocache=1")
    found = json.loads(answer)["data"]["result"] if answer else []
    return [(series["metric"], float(series["value"][1])) for series in found]


def await_series(host, expression, there=True, seconds=20):
    """Wait until an expression returns something (nothing, if not ``there``), and return it."""
    deadline = time.monotonic() + seconds
    while bool(found := query(host, expression)) != there:
        assert time.monotonic() < deadline, f"{expression} finds {found} after {seconds} s"
        time.sleep(0.5)
    return found


def times(host, expression, begin):
    """Return the times in seconds of all raw samples since ``begin``, not those of a query's steps."""
    rows = page(host, f"{STORE}/api/v1/export?match[]={quote(expression)}&start={begin}").splitlines()
    return sorted(stamp / 1000 for row in rows if row for stamp in json.loads(row)["timestamps"])


def sent(host):
    """Wait until the agent has nothing left to send."""
    names = ("vmagent_remotewrite_pending_data_bytes", "vmagent_remotewrite_pending_inmemory_blocks")

    def waiting():
        lines = page(host, f"{AGENT}/metrics").splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(names))

    deadline = time.monotonic() + 40
    while waiting():
        assert time.monotonic() < deadline, "the agent still has something to send"
        time.sleep(0.5)


def processes(host):
    return [host.check_output("systemctl show --property MainPID --value %s", name) for name in SERVICES]


def now(host):
    return float(host.check_output("date +%s.%N"))


@pytest.fixture
def apply(converge):
    """Run only the two roles, with variables laid over the scenario's."""

    def run(variables=None, **options):
        return converge(variables, playbook="metrics.yml", **options)

    return run


def test_series_arrive_with_host_job_and_service(host):
    found = {labels["job"]: labels for labels, value in await_series(host, "up") if value == 1}
    assert found["node_exporter"] == {
        "__name__": "up",
        "host": "machine",
        "instance": "127.0.0.1:9100",
        "job": "node_exporter",
        "service": "node_exporter",
    }
    assert {"node_exporter", "vmagent", "victoria_metrics"} <= found.keys()
    assert {labels["host"] for labels in found.values()} == {"machine"}
    ((_, total),) = query(host, "node_memory_MemTotal_bytes")
    assert total == int(host.check_output("awk '/^MemTotal/ {print $2}' /proc/meminfo")) * 1024


def test_they_listen_on_loopback_alone_and_run_hardened(host):
    for name, port, pid in zip(SERVICES, (8428, 8429), processes(host), strict=True):
        rows = host.check_output("ss --no-header --listening --tcp --numeric --processes").splitlines()
        assert {row.split()[3] for row in rows if f"pid={pid}," in row} == {f"127.0.0.1:{port}"}
        score = host.check_output("systemd-analyze security --no-pager %s | tail -1", name)
        assert float(score.split(": ")[1].split()[0]) <= 2.0, score
        assert host.check_output("ps -o user:32= -p %s", pid) == name


def test_limits_of_time_disk_and_memory_are_in_force(host):
    metrics = page(host, f"{STORE}/metrics")
    assert 'vm_free_disk_space_limit_bytes{path="/var/lib/victoria_metrics"} 2147483648' in metrics
    assert "MemoryMax=1073741824" in host.check_output("systemctl show victoria_metrics --property MemoryMax")
    # A sample older than victoria_metrics_retention is refused; a younger one is stored.
    day = 24 * 3600
    begun = int(now(host))
    samples = "".join(f'kept{{days="{days}"}} {days} {(begun - days * day) * 1000}\n' for days in (85, 95))
    page(host, f"{STORE}/api/v1/import/prometheus", samples)
    found = await_series(host, "last_over_time(kept[100d])")
    assert [value for _, value in found] == [85]
    agent = page(host, f"{AGENT}/metrics")
    assert 'flag{name="remoteWrite.maxDiskUsagePerURL", value="2GiB"' in agent


def test_killed_they_are_back_with_what_they_had(host):
    names = 'node_memory_MemTotal_bytes{host="machine"}'
    before, killed = processes(host), now(host)
    # Samples of the last seconds before a kill were only in memory.
    kept = [one for one in times(host, names, killed - 60) if one < killed - 15]
    assert kept
    for name in SERVICES:
        host.run_test("systemctl kill --signal=KILL %s", name)
    await_series(host, f'timestamp(up{{job=~"node_exporter|vmagent"}}) > {killed + 1}')
    await_series(host, f'timestamp(up{{job="victoria_metrics"}}) > {killed + 1}')
    assert not set(processes(host)) & set(before)
    assert set(kept) <= set(times(host, names, killed - 60))


@pytest.fixture
def dashboard(tmp_path):
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"title": "Own", "rows": [{"panels": [{"title": "Up", "expr": ["up"]}]}]}))
    return path


def test_targets_and_dashboards_join_and_leave_without_a_restart(host, apply, dashboard):
    before = processes(host)
    both = [f"released_service : Run {name}" for name in SERVICES]
    host.run_test('echo \'[{"targets": ["127.0.0.1:9100"]}]\' > /srv/targets.json && chmod 644 /srv/targets.json')
    found = {"job_name": "found", "file_sd_configs": [{"files": ["/srv/targets.json"]}]}
    try:
        outcome = apply(
            {
                "vmagent_scrape_configs": [{"job_name": "extra", "static_configs": [{"targets": ["127.0.0.1:8428"]}]}],
                "victoria_metrics_scrape_configs": [found],
                "victoria_metrics_dashboard_files": [str(dashboard)],
            }
        )
        assert outcome.changed == both, outcome.message
        await_series(host, 'up{job="extra", host="machine"} == 1')
        await_series(host, 'up{job="found", host="machine"} == 1')
        assert '"title":"Own"' in page(host, f"{STORE}/vmui/custom-dashboards")
    finally:
        outcome = apply()
    assert outcome.changed == both, outcome.message
    await_series(host, 'up{job=~"extra|found"}', there=False)
    assert not host.file("/etc/victoria_metrics/dashboards/own.json").exists
    assert processes(host) == before


def test_a_bad_scrape_configuration_is_refused_before_anything_changes(host, apply):
    before = processes(host)
    kept = [host.file(f"/etc/{name}/scrape.yml").content_string for name in SERVICES]
    bad = [{"job_name": "bad", "static_config": [{"targets": ["127.0.0.1:1"]}]}]
    outcome = apply({"vmagent_scrape_configs": bad})
    assert outcome.code != 0
    assert "vmagent-prod refuses /etc/vmagent/scrape.yml" in outcome.message
    assert "field static_config not found" in outcome.message
    assert processes(host) == before
    assert [host.file(f"/etc/{name}/scrape.yml").content_string for name in SERVICES] == kept


@pytest.mark.parametrize("seconds", [12, pytest.param(60, marks=pytest.mark.full)])
def test_an_outage_of_the_store_loses_nothing(host, seconds):
    begun = now(host)
    host.run_test("systemctl stop victoria_metrics")
    time.sleep(seconds)
    host.run_test("systemctl start victoria_metrics")
    await_series(host, "count(up)")
    sent(host)
    until = now(host)

    def gaps():
        known = times(host, 'node_memory_MemTotal_bytes{host="machine"}', begun)
        seen = [begun, *(one for one in known if one < until), until]
        return [later - earlier for earlier, later in itertools.pairwise(seen)]

    # A block that is retried counts as neither waiting nor sent: it arrives after a pause of at most a minute.
    deadline = time.monotonic() + 75
    while max(gaps()) >= 5 and time.monotonic() < deadline:
        time.sleep(1)
    # One sample per second; on a shared machine, one may be late.
    found = gaps()
    assert max(found) < 5, found
    assert len(found) >= (until - begun) * 0.7


def test_the_checklist_names_only_the_missing_target(host, converge):
    host.run_test("systemctl stop node_exporter")
    try:
        await_series(host, 'up{job="node_exporter"} == 0')
        measured = converge(playbook="checklist.yml")
    finally:
        host.run_test("systemctl start node_exporter")
    assert measured.code != 0
    assert measured.message.startswith("vmagent: pushes: 2 targets,"), measured.message
    assert "; not scraped: node_exporter (" in measured.message
    await_series(host, 'up{job="node_exporter"} == 1')


@pytest.mark.full
@pytest.mark.parametrize(
    "variables, sentence",
    [
        ({"vmagent_url": ""}, 'vmagent_url is ""; it must be an http(s) address'),
        ({"vmagent_url": "http://watch:8428/api/v1/write"}, "vmagent_url must be the base of the store's address"),
        ({"vmagent_url": "http://a:b@watch:8428"}, "take them out and give vmagent_user and vmagent_password"),
        ({"vmagent_user": "llm"}, "vmagent_user and vmagent_password belong together"),
        ({"vmagent_queue_size": "2"}, 'vmagent_queue_size is "2"; it must be a size with MiB'),
        (
            {"vmagent_scrape_configs": [{"job_name": "node_exporter"}]},
            "vmagent_scrape_configs[0] has the job_name node_exporter, which another job has",
        ),
        (
            {"vmagent_scrape_configs": [{"job_name": "x", "basic_auth": {"username": "a", "password": "b"}}]},
            "vmagent_scrape_configs[0] has password in it",
        ),
        (
            {"vmagent_arguments": {"remoteWrite.url": "x"}},
            "vmagent_arguments has remoteWrite.url, whose place is vmagent_url",
        ),
        ({"vmagent_arguments": {"nonsense": 1}}, "vmagent_arguments: flag provided but not defined: -nonsense"),
        ({"vmagent_version": "1.99.0"}, "vmagent_version: version 1.99.0 has no checksum"),
        ({"victoria_metrics_retention": "3h"}, 'victoria_metrics_retention is "3h"; it must be a whole number of days'),
        ({"victoria_metrics_arguments": {"retentionPeriod": "1d"}}, "whose place is victoria_metrics_retention"),
        (
            {"victoria_metrics_dashboard_files": ["/nowhere/x.json"]},
            "victoria_metrics_dashboard_files: there is no file /nowhere/x.json",
        ),
        (
            {"victoria_metrics_arguments": {"search.maxPointsPerTimeseries": "many"}},
            'victoria_metrics_arguments: invalid value "many" for flag -search.maxPointsPerTimeseries',
        ),
    ],
)
def test_bad_input_is_one_sentence_with_the_variable(host, apply, variables, sentence):
    before = processes(host)
    outcome = apply(variables)
    assert outcome.code != 0
    assert sentence in outcome.message, outcome.message
    assert processes(host) == before


@pytest.mark.full
def test_an_upgrade_a_downgrade_and_the_way_back_keep_the_data(host, apply, build):
    begun, older = now(host) - 10, builds.older("vmutils")
    old = {
        "victoria_metrics_version": older,
        "victoria_metrics_checksums": build("victoria_metrics", older),
        "vmagent_version": older,
        "vmagent_checksums": build("vmutils", older),
    }
    outcome = apply(old)
    assert outcome.code == 0, outcome.message
    await_series(host, f'vm_app_version{{short_version="v{older}", job="vmagent"}}')
    await_series(host, f'vm_app_version{{short_version="v{older}", job="victoria_metrics"}}')
    assert apply().changed == [f"released_service : Run {name}" for name in SERVICES]
    await_series(host, f'vm_app_version{{short_version="v{builds.newest()["vmutils"]}", job="vmagent"}}')
    seen = times(host, 'node_memory_MemTotal_bytes{host="machine"}', begun)
    assert seen[0] < begun + 3


@pytest.mark.full
def test_with_a_password_and_tls_other_machines_push_and_ask(host, apply, reached, tmp_path):
    address = host.check_output("hostname -I").split()[0]
    host.run_test(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=watch "
        "-addext %s -keyout /srv/watch.key -out /srv/watch.pem && chmod 644 /srv/watch.key /srv/watch.pem",
        f"subjectAltName=IP:{address}",
    )
    guarded = {
        "victoria_metrics_listen_address": "eth0",
        "victoria_metrics_user": "llm",
        "victoria_metrics_password": "laboratory=pass%word",
        "victoria_metrics_tls_certificate_path": "/srv/watch.pem",
        "victoria_metrics_tls_key_path": "/srv/watch.key",
        "vmagent_url": f"https://{address}:8428",
        "vmagent_user": "llm",
        "vmagent_password": "laboratory=pass%word",
        "vmagent_url_ca_path": "/srv/watch.pem",
    }
    try:
        outcome = apply(guarded)
        assert outcome.code == 0, outcome.message
        assert "laboratory=pass" not in outcome.text
        assert reached(8428)
        assert page(host, f"{STORE}/api/v1/query?query=up") == ""  # requires the password
        sent(host)
        assert 'vmagent_remotewrite_requests_total{url="1:secret-url", status_code="2XX"}' in page(
            host, f"{AGENT}/metrics"
        )
        for name in SERVICES:
            assert "laboratory" not in host.check_output(
                "systemctl cat %s; tr '\\0' ' ' < /proc/$(systemctl show --property MainPID --value %s)/cmdline",
                name,
                name,
            )
            secret = host.file(f"/etc/{name}/password")
            assert (secret.mode, secret.user) == (0o400, name)
        assert apply(guarded).changed == []
        stored = host.check_output("tr -d '\\n' < /etc/victoria_metrics/password")
        assert stored == guarded["victoria_metrics_password"]
    finally:
        assert apply().code == 0
    assert not reached(8428)
    await_series(host, 'up{job="vmagent"} == 1')


@pytest.mark.full
def test_removal_keeps_the_data_until_it_is_purged(host, apply):
    def traces():
        # The archive of vmalert also has the other tools of its release.
        skipped = "-path /var/lib/private -prune -o -path /opt/vmalert -prune"
        return host.check_output(f"find /etc /opt /usr/lib /var/lib {skipped} -o -print | sort")

    await_series(host, 'node_memory_MemTotal_bytes{host="machine"}')
    begun = now(host)
    absent = {"victoria_metrics_state": "absent", "vmagent_state": "absent"}
    assert apply(absent, check=True).changed != []
    assert query(host, "count(up)")
    assert apply(absent).code == 0
    left = traces()
    assert "vmagent" not in left
    assert host.file("/var/lib/victoria_metrics/data").exists
    assert not host.file("/etc/victoria_metrics").exists and not host.file("/opt/victoria_metrics").exists
    assert not host.user("vmagent").exists and host.user("victoria_metrics").exists
    assert apply(absent).changed == []
    assert apply().code == 0
    await_series(host, "count(up)")
    assert times(host, 'node_memory_MemTotal_bytes{host="machine"}', begun)[0] < begun + 4
    assert apply({**absent, "victoria_metrics_purge": True}).code == 0
    assert "victoria_metrics" not in traces()
    assert not host.user("victoria_metrics").exists
    assert apply().code == 0
    await_series(host, 'up{job="node_exporter"} == 1')
