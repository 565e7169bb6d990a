"""The timer on a machine: it waits, it acts, it is removed."""

from __future__ import annotations

import json

import pytest

STATE = "/run/idle-stop/state.json"


def test_the_timer_runs_and_survives_a_boot(host):
    timer = host.service("idle-stop.timer")
    assert timer.is_running and timer.is_enabled


def test_the_first_look_only_starts_the_time(host):
    host.check_output("systemctl start idle-stop.service")
    assert json.loads(host.file(STATE).content_string)["since"] > 0
    assert not host.file("/run/idle-stop/done").exists


def test_after_the_time_the_command_runs_inside_the_hardened_unit(host):
    state = json.loads(host.file(STATE).content_string)
    state["since"] -= 61 * 60
    host.run_expect([0], f"printf %s '{json.dumps(state)}' > {STATE}")
    host.check_output("systemctl start idle-stop.service")
    assert host.file("/run/idle-stop/done").exists


def test_the_unit_is_hardened(host):
    score = host.run("systemd-analyze security --no-pager idle-stop.service").stdout.splitlines()[-1]
    assert float(score.split(":")[1].split()[0]) < 3.0, score


def test_the_checklist_sees_a_timer_that_was_stopped(host, converge):
    assert converge(playbook="checklist.yml").code == 0
    host.check_output("systemctl stop idle-stop.timer")
    outcome = converge(playbook="checklist.yml")
    host.check_output("systemctl start idle-stop.timer")
    assert outcome.code != 0
    assert outcome.message.startswith("idle stop: timer: inactive")


def test_no_time_at_all_is_refused(converge):
    outcome = converge({"idle_stop_minutes": 0})
    assert outcome.code != 0
    assert "idle_stop_minutes is 0" in outcome.message
    assert not outcome.changed


BEFORE = {
    "/etc/systemd/system/idle-stop.service": """[Unit]
Description=Power off after 60 minutes without requests
[Service]
Type=oneshot
ExecStart=/usr/bin/python3 /usr/local/lib/idle-stop/idle_stop.py /usr/local/lib/idle-stop/settings.json
RuntimeDirectory=idle-stop
RuntimeDirectoryPreserve=yes
""",
    "/etc/systemd/system/idle-stop.timer": """[Timer]
OnActiveSec=3600s
OnUnitActiveSec=3600s
[Install]
WantedBy=timers.target
""",
    "/usr/local/lib/idle-stop/idle_stop.py": "",
    "/usr/local/lib/idle-stop/settings.json": "{}",
}


@pytest.fixture
def earlier(host, converge):
    """A host that was set up by an older version of the role, which wrote its units itself."""
    assert converge({"idle_stop_state": "absent"}).code == 0
    host.check_output("mkdir -p /usr/local/lib/idle-stop")
    for path, text in BEFORE.items():
        host.run_expect([0], f"printf %s '{text}' > {path}")
    host.check_output("systemctl daemon-reload && systemctl enable --now idle-stop.timer")


def test_a_host_of_an_earlier_version_is_taken_over(host, converge, earlier):
    assert converge().changed
    assert "NoNewPrivileges=yes" in host.file("/etc/systemd/system/idle-stop.service").content_string
    assert host.service("idle-stop.timer").is_running and host.service("idle-stop.timer").is_enabled
    assert not converge().changed


def test_a_host_of_an_earlier_version_is_cleaned(host, converge, earlier):
    assert converge({"idle_stop_state": "absent"}).code == 0
    assert not any(host.file(path).exists for path in BEFORE)
    assert not host.service("idle-stop.timer").is_running
    assert converge().code == 0


def test_absent_removes_everything(host, converge):
    assert converge({"idle_stop_state": "absent"}).code == 0
    assert not host.file("/etc/systemd/system/idle-stop.timer").exists
    assert not host.file("/usr/local/lib/idle-stop").exists
    assert not host.file("/run/idle-stop").exists
    assert not converge({"idle_stop_state": "absent"}).changed
