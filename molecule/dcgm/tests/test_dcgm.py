"""DCGM 3.x stays 3.x although the repository has a newer major, and the running engine is the installed one."""

from __future__ import annotations

import pytest

PACKAGE = "datacenter-gpu-manager"
NEWER = f"{PACKAGE}-4-cuda12"


def packages(host) -> dict[str, str]:
    """Return the installed packages of DCGM, with versions."""
    shown = host.run("dpkg-query -W -f '${Package} ${Version} ${db:Status-Abbrev}\\n' 'datacenter-gpu-manager*'").stdout
    # A package that is not installed has no version.
    rows = [line.split() for line in shown.splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 3 and row[2].endswith("i")}


def held(host) -> list[str]:
    return host.check_output("apt-mark showhold").split()


def engine(host) -> str:
    """Return the version that the running engine reports. dcgmi waits 100 ms for it, too short on a busy machine."""
    output = host.check_output("timeout 30 sh -c 'until dcgmi -v; do sleep 0.3; done'")
    return output.rpartition("Version : ")[2].strip()


def test_pinned_held_and_running(host):
    assert packages(host) == {PACKAGE: "1:3.3.9"}
    assert held(host) == [PACKAGE]
    unit = host.service("nvidia-dcgm")
    assert unit.is_enabled and unit.is_running
    assert engine(host) == "3.3.9"
    assert host.socket("tcp://127.0.0.1:5555").is_listening


def test_repository_offers_the_newer_major(host):
    """The reason for the hold: without it, packages of 4.x with other names would replace 3.x."""
    assert "Candidate: 1:3.3.9" in host.check_output(f"apt-cache policy {PACKAGE}")
    assert "Candidate: 1:4." in host.check_output(f"apt-cache policy {NEWER}")
    refused = host.run(f"apt-get -y install {NEWER}")
    assert refused.rc != 0 and "held" in refused.stderr.lower(), refused.stderr  # the sentence depends on apt's version
    host.run_expect([0], "apt-get -y dist-upgrade")
    assert packages(host) == {PACKAGE: "1:3.3.9"}


def test_repeat_sends_no_request(converge, mirror_requests):
    outcome = converge()
    assert (outcome.code, outcome.changed) == (0, [])
    assert mirror_requests() == []


def test_engine_older_than_the_package_is_restarted(host, converge):
    """An upgrade was interrupted before the restart: the package is new, the process is old."""
    older = "sed -i 's/^VERSION = .*/VERSION = \"3.3.8\"/' /usr/bin/nv-hostengine"
    host.run_expect([0], f"cp /usr/bin/nv-hostengine /root/engine && {older} && systemctl restart nvidia-dcgm")
    host.run_expect(
        [0], "timeout 120 sh -c 'until dcgmi -v; do sleep 0.3; done' && cp /root/engine /usr/bin/nv-hostengine"
    )
    assert engine(host) == "3.3.8"
    outcome = converge()
    assert (outcome.code, outcome.changed) == (0, ["dcgm : Run the host engine"])
    assert engine(host) == "3.3.9"


def test_stopped_engine_and_lost_hold_are_corrected(host, converge):
    host.run_expect([0], f"systemctl disable --now nvidia-dcgm && apt-mark unhold {PACKAGE}")
    expected = ["dcgm : Pin the package", "dcgm : Run the host engine"]
    assert converge(check=True).changed == expected
    assert converge().changed == expected
    assert held(host) == [PACKAGE] and host.service("nvidia-dcgm").is_enabled and engine(host) == "3.3.9"


@pytest.mark.parametrize(
    ("version", "message"),
    [
        ("4.2.3", "dcgm_version is 4.2.3; this role runs DCGM 3.x"),
        ("latest", "dcgm_version is latest"),
        ("3.3.90", "datacenter-gpu-manager 3.3.90 is in no apt repository of this host (known: 1:3.3.9"),
    ],
)
def test_wrong_version_is_refused_by_name(host, converge, version, message):
    outcome = converge({"dcgm_version": version})
    assert outcome.code != 0 and message in outcome.message
    assert packages(host) == {PACKAGE: "1:3.3.9"} and engine(host) == "3.3.9"


def test_host_without_gpu_is_refused(host, converge):
    host.run_expect([0], "touch /etc/stand-in-without-gpu")
    try:
        outcome = converge()
    finally:
        host.run_expect([0], "rm /etc/stand-in-without-gpu")
    assert outcome.code != 0
    assert outcome.message.startswith("DCGM needs a GPU. The NVIDIA driver runs but finds no GPU")


def test_engine_that_does_not_start_is_a_failure(host, converge):
    """Its port is taken, so systemd reports a started unit, but no engine answers."""
    host.run_expect([0], "systemctl stop nvidia-dcgm")
    host.run_expect([0], "systemd-run --unit squatter python3 -m http.server 5555 --bind 127.0.0.1")
    host.run_expect([0], "timeout 60 sh -c 'until ss -Hltn sport = :5555 | grep -q .; do sleep 0.2; done'")
    try:
        outcome = converge({"dcgm_start_timeout": 5})
    finally:
        host.run_expect([0], "systemctl stop squatter")
    assert outcome.code != 0 and "DCGM 3.3.9 is installed and the engine says nothing" in outcome.message
    assert converge().code == 0


@pytest.mark.full
def test_downgrade_from_the_next_major(host, converge):
    """The change that the pin should prevent has happened: 4.x has replaced 3.x."""
    host.run_expect([0], f"apt-mark unhold {PACKAGE} && apt-get -y install {NEWER} && systemctl restart nvidia-dcgm")
    assert set(packages(host)) == {NEWER, f"{PACKAGE}-4-core"}
    outcome = converge()
    assert outcome.code == 0, outcome.message
    assert packages(host) == {PACKAGE: "1:3.3.9"} and held(host) == [PACKAGE] and engine(host) == "3.3.9"


@pytest.mark.full
def test_downgrade_and_upgrade_of_a_held_package(host, converge):
    for version in ("3.3.8", "3.3.9"):
        outcome = converge({"dcgm_version": version})
        assert outcome.code == 0, outcome.message
        assert packages(host) == {PACKAGE: f"1:{version}"} and held(host) == [PACKAGE] and engine(host) == version


@pytest.mark.full
def test_apt_lock_is_waited_for(host, converge):
    lock = "import fcntl,time; h=open('/var/lib/dpkg/lock-frontend','w'); fcntl.lockf(h, fcntl.LOCK_EX); time.sleep({})"
    host.run_expect([0], f'systemd-run --unit locker python3 -c "{lock.format(12)}"')
    assert converge({"dcgm_version": "3.3.8"}).code == 0
    host.run_expect([0], f'systemd-run --unit locker-long python3 -c "{lock.format(300)}"')
    outcome = converge({"dcgm_lock_timeout": 6})
    host.run_expect([0], "systemctl stop locker-long")
    assert "another program has kept apt's lock for 6 s" in outcome.message
    assert packages(host) == {PACKAGE: "1:3.3.8"}
    assert converge().code == 0


@pytest.mark.full
@pytest.mark.parametrize(
    ("full", "message"),
    [
        ("/var/cache/apt/archives", "apt-get failed: You don't have enough free space in /var/cache/apt/archives"),
        ("/usr/lib/systemd/system", f"apt-get failed: {PACKAGE}_1%3a3.3.8_amd64.deb: "),
    ],
    ids=["for-the-download", "for-the-files"],
)
def test_a_full_disk_is_named_and_what_ran_runs(host, converge, cramped, full, message):
    host.check_output("apt-get clean")
    cramped(full, 0)
    outcome = converge({"dcgm_version": "3.3.8"})
    assert outcome.code != 0 and message in outcome.message, outcome.message
    assert "space" in outcome.message
    assert packages(host) == {PACKAGE: "1:3.3.9"} and held(host) == [PACKAGE] and engine(host) == "3.3.9"
    assert converge().changed == []


@pytest.mark.full
def test_a_package_that_breaks_off_changes_nothing(host, converge, inventory):
    host.check_output("apt-get clean")
    mirror = inventory["lab_mirror"]
    lists = "/etc/apt/sources.list.d/cuda-*.list"
    host.check_output(f"sed -i 's#{mirror}/#{mirror}/faults/truncated,.deb/#' {lists}")
    try:
        outcome = converge({"dcgm_version": "3.3.8"})
    finally:
        host.check_output(f"sed -i 's#{mirror}/faults/truncated,.deb/#{mirror}/#' {lists}")
        host.check_output("apt-get --quiet update")
    assert outcome.code != 0 and f"{PACKAGE}_3.3.8_amd64.deb" in outcome.message, outcome.message
    assert packages(host) == {PACKAGE: "1:3.3.9"} and held(host) == [PACKAGE] and engine(host) == "3.3.9"
    assert converge().changed == []


@pytest.mark.full
def test_removal_leaves_the_host_as_it_was(host, converge):
    outcome = converge({"dcgm_state": "absent"})
    assert outcome.code == 0, outcome.message
    assert packages(host) == {} and held(host) == []
    assert not host.file("/var/lib/llm-server/packages/dcgm.json").exists
    assert not host.service("nvidia-dcgm").is_running
    assert converge({"dcgm_state": "absent"}).changed == []
    assert converge().code == 0
