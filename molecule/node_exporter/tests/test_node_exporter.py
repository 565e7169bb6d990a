"""What node_exporter's role promises, on a booted machine."""

from __future__ import annotations

import concurrent.futures

import pytest

from lab import builds

METRICS = "http://127.0.0.1:9100/metrics"
RELEASES = "/github.com/prometheus/node_exporter/releases/download"
NEWEST, OLDER = builds.newest()["node_exporter"], builds.older("node_exporter")


def page(host, url=METRICS):
    """Return the metrics page, requested on the machine; empty without an answer."""
    command = f"import urllib.request; print(urllib.request.urlopen({url!r}, timeout=10).read().decode())"
    return host.run("python3 -c %s", command).stdout


def listening(host):
    """Return address:port of all sockets on which the service's process listens."""
    pid = host.check_output("systemctl show --property MainPID --value node_exporter")
    rows = host.check_output("ss --no-header --listening --tcp --numeric --processes").splitlines()
    return {row.split()[3] for row in rows if f"pid={pid}," in row}


def running_since(host):
    return host.check_output("systemctl show --property ExecMainStartTimestampMonotonic --value node_exporter")


def test_it_measures_this_host(host):
    metrics = page(host)
    total = int(host.check_output("awk '/^MemTotal/ {print $2}' /proc/meminfo")) * 1024
    measured = next(line for line in metrics.splitlines() if line.startswith("node_memory_MemTotal_bytes "))
    assert float(measured.split()[1]) == total
    assert 'node_systemd_unit_state{name="node_exporter.service",state="active",type="simple"} 1' in metrics
    assert 'node_systemd_service_restart_total{name="node_exporter.service"} 0' in metrics
    assert 'node_systemd_unit_state{name="dbus.service"' not in metrics
    # The mounts are those of the host, not those of the service's namespace.
    assert 'mountpoint="/tmp"} 0' in "".join(
        line for line in metrics.splitlines() if line.startswith("node_filesystem_readonly")
    )


def test_it_listens_on_loopback_only(host):
    assert listening(host) == {"127.0.0.1:9100"}


def test_it_runs_hardened_as_its_own_user(host):
    score = host.check_output("systemd-analyze security --no-pager node_exporter | tail -1")
    assert float(score.split(": ")[1].split()[0]) <= 2.0, score
    process = host.process.get(comm="node_exporter")
    assert process.user == "node_exporter"
    status = host.file(f"/proc/{process.pid}/status").content_string
    assert "NoNewPrivs:\t1" in status
    assert "CapBnd:\t0000000000000000" in status
    assert host.user("node_exporter").shell == "/usr/sbin/nologin"


def test_it_dies_first_when_memory_is_short_and_another_limit_restarts_nothing(host, converge):
    before = running_since(host)
    process = host.process.get(comm="node_exporter")
    assert host.file(f"/proc/{process.pid}/oom_score_adj").content_string == "1000\n"
    shown = "systemctl show node_exporter --property MemoryMax,OOMScoreAdjust"
    assert "MemoryMax=268435456" in host.check_output(shown)
    limits = {"node_exporter_memory_max": "10%", "node_exporter_oom_score_adjust": 900}
    preview = converge(limits, check=True)
    assert preview.changed and "MemoryMax=10%" in preview.text
    outcome = converge(limits)
    assert (outcome.code, outcome.changed) == (0, ["released_service : Run node_exporter"]), outcome.message
    assert "MemoryMax=268435456" not in host.check_output(shown)
    assert host.file(f"/proc/{process.pid}/oom_score_adj").content_string == "900\n"
    assert converge(limits).changed == []
    refused = converge({"node_exporter_memory_max": "32M", "node_exporter_oom_score_adjust": -1000})
    assert "node_exporter_oom_score_adjust is -1000; it must be from -999 to 1000" in refused.message
    assert converge().code == 0
    assert running_since(host) == before


def test_the_rest_of_the_host_keeps_its_owners(host):
    for path in ("/etc", "/etc/systemd/system", "/opt", "/usr", "/var/lib"):
        assert (host.file(path).user, host.file(path).group, host.file(path).mode) == ("root", "root", 0o755), path


def test_a_second_run_changes_nothing_and_sends_no_request(host, converge, mirror_requests):
    before = running_since(host)
    outcome = converge()
    assert (outcome.code, outcome.changed) == (0, [])
    assert mirror_requests() == []
    assert running_since(host) == before


def test_it_listens_where_an_interface_is_and_takes_a_port_as_text(host, converge):
    address = host.check_output("hostname -I").split()[0]
    outcome = converge({"node_exporter_listen_address": "eth0", "node_exporter_port": "9101"})
    assert outcome.code == 0, outcome.message
    assert listening(host) == {f"{address}:9101"}
    assert converge().code == 0
    assert listening(host) == {"127.0.0.1:9100"}


def test_a_run_that_was_killed_before_the_start_is_healed_by_the_next(host, converge):
    # Kills the run when everything is written and the old process still runs.
    shim = "/usr/local/bin/systemctl"
    text = '#!/bin/sh\n[ "$1" = restart ] && kill -9 $PPID && exit 1\nexec /usr/bin/systemctl "$@"\n'
    host.run_test("printf '%%b' %s > %s && chmod 755 %s", text.replace("\n", "\\n"), shim, shim)
    moved = {"node_exporter_port": 9102}
    try:
        assert converge(moved).code != 0
    finally:
        host.run_test("rm %s", shim)
    assert ":9102" in host.file("/etc/systemd/system/node_exporter.service").content_string
    assert listening(host) == {"127.0.0.1:9100"}
    outcome = converge(moved)
    assert (outcome.code, outcome.changed) == (0, ["released_service : Run node_exporter"])
    assert "the running process was not started with what is written" in outcome.text
    assert listening(host) == {"127.0.0.1:9102"}
    assert converge(moved).changed == []
    assert converge().code == 0


@pytest.mark.parametrize(
    "variables, sentence",
    [
        (
            {"node_exporter_collectors_enabled": ["systemd", "nonsense"]},
            "node_exporter_collectors_enabled: this version has no collector nonsense (--collector.nonsense); it has",
        ),
        (
            {"node_exporter_collectors_disabled": ["netclss"]},
            "node_exporter_collectors_disabled: this version has no collector netclss (--collector.netclss); did "
            "you mean netclass?",
        ),
        (
            {"node_exporter_collectors_disabled": ["systemd"]},
            "node_exporter_collectors_enabled and node_exporter_collectors_disabled: collector.systemd is named",
        ),
        (
            {"node_exporter_arguments": {"web.max-request": 1}},
            "node_exporter_arguments: this version has no flag --web.max",
        ),
        ({"node_exporter_arguments": {"collector.cpu": 3}}, "error: unexpected 3"),
    ],
    ids=["unknown", "mistyped", "on-and-off", "argument", "value"],
)
def test_flags_that_the_program_does_not_take_are_refused_by_name_before_it_is_touched(
    host, converge, variables, sentence
):
    before = running_since(host)
    outcome = converge(variables)
    assert outcome.code != 0
    assert sentence in outcome.message, outcome.message
    assert running_since(host) == before
    assert converge().changed == []


def test_a_value_that_fails_only_at_the_start_is_rolled_back(host, converge):
    outcome = converge({"node_exporter_arguments": {"web.max-requests": "many"}})
    assert outcome.code != 0
    assert 'parsing "many": invalid syntax' in outcome.message
    assert "Correct node_exporter_arguments" in outcome.message
    assert "serves again" in outcome.message
    assert "node_systemd_unit_state" in page(host)
    assert converge().changed == []


def test_an_unknown_version_is_refused_with_the_known_ones(host, converge, mirror_requests):
    before = running_since(host)
    outcome = converge({"node_exporter_version": "1.99.0"})
    assert outcome.code != 0
    assert "node_exporter_version: version 1.99.0 has no checksum" in outcome.message
    assert "1.9.1" in outcome.message
    assert mirror_requests() == []
    assert running_since(host) == before


def test_a_taken_port_is_refused_before_anything_changes(host, converge):
    before = running_since(host)
    host.run_test("systemd-run --unit squatter --property Type=exec python3 -m http.server 9105")
    try:
        host.run_test("for _ in 1 2 3 4 5 6 7 8 9; do ss -ltn | grep -q :9105 && break; sleep 0.5; done")
        outcome = converge({"node_exporter_port": 9105})
    finally:
        host.run_test("systemctl stop squatter")
    assert outcome.code != 0
    assert "port 9105 is taken by python3" in outcome.message
    assert ":9105" not in host.file("/etc/systemd/system/node_exporter.service").content_string
    assert running_since(host) == before
    assert converge().changed == []


@pytest.mark.full
@pytest.mark.parametrize(
    "variables, sentence",
    [
        ({"node_exporter_port": "ninety"}, "node_exporter_port"),
        ({"node_exporter_port": 99999}, "node_exporter_port is 99999"),
        ({"node_exporter_listen_address": "wlan7"}, "node_exporter_listen_address: 'wlan7' is neither an IP address"),
        ({"node_exporter_collectors_disabled": "arp"}, "node_exporter_collectors_disabled is text; it must be a list"),
        ({"node_exporter_arguments": ["x"]}, "node_exporter_arguments"),
    ],
)
def test_bad_input_is_one_sentence(host, converge, variables, sentence):
    before = running_since(host)
    outcome = converge(variables)
    assert outcome.code != 0
    assert sentence in outcome.message
    assert running_since(host) == before
    assert converge().changed == []


@pytest.mark.full
@pytest.mark.parametrize(
    "fault, sentence",
    [
        ("corrupt", "do not use it before you know why"),
        ("truncated", "the download broke off after"),
        ("stall", "the download broke off"),
        ("503", "it answered 503"),
        ("404", "it answered 404"),
    ],
)
def test_a_bad_download_leaves_what_runs(host, converge, services, build, fault, sentence):
    before = running_since(host)
    outcome = converge(
        {
            "node_exporter_version": OLDER,
            "node_exporter_checksums": build("node_exporter", OLDER),
            "node_exporter_mirror": f"{services['mirror']}/faults/{fault}",
        }
    )
    assert outcome.code != 0
    assert outcome.message.startswith(f"node_exporter {OLDER} from http://")
    assert sentence in outcome.message
    assert not host.file(f"/opt/node_exporter/{OLDER}").exists
    assert sorted(host.file("/opt/node_exporter").listdir()) == [NEWEST, "current"]
    assert running_since(host) == before


@pytest.mark.full
def test_a_full_disk_is_named(host, converge, build, cramped):
    sums = build("node_exporter", OLDER)
    cramped("/opt/node_exporter", 10)
    outcome = converge({"node_exporter_version": OLDER, "node_exporter_checksums": sums})
    assert outcome.code != 0
    assert "MiB are needed" in outcome.message
    assert "node_exporter_build_info" in page(host)


@pytest.mark.full
def test_an_upgrade_a_downgrade_and_the_way_back(host, converge, build):
    old = {"node_exporter_version": OLDER, "node_exporter_checksums": build("node_exporter", OLDER)}
    assert converge(old).changed == ["released_service : Run node_exporter"]
    assert f'version="{OLDER}"' in page(host)
    # Both versions are kept, so the way back only changes the link.
    assert converge().changed == ["released_service : Run node_exporter"]
    assert f'version="{NEWEST}"' in page(host)
    assert host.file(f"/opt/node_exporter/{OLDER}/node_exporter").exists


@pytest.mark.full
def test_the_same_version_from_another_archive_is_another_program(host, converge, services):
    """It is installed next to the running one, whose directory does not change, and replaces it in one step."""
    marker = f"/opt/node_exporter/{NEWEST}/.release.json"
    before = running_since(host)
    host.run_test("sed -i 's/sha256:..../sha256:0000/' %s", marker)
    assert converge().changed == ["released_service : Run node_exporter"]
    assert host.file("/opt/node_exporter/current").linked_to.startswith(f"/opt/node_exporter/{NEWEST}-")
    assert "sha256:0000" in host.file(marker).content_string
    assert running_since(host) != before
    assert converge().changed == []
    # The other one goes once no kept release needs it. The flags are checked with the program that will run.
    host.run_test("rm -r /opt/node_exporter/%s", NEWEST)
    moved = {"node_exporter_port": 9108}
    assert converge(moved).code == 0
    assert listening(host) == {"127.0.0.1:9108"}
    assert converge().code == 0


@pytest.mark.full
@pytest.mark.parametrize(
    "damage, healed",
    [
        ("systemctl stop node_exporter", True),
        ("systemctl disable node_exporter", False),
        ("rm /var/lib/llm-server/services/node_exporter/environment", False),
        ("sed -i s/9100/9100x/ /etc/systemd/system/node_exporter.service", False),
        ("ln -sfn /nowhere /opt/node_exporter/current", False),
    ],
)
def test_drift_is_corrected(host, converge, damage, healed):
    before = running_since(host)
    host.run_test(damage)
    assert converge().changed == ["released_service : Run node_exporter"]
    assert (running_since(host) != before) == healed
    assert host.service("node_exporter").is_enabled
    assert "node_exporter_build_info" in page(host)
    assert converge().changed == []


@pytest.mark.full
def test_a_service_that_was_restarted_by_systemd_is_not_taken_for_dead(host, converge):
    host.run_test("systemctl kill --signal=KILL node_exporter")
    outcome = converge()
    assert outcome.code == 0, outcome.message
    assert "node_exporter_build_info" in page(host)


@pytest.mark.full
def test_two_controllers_do_not_mix(host, converge):
    lock = "/run/llm-server-node_exporter.lock"
    host.run_test("systemd-run --unit holder --property Type=exec flock %s sleep 600", lock)
    try:
        outcome = converge()
    finally:
        host.run_test("systemctl stop holder")
    assert outcome.code != 0
    assert "another run is changing this service now" in outcome.message
    ports = [9106, 9107]
    with concurrent.futures.ThreadPoolExecutor() as both:
        outcomes = list(both.map(lambda port: converge({"node_exporter_port": port}), ports))
    assert any(outcome.code == 0 for outcome in outcomes)
    for outcome in outcomes:
        assert outcome.code == 0 or "another run" in outcome.message
    (address,) = listening(host)
    winner = int(address.rsplit(":")[-1])
    assert winner in ports
    assert converge({"node_exporter_port": winner}).changed == []
    assert converge().code == 0


@pytest.mark.full
def test_removal_leaves_the_host_as_it_was(host, converge):
    def everything():
        return host.check_output("find /etc /opt /usr /var/lib -path /var/lib/private -prune -o -print | sort")

    assert converge({"node_exporter_state": "absent"}, check=True).changed != []
    assert "node_exporter_build_info" in page(host)
    assert converge({"node_exporter_state": "absent"}).code == 0
    bare = everything()
    assert "node_exporter" not in bare
    assert "llm-server" not in bare
    assert not host.user("node_exporter").exists
    assert not host.group("node_exporter").exists
    assert page(host) == ""
    assert converge({"node_exporter_state": "absent"}).changed == []
    assert converge().code == 0
    assert converge({"node_exporter_state": "absent"}).code == 0
    assert everything() == bare
    assert converge().code == 0


@pytest.mark.parametrize(
    "before, group",
    [
        ("groupadd --system node_exporter", "node_exporter"),
        ("useradd --system --gid nogroup --shell /bin/bash --home-dir /srv node_exporter", "nogroup"),
    ],
    ids=["group-without-user", "user-in-another-group"],
)
def test_an_account_that_is_half_there_is_used_and_what_was_there_stays(host, converge, before, group):
    assert converge({"node_exporter_state": "absent"}).code == 0
    made = before.split()[0].removesuffix("add")
    host.run_test(before)
    try:
        assert converge().code == 0
        assert host.process.get(comm="node_exporter").group == group
        assert converge().changed == []
        assert converge({"node_exporter_state": "absent"}).code == 0
        assert host.group("node_exporter").exists == (made == "group")
        assert host.user("node_exporter").exists == (made == "user")
    finally:
        host.run("userdel node_exporter; groupdel node_exporter")
        assert converge().code == 0


OVERRIDE = "/etc/systemd/system/node_exporter.service.d/override.conf"


@pytest.fixture
def drop_in(host):
    """Install a drop-in for the unit and restart the service; remove the drop-in after the test."""

    def lay(path, text):
        program = "import pathlib, sys; p = pathlib.Path(sys.argv[1]); p.parent.mkdir(exist_ok=True)"
        host.run_test("python3 -c %s %s %s", f"{program}; p.write_text(sys.argv[2])", path, text)
        laid.append(path)
        host.run_test("systemctl daemon-reload")
        host.run_test("systemctl restart node_exporter")

    laid = []
    yield lay
    for path in laid:
        host.run_test("rm -f %s", path)
    host.run_test("systemctl daemon-reload")


def checklist(converge):
    return converge(playbook="checklist.yml")


@pytest.mark.parametrize("path", [OVERRIDE, "/run/systemd/system/service.d/all.conf"], ids=["own", "of-all-services"])
def test_a_drop_in_with_another_command_is_reported_and_its_removal_restarts_the_unit(host, converge, drop_in, path):
    command = "/opt/node_exporter/current/node_exporter"
    lines = f"[Service]\nExecStart=\nExecStart={command} --web.listen-address=:9100\n"
    if path != OVERRIDE:  # other services read it too
        lines = "[Service]\nEnvironment=GOMAXPROCS=1\n"
    drop_in(path, lines)
    before = running_since(host)
    outcome = converge()
    assert outcome.code != 0
    assert f"{path} changes {'ExecStart' if path == OVERRIDE else 'Environment'}" in outcome.message
    assert running_since(host) == before
    measured = checklist(converge)
    assert measured.code != 0 and path in measured.message
    host.run_test("rm %s", path)
    outcome = converge()
    assert (outcome.code, outcome.changed) == (0, ["released_service : Run node_exporter"]), outcome.message
    assert listening(host) == {"127.0.0.1:9100"}
    assert converge().changed == []
    assert checklist(converge).code == 0


def test_a_limit_that_somebody_added_is_a_warning(host, converge, drop_in):
    drop_in(OVERRIDE, "[Service]\nMemoryMax=512M\n")
    outcome = converge()
    assert (outcome.code, outcome.changed) == (0, [])
    assert OVERRIDE in outcome.text
    assert checklist(converge).code == 0


def test_a_masked_unit_is_refused_and_stays_masked(host, converge):
    unit = "/etc/systemd/system/node_exporter.service"
    host.run_test("mv %s /srv/unit && systemctl mask node_exporter", unit)
    try:
        outcome = converge()
        assert outcome.code != 0
        assert f"{unit} masks the unit" in outcome.message and "systemctl unmask" in outcome.message
        assert host.file(unit).linked_to == "/dev/null"
    finally:
        host.run_test("systemctl unmask node_exporter && mv /srv/unit %s && systemctl daemon-reload", unit)
    assert converge().code == 0


def test_no_other_machine_reaches_what_its_processes_listen_on_besides(host, converge, stray, reached):
    assert reached(stray(""))
    port = stray("node_exporter")
    assert f"0.0.0.0:{port}" in host.check_output("ss -ltn")
    assert not reached(port)
    assert not reached(9100)
    measured = checklist(converge)
    assert measured.code == 0, measured.message
    assert "1 closed by the unit's filter" in measured.text
    host.run_test("systemctl set-property --runtime node_exporter IPAddressDeny= IPAddressAllow=")
    try:
        assert reached(port)
        measured = checklist(converge)
        assert measured.code != 0
        assert f"reachable from outside: tcp 0.0.0.0:{port}" in measured.message
    finally:
        host.run_test("rm -r /run/systemd/system.control/node_exporter.service.d && systemctl daemon-reload")


def test_where_it_is_opened_its_port_alone_is_reached(host, converge, stray, reached):
    assert converge({"node_exporter_listen_address": "eth0"}).code == 0
    assert reached(9100)
    assert converge().code == 0
    assert not reached(9100)
