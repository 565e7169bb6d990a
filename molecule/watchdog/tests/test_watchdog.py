"""The watchdog on a machine, with a service that has configurable faults."""

from __future__ import annotations

import json
import time

import pytest

LIMIT = 4  # seconds: the scenario's silent_after and stalled_after
HEALED_WITHIN = 60  # seconds after the limit
PAGE = "/var/lib/llm-watchdog/metrics/watchdog.prom"
EVIDENCE = "/var/lib/llm-watchdog/evidence"
NOTES = "/var/lib/llm-server/services/sick"


@pytest.fixture(autouse=True)
def well(host):
    """Before each test the service is healthy, and a person has just restarted it."""
    cure(host)
    yield
    host.check_output("rm -f /run/sick")


def cure(host):
    """Restart the service as a person would, and wait until the watchdog has seen the new process serve."""
    host.check_output("rm -f /run/sick && systemctl restart sick.service")
    rounds = {last_look(host)}

    def seen_well():
        # A look that had begun before the restart may still write its page, so the next one counts.
        rounds.add(last_look(host))
        return len(rounds) > 3 and metric(host, "ready") == 1 and metric(host, "person_needed") == 0

    until(seen_well)


def last_look(host):
    (line,) = [
        x for x in host.file(PAGE).content_string.splitlines() if x.startswith("llm_watchdog_last_look_seconds ")
    ]
    return int(line.split()[1])


def set_fault(host, how):
    host.check_output(f"echo {how} > /run/sick")


def pid(host):
    return host.check_output("systemctl show sick.service --property MainPID --value")


def metric(host, name):
    lines = host.file(PAGE).content_string.splitlines()
    return next(int(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f'llm_watchdog_{name}{{unit="sick'))


def until(condition, seconds=LIMIT + HEALED_WITHIN):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.5)


def watchdog_journal(host):
    return host.check_output("journalctl --unit llm-watchdog --output cat --no-pager")


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("stall once", "1 requests are pending and no token was produced for"),
        ("hang once", "its health route has not answered for"),
    ],
)
def test_a_service_that_hangs_is_restarted_and_the_evidence_is_kept(host, how, why):
    before, restarts, folders = pid(host), metric(host, "restarts_total"), host.file(EVIDENCE).listdir()
    set_fault(host, how)
    until(lambda: pid(host) not in (before, "0"))
    until(lambda: metric(host, "ready") == 1)
    assert metric(host, "restarts_total") == restarts + 1
    assert f"sick.service: {why}" in watchdog_journal(host)
    (folder,) = set(host.file(EVIDENCE).listdir()) - set(folders)
    kept = host.file(f"{EVIDENCE}/{folder}")
    assert kept.mode == 0o700
    assert {"unit.txt", "threads.txt", "memory.txt"} <= set(kept.listdir())
    assert before in host.file(f"{EVIDENCE}/{folder}/threads.txt").content_string
    assert before in host.file(f"{EVIDENCE}/{folder}/unit.txt").content_string


@pytest.mark.parametrize("how", ["busy", "load"])
def test_a_busy_service_and_one_that_starts_are_left_alone(host, how):
    if how == "load":
        set_fault(host, how)
        host.check_output("systemctl restart sick.service")
    before = pid(host)
    set_fault(host, how)
    time.sleep(4 * LIMIT)
    assert pid(host) == before


def test_one_that_dies_in_a_loop_is_systemds(host):
    restarts = metric(host, "restarts_total")
    set_fault(host, "die")
    host.run("systemctl kill --signal KILL sick.service")
    time.sleep(3 * LIMIT)
    assert metric(host, "restarts_total") == restarts
    assert metric(host, "person_needed") == 0


def test_nothing_is_restarted_while_ansible_works_on_it_or_its_host_is_out_of_rotation(host):
    before = pid(host)
    holder = "systemd-run --unit holder flock /run/llm-server-sick.lock sleep 600"
    host.check_output(holder)
    set_fault(host, "stall once")
    time.sleep(3 * LIMIT)
    assert pid(host) == before
    host.check_output(f"mkdir -p {NOTES} && echo '{json.dumps({'out': True})}' > {NOTES}/state.json")
    host.check_output("systemctl stop holder.service")
    time.sleep(3 * LIMIT)
    assert pid(host) == before
    host.check_output(f"rm -r {NOTES}")
    until(lambda: pid(host) not in (before, "0"))


def test_after_three_restarts_it_stops_and_reports_that_a_person_is_needed(host, converge):
    restarts = metric(host, "restarts_total")
    set_fault(host, "stall")
    until(lambda: metric(host, "person_needed") == 1, 120)
    assert metric(host, "restarts_total") == restarts + 3
    left = pid(host)
    time.sleep(3 * LIMIT)
    assert pid(host) == left
    assert "3 restarts did not help. A person is needed." in watchdog_journal(host)
    errors = host.check_output("journalctl --unit llm-watchdog --priority 3 --output cat --no-pager")
    assert "A person is needed." in errors
    # The budget persists when the watchdog restarts.
    host.check_output("systemctl restart llm-watchdog.service")
    time.sleep(3 * LIMIT)
    assert pid(host) == left
    outcome = converge(playbook="checklist.yml")
    assert "a person is needed: sick.service" in outcome.message
    # A person restarts it, and the watchdog cures the next fault again.
    cure(host)
    assert converge(playbook="checklist.yml").code == 0
    before = pid(host)
    set_fault(host, "stall once")
    until(lambda: pid(host) not in (before, "0"))


NIGHT = {"watchdog_night_restart": True, "watchdog_night_units": ["sick.service"], "watchdog_night_quiet": 3}
TIMER = "/etc/systemd/system/llm-watchdog-night.timer"


def attempts(host):
    noted = json.loads(host.file("/var/lib/llm-watchdog/state.json").content_string)
    return noted["services"]["sick.service"]["attempts"]


def test_a_restart_in_a_quiet_moment_at_night_is_not_a_fault(host, converge):
    assert converge(NIGHT).code == 0
    assert converge(NIGHT).changed == []
    assert "OnCalendar=*-*-* 02:00:00\n" in host.file(TIMER).content_string
    assert "02:00:00" in host.check_output("systemctl list-timers --no-pager llm-watchdog-night.timer")
    before, spent, counted = pid(host), attempts(host), metric(host, "restarts_total")
    set_fault(host, "work")
    host.check_output("systemctl start --no-block llm-watchdog-night.service")
    time.sleep(3 * LIMIT)
    assert pid(host) == before, "requests ran"
    host.check_output("systemd-run --unit holder flock /run/llm-server-sick.lock sleep 600")
    host.check_output("rm /run/sick")
    time.sleep(3 * LIMIT)
    assert pid(host) == before, "somebody else was at work on it"
    host.check_output("systemctl stop holder.service")
    until(lambda: metric(host, "planned_restarts_total") == 1)
    until(lambda: metric(host, "ready") == 1)
    assert pid(host) not in (before, "0")
    assert (attempts(host), metric(host, "restarts_total"), metric(host, "person_needed")) == (spent, counted, 0)
    output = host.check_output("journalctl --unit llm-watchdog-night --output cat --no-pager")
    assert "sick.service: planned restart after 3 s without requests." in output
    until(lambda: "sick.service serves again" in host.check_output("journalctl -u llm-watchdog-night -o cat"))
    assert converge(NIGHT, playbook="checklist.yml").code == 0
    assert converge().code == 0
    assert not host.file(TIMER).exists
    assert host.run("systemctl is-active llm-watchdog-night.timer").stdout.strip() == "inactive"


def test_little_memory_is_a_warning_with_the_largest_processes(host, converge):
    converge({"watchdog_memory_mib": 1 << 30})
    until(lambda: f"less than {1 << 30}; the largest processes: " in watchdog_journal(host))
    assert converge().code == 0


def test_the_unit_is_hardened(host):
    score = host.run("systemd-analyze security --no-pager llm-watchdog.service").stdout.splitlines()[-1]
    assert float(score.split(":")[1].split()[0]) < 4.0, score


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"watchdog_restarts": 0}, "watchdog_restarts is 0"),
        ({"watchdog_services": [{"unit": "sick", "health": "http://127.0.0.1:1/"}]}, "such as vllm.service"),
        ({"watchdog_services": [{"unit": "a.service", "health": "nowhere"}]}, "watchdog_services[0].health"),
        ({"watchdog_interval": 100}, "at least twice watchdog_interval"),
        (
            {"watchdog_night_restart": True, "watchdog_night_window": 600, "watchdog_night_units": ["x.service"]},
            "need 1200 s (1200 s per batch), and it is 600 s",
        ),
        (
            {"watchdog_night_restart": True, "watchdog_night_quiet": 3600},
            "watchdog_night_quiet is 3600; it must be at most half",
        ),
    ],
)
def test_bad_variables_are_refused(host, converge, variables, message):
    outcome = converge(variables)
    assert outcome.code != 0
    assert message in outcome.message
    assert not outcome.changed


def test_absent_removes_everything(host, converge):
    assert converge({"watchdog_state": "absent"}).code == 0
    for path in ("/usr/local/lib/llm-watchdog", "/etc/llm-watchdog", "/var/lib/llm-watchdog"):
        assert not host.file(path).exists
    assert not converge({"watchdog_state": "absent"}).changed
    assert converge().code == 0
