"""The exporter fits the installed DCGM and serves its series; a start without series is a failure."""

from __future__ import annotations

import re
import time

import pytest

SERIES = {
    *("DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_GPU_UTIL", "DCGM_FI_DEV_MEM_COPY_UTIL"),
    *("DCGM_FI_DEV_FB_FREE", "DCGM_FI_DEV_FB_USED", "DCGM_FI_DEV_POWER_USAGE"),
    *("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", "DCGM_FI_DEV_XID_ERRORS", "DCGM_FI_DEV_ROW_REMAP_FAILURE"),
    *("DCGM_FI_DEV_ECC_SBE_VOL_TOTAL", "DCGM_FI_DEV_ECC_DBE_VOL_TOTAL"),
    *("DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS", "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS"),
}
COUNTERS = "/etc/dcgm-exporter/default-counters.csv"


def page(host, port: int = 9400) -> str:
    """Return the metrics page, requested on the machine; empty without an answer."""
    command = f"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:{port}/metrics').read().decode())"
    return host.run(f'python3 -c "{command}"').stdout


def series(text: str) -> set[str]:
    return set(re.findall(r"^(DCGM_\w+)\{", text, re.MULTILINE))


def main_pid(host) -> str:
    return host.check_output("systemctl show dcgm-exporter --property MainPID --value")


def current(host) -> str:
    return host.check_output("readlink /opt/dcgm_exporter/current")


def version_output(host) -> str:
    return host.check_output("/opt/dcgm_exporter/current/dcgm-exporter --version")


def serves(host) -> bool:
    return series(page(host)) == SERIES


def test_serves_the_series_with_their_labels(host):
    text = page(host)
    assert series(text) == SERIES
    labels = set(re.findall(r"(\w+)=\"", text.splitlines()[2]))
    assert labels == {"gpu", "UUID", "device", "modelName", "Hostname"}
    assert version_output(host) == "DCGM Exporter version 3.3.9-3.6.1"


def test_listens_on_loopback_and_asks_the_engine_that_runs(host):
    listening = host.check_output("ss -Hltn sport = :9400").split()[3]
    assert listening == "127.0.0.1:9400"
    command = host.check_output(f"tr '\\0' ' ' < /proc/{main_pid(host)}/cmdline")
    assert "--remote-hostengine-info localhost:5555" in command


def test_unit_is_hardened_and_not_root(host):
    score = host.check_output("systemd-analyze security dcgm-exporter.service --no-pager | tail -1")
    assert float(re.search(r"([\d.]+) [A-Z]", score).group(1)) <= 3.0
    assert host.check_output(f"stat -c %U /proc/{main_pid(host)}") == "dcgm-exporter"
    assert host.file(f"/proc/{main_pid(host)}/oom_score_adj").content_string == "1000\n"
    unit = host.file("/etc/systemd/system/dcgm-exporter.service").content_string
    for line in ("Requires=nvidia-dcgm.service", "Restart=always", "RestartSec=5"):
        assert line in unit.splitlines()
    assert "nvidia-dcgm.service" in re.search(r"^After=(.*)$", unit, re.MULTILINE).group(1)


def test_counters_file_has_two_commas_a_line(host):
    lines = [line for line in host.file(COUNTERS).content_string.splitlines() if not line.startswith("#")]
    assert {line.split(",")[0] for line in lines} == SERIES
    assert all(line.count(",") == 2 for line in lines)


def test_build_leaves_only_the_program_and_its_toolchain(host):
    files = host.check_output("ls -A /opt/dcgm_exporter").split()
    assert [name for name in files if name.startswith(".build-")] == []
    assert host.check_output("stat -Lc '%U %a' /opt/dcgm_exporter/current/dcgm-exporter") == "root 755"
    assert not host.exists("go")
    assert host.check_output("find / -xdev -user dcgm-exporter -not -path '/proc/*' -print -quit") == ""


def test_comes_back_when_the_process_leaves_with_exit_code_0(host):
    """The engine restarts; the exporter exits with it and is started again."""
    pid = main_pid(host)
    host.run_expect([0], "systemctl restart nvidia-dcgm")
    deadline = time.monotonic() + 60
    while main_pid(host) == pid or not (host.service("dcgm-exporter").is_running and serves(host)):
        assert time.monotonic() < deadline, "the exporter did not come back"
        time.sleep(1)


def test_repeat_sends_no_request(host, converge, mirror_requests):
    pid = main_pid(host)
    outcome = converge()
    assert (outcome.code, outcome.changed) == (0, [])
    assert mirror_requests() == [] and main_pid(host) == pid


def test_changes_restart_once_and_take_effect(host, converge):
    counters = [
        {"field": "DCGM_FI_DEV_GPU_TEMP", "type": "gauge", "help": "Temperature"},
        {"field": "DCGM_FI_DEV_FB_USED", "type": "gauge", "help": "Memory"},
    ]
    variables = {"dcgm_exporter_counters": counters, "dcgm_exporter_port": 9401, "dcgm_exporter_interval_ms": 1000}
    before = converge({**variables}, check=True)
    assert (before.code, before.changed) == (0, ["dcgm_exporter : Run dcgm-exporter"]) and serves(host)
    outcome = converge(variables)
    assert (outcome.code, outcome.changed) == (0, ["dcgm_exporter : Run dcgm-exporter"])
    assert series(page(host, 9401)) == {"DCGM_FI_DEV_GPU_TEMP", "DCGM_FI_DEV_FB_USED"}
    assert not host.socket("tcp://127.0.0.1:9400").is_listening
    assert converge().code == 0 and serves(host)


@pytest.mark.full
def test_check_mode_judges_what_a_run_brings(host, converge):
    """On a host where another major has replaced 3.x, the role dcgm of the same run installs 3.x again."""
    package = "datacenter-gpu-manager"
    host.run_expect([0], f"apt-mark unhold {package} && apt-get -y install {package}-4-cuda12")
    outcome = converge(check=True)
    host.run_expect(
        [0], f"apt-get -y --allow-downgrades install {package}=1:3.3.9 {package}-4-core- {package}-4-cuda12-"
    )
    host.run_expect([0], f"apt-mark hold {package} && systemctl restart nvidia-dcgm dcgm-exporter")
    assert (outcome.code, outcome.changed) == (0, []), outcome.message
    assert converge().code == 0 and serves(host)


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        (
            {"dcgm_exporter_tag": "4.0.0-4.0.1"},
            "4.0.0-4.0.1 needs the libdcgm.so.4 of DCGM 4.x and DCGM 3.3.9 is installed",
        ),
        ({"dcgm_exporter_tag": "3.9.9-9.9.9"}, "dcgm_exporter_tag: 3.9.9-9.9.9 is not known (known: 3.3.8-3.6.0"),
        ({"dcgm_exporter_go_version": "1.1"}, "dcgm_exporter_go_version: version 1.1 has no checksum"),
        ({"dcgm_exporter_interval_ms": 30000}, "dcgm_exporter_start_timeout is 20 s; the first series comes after"),
        (
            {"dcgm_exporter_counters": [{"field": "DCGM_FI_DEV_GPU_TEMP", "type": "gauge", "help": "in C, or so"}]},
            "a help text must hold no comma",
        ),
        (
            {"dcgm_exporter_counters": [{"field": "GPU_TEMP", "type": "gauge", "help": "Temperature"}]},
            "GPU_TEMP is no name of a DCGM field",
        ),
    ],
)
def test_bad_input_is_refused_in_one_sentence(host, converge, variables, sentence):
    pid = main_pid(host)
    outcome = converge(variables)
    assert outcome.code != 0 and sentence in outcome.message
    assert main_pid(host) == pid and serves(host)


def test_unknown_field_is_rolled_back(host, converge):
    counters = [{"field": "DCGM_FI_DEV_NO_SUCH_FIELD", "type": "gauge", "help": "Nothing"}]
    outcome = converge({"dcgm_exporter_counters": counters})
    assert outcome.code != 0
    assert "Unknown ExporterCounter field 'DCGM_FI_DEV_NO_SUCH_FIELD'" in outcome.message
    assert "Correct dcgm_exporter_counters." in outcome.message and "serves again" in outcome.message
    assert serves(host)
    assert converge().changed == []


def test_exit_code_0_without_engine_is_a_failure(host, converge):
    outcome = converge({"dcgm_exporter_engine": "localhost:5999"})
    assert outcome.code != 0
    assert "DCGM's host engine does not answer" in outcome.message
    assert serves(host) and converge().changed == []


def test_open_port_without_series_is_not_ready(host, converge):
    """The GPU is gone: the exporter still runs, with an empty page."""
    host.run_expect([0], "touch /etc/stand-in-without-gpu")
    try:
        outcome = converge({"dcgm_exporter_interval_ms": 1000, "dcgm_exporter_start_timeout": 6})
    finally:
        host.run_expect([0], "rm /etc/stand-in-without-gpu")
    assert outcome.code != 0 and "has no series DCGM_FI_DEV_" in outcome.message
    assert converge().code == 0 and serves(host)


def test_taken_port_is_named_before_anything_changes(host, converge):
    host.run_expect([0], "systemd-run --unit squatter python3 -m http.server 9402 --bind 127.0.0.1")
    host.run_expect([0], "timeout 60 sh -c 'until ss -Hltn sport = :9402 | grep -q .; do sleep 0.2; done'")
    pid = main_pid(host)
    outcome = converge({"dcgm_exporter_port": 9402})
    host.run_expect([0], "systemctl stop squatter")
    assert outcome.code != 0 and "port 9402 is taken by python3" in outcome.message
    assert main_pid(host) == pid and serves(host)


@pytest.mark.full
def test_wrong_commit_and_broken_downloads_change_nothing(host, converge, inventory):
    pid, mirror, commits = main_pid(host), inventory["lab_mirror"], inventory["lab_exporter"]["commits"]
    for variables, sentence in (
        ({"dcgm_exporter_commits": {**commits, "3.3.8-3.6.0": "0" * 40}}, f"expected {'0' * 40}"),
        ({"dcgm_exporter_mirror": f"{mirror}/faults/503"}, "cannot be built"),
        ({"dcgm_exporter_mirror": f"{mirror}/faults/corrupt"}, "cannot be built"),
        ({"dcgm_exporter_mirror": f"{mirror}/faults/truncated"}, "cannot be built"),
    ):
        outcome = converge({"dcgm_exporter_tag": "3.3.8-3.6.0", **variables})
        assert outcome.code != 0 and sentence in outcome.message, outcome.message
    checksums = {inventory["lab_exporter"]["go"]["version"]: {"amd64": f"sha256:{'0' * 64}"}}
    outcome = converge({"dcgm_exporter_go_checksums": checksums})
    assert outcome.code != 0 and f"expected sha256:{'0' * 64}" in outcome.message
    broken = {"dcgm_exporter_go_checksums": checksums, "dcgm_exporter_mirror": f"{mirror}/faults/truncated"}
    outcome = converge(broken)
    assert outcome.code != 0 and "the download broke off after" in outcome.message, outcome.message
    assert main_pid(host) == pid and serves(host)
    assert converge().changed == []


@pytest.mark.full
def test_a_full_disk_is_named_before_anything_is_built(host, converge, cramped):
    before, pid = host.file("/opt/dcgm_exporter").listdir(), main_pid(host)
    cramped("/opt/dcgm_exporter", 100)
    outcome = converge({"dcgm_exporter_tag": "3.3.8-3.6.0"})
    assert outcome.code != 0 and "the disk of /opt/dcgm_exporter has 1" in outcome.message, outcome.message
    assert "2048 MiB are needed to build" in outcome.message
    assert sorted(host.file("/opt/dcgm_exporter").listdir()) == sorted(before)
    assert main_pid(host) == pid and serves(host)


@pytest.mark.full
def test_downgrade_builds_beside_and_upgrade_builds_nothing(host, converge):
    newer = current(host)
    outcome = converge({"dcgm_exporter_tag": "3.3.8-3.6.0"})
    assert outcome.code == 0, outcome.message
    assert version_output(host) == "DCGM Exporter version 3.3.8-3.6.0" and serves(host)
    assert host.file(newer).is_directory
    outcome = converge()
    assert (outcome.code, outcome.changed) == (0, ["dcgm_exporter : Run dcgm-exporter"])
    assert current(host) == newer and serves(host)


@pytest.mark.full
def test_build_on_the_controller(host, converge, tmp_path):
    """One build for a fleet; the target needs no toolchain and no compiler."""
    where = {"dcgm_exporter_build_on": "controller", "dcgm_exporter_controller_root": str(tmp_path)}
    assert converge({"dcgm_exporter_state": "absent"}).code == 0
    assert converge(where, check=True).code == 0
    outcome = converge(where)
    assert outcome.code == 0, outcome.message
    assert serves(host) and not host.file("/opt/dcgm_exporter/go").exists
    assert list(tmp_path.glob("dcgm_exporter/3.3.9-3.6.1-*/dcgm-exporter"))
    assert converge(where).changed == []


@pytest.mark.full
def test_program_that_does_not_run_on_the_target_is_refused(host, converge, tmp_path):
    """As if the controller's C library were newer: the build is replaced by one that cannot run."""
    where = {"dcgm_exporter_build_on": "controller", "dcgm_exporter_controller_root": str(tmp_path)}
    assert converge(where).code == 0
    (built,) = tmp_path.glob("dcgm_exporter/3.3.9-3.6.1-*/dcgm-exporter")
    built.write_text("#!/bin/sh\necho \"/lib/libc.so.6: version 'GLIBC_2.99' not found\" >&2\nexit 1\n")
    pid = main_pid(host)
    outcome = converge(where)
    assert (
        outcome.code != 0
        and "GLIBC_2.99" in outcome.message
        and "set dcgm_exporter_build_on to target" in outcome.message
    )
    assert main_pid(host) == pid and serves(host)


@pytest.mark.full
def test_removal_leaves_the_host_as_it_was(host, converge):
    assert converge({"dcgm_exporter_state": "absent"}).code == 0
    for path in ("/opt/dcgm_exporter", "/etc/dcgm-exporter", "/etc/systemd/system/dcgm-exporter.service"):
        assert not host.file(path).exists
    assert not host.user("dcgm-exporter").exists
    assert not host.package("gcc").is_installed and not host.package("git").is_installed
    assert host.package("datacenter-gpu-manager").is_installed and host.service("nvidia-dcgm").is_running
    assert converge({"dcgm_exporter_state": "absent"}).changed == []


@pytest.mark.full
def test_host_without_dcgm_is_refused_with_the_cure(host, converge):
    host.run_expect([0], "mv /usr/bin/dcgmi /root/dcgmi")
    outcome = converge()
    host.run_expect([0], "mv /root/dcgmi /usr/bin/dcgmi")
    assert outcome.code != 0 and "run the role dcgm first" in outcome.message
