"""The report of diagnose.yml about a server that is broken on purpose."""

from __future__ import annotations

import contextlib
import json
import time

import pytest

DIAGNOSE = "../../playbooks/diagnose.yml"
WITHIN = 20  # seconds that the diagnosis may take
CANARY = "canary"
# Files that the diagnosis must not change; -newer compares with a file made before it.
WATCHED = "/etc /opt /srv /app /usr/local /var/lib/llm-server /home"
WELL = "Nothing is wrong here"
UNITS = ("vllm", "ai-server", "node_exporter")


@pytest.fixture(scope="module")
def diagnose(converge):
    """Run the playbook and return its report."""

    def ask(**variables):
        outcome = converge(variables, playbook=DIAGNOSE, verbose=True)
        assert outcome.code == 0, outcome.message
        assert not outcome.changed
        assert CANARY not in outcome.text
        preview, shown = results(outcome.text)
        assert preview["seconds"] < WITHIN
        assert preview["report"] == shown["msg"].splitlines()
        return shown["msg"]

    return ask


def results(text):
    """Return the results of a run's tasks in order."""
    events = [json.loads(line) for line in text.splitlines() if line.startswith('{"_event"')]
    return [event["hosts"]["machine"] for event in events if event["_event"] == "v2_runner_on_ok"]


@pytest.fixture(autouse=True)
def well(host):
    """Start every test with a healthy server."""
    yield
    host.check_output("systemctl daemon-reload")
    for unit in UNITS:
        seen = host.check_output("systemctl show %s --property ActiveState,NRestarts", unit)
        if set(seen.split()) != {"ActiveState=active", "NRestarts=0"}:
            host.run("systemctl reset-failed %s", unit)
            host.check_output("systemctl restart %s", unit)
    until(lambda: all(answers(host, port) for port in (8001, 8000)))


def until(condition, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.3)


def answers(host, port):
    command = f"import urllib.request as u; u.urlopen('http://127.0.0.1:{port}/health', timeout=3)"
    return host.run("python3 -c %s", command).rc == 0


def shown(host, unit, name):
    return host.check_output("systemctl show %s --property %s --value", unit, name)


def invocations(host):
    return [shown(host, unit, "InvocationID") for unit in UNITS]


@contextlib.contextmanager
def done(host, do, undo):
    host.check_output(do)
    try:
        yield
    finally:
        host.check_output(undo)


@contextlib.contextmanager
def drop_in(host, lines, unit="vllm"):
    """Change a unit with a drop-in, as a person would."""
    folder = f"/etc/systemd/system/{unit}.service.d"
    make = f"mkdir -p {folder} && printf '%b' '[Service]\\n{lines}\\n' > {folder}/test.conf && systemctl daemon-reload"
    with done(host, make, f"rm {folder}/test.conf && rmdir --ignore-fail-on-non-empty {folder}"):
        yield


def fail(host, unit="vllm"):
    """Restart a service that cannot start; return when systemd has seen it fail."""
    host.run("systemctl reset-failed %s", unit)
    host.run("systemctl restart --no-block %s", unit)
    until(lambda: shown(host, unit, "ActiveState") == "failed" or int(shown(host, unit, "NRestarts")) > 0)


def first(report):
    """Return the ID of the first cause."""
    return next((line.split()[1] for line in report.splitlines() if line.strip().startswith("cause ")), None)


def test_healthy_server_is_called_so_and_is_left_alone(host, diagnose):
    host.check_output("touch /run/before")
    before = invocations(host)
    report = diagnose()
    assert WELL in report and "vllm" in report and "also seen" not in report and "not looked at" not in report
    assert invocations(host) == before
    assert (
        host.check_output(f"find {WATCHED} -newer /run/before -type f -not -path '*/__pycache__/*' 2>/dev/null; true")
        == ""
    )


@pytest.mark.parametrize(
    ("lines", "cause", "proof"),
    [
        ("User=nobody-here", "systemd_user_217", "nobody-here"),
        ("ReadWritePaths=/nowhere/at/all", "systemd_namespace_226", "/nowhere/at/all"),
        ("EnvironmentFile=/nowhere/.env", "systemd_env_file", "/nowhere/.env"),
        ("WorkingDirectory=/nowhere", "systemd_chdir_200", "/nowhere"),
    ],
)
def test_unit_that_somebody_changed(host, diagnose, lines, cause, proof):
    with drop_in(host, lines):
        fail(host)
        report = diagnose()
    assert first(report) == cause
    assert proof in report and "test.conf" in report


def test_environment_without_its_interpreter(host, diagnose):
    program = host.check_output("systemctl cat vllm | sed -n 's/^ExecStart=\\([^ ]*\\).*/\\1/p' | tail -1")
    interpreter = host.check_output(f"sed -n '1s/^#!//p' {program}")
    with done(host, f"mv {interpreter} {interpreter}.away", f"mv {interpreter}.away {interpreter}"):
        fail(host)
        report = diagnose()
    assert first(report) == "systemd_exec_203"
    assert interpreter in report and "does not exist" in report


def test_port_that_another_program_holds(host, diagnose):
    host.check_output("systemctl stop vllm")
    take = "systemd-run --quiet --unit thief python3 -m http.server 8001 --bind 127.0.0.1"
    with done(host, take, "systemctl stop thief"):
        until(lambda: host.run("ss -Hltn sport = :8001").stdout)
        fail(host)
        holder = shown(host, "thief", "MainPID")
        report = diagnose()
    assert first(report) == "port_in_use"
    assert f"port 8001 is held by python3 (pid {holder})." in report


def test_stopped_engine_comes_before_the_application_that_misses_it(host, diagnose):
    host.check_output("systemctl stop vllm")
    report = diagnose()
    assert "it was stopped or never started" in report
    assert report.index("vllm.service does not run") < report.index("ai-server asks http://127.0.0.1:8001")


def test_masked_unit(host, diagnose):
    host.check_output("systemctl stop vllm")
    hidden = "mv /etc/systemd/system/vllm.service /run/hidden && systemctl mask vllm"
    with done(host, hidden, "systemctl unmask vllm && mv /run/hidden /etc/systemd/system/vllm.service"):
        assert first(diagnose()) == "systemd_unit_masked"


def test_engine_that_hangs_and_is_active_all_the_same(host, diagnose):
    process = shown(host, "vllm", "MainPID")
    with done(host, f"kill -STOP {process}", f"kill -CONT {process}"):
        report = diagnose()
    assert "vllm.service runs and does not answer as it should" in report


def test_key_that_the_engine_does_not_take(host, diagnose):
    report = diagnose(ai_server_vllm_api_key="canary-of-somebody-else")
    assert "ai-server asks http://127.0.0.1:8001/v1: it answers 401 to its key" in report


def test_damaged_model(host, diagnose):
    weights = host.check_output("find -L /srv/models/tiny -name '*.safetensors' | head -1")
    copy = "mkdir /run/model && cp -r /srv/models/tiny/. /run/model && truncate -s 1000 /run/model/*.safetensors"
    cover = f"{copy} && mount --bind /run/model /srv/models/tiny"
    # The light engine reads no weights, so the test lets its start fail, as the real engine's would.
    with done(host, cover, "umount /srv/models/tiny; rm -r /run/model"), drop_in(host, "ExecStartPre=/bin/false"):
        fail(host)
        report = diagnose()
    assert weights.rsplit("/", 1)[1] in report


def test_disk_without_room_and_without_inodes(host, diagnose):
    mount = "mount -t tmpfs -o size=8m,nr_inodes=20 full /home"
    fill = "dd if=/dev/zero of=/home/all bs=1M 2>/dev/null; seq 30 | sed s,^,/home/, | xargs touch 2>/dev/null; true"
    with done(host, f"{mount} && {{ {fill}; }}", "umount /home"):
        report = diagnose()
    assert "/home is full: 0 of 8 MiB are free." in report
    assert "/home has 0 inodes left." in report


def test_host_that_is_half_broken(host, diagnose):
    """Two programs hang: the report names them and has the results of the others."""
    host.check_output("printf '#!/bin/sh\\nexec sleep 60\\n' > /run/hangs && chmod 755 /run/hangs")
    programs = [host.check_output("readlink -f $(command -v %s)", name) for name in ("journalctl", "timedatectl")]
    cover = " && ".join(f"mount --bind /run/hangs {path}" for path in programs)
    with done(host, cover, f"umount {' '.join(programs)}"):
        report = diagnose(ai_server_vllm_api_key="canary-of-somebody-else")
    assert "it answers 401 to its key" in report
    assert "not looked at: the clock: timedatectl gave no answer within" in report
    assert "not looked at: the unit of vllm: journalctl gave no answer within" in report
