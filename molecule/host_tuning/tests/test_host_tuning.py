"""Settings of the kernel and the GPU on a real kernel; the tests run in the order of a machine's life."""

from __future__ import annotations

import json

import pytest

SYSCTL = "/etc/sysctl.d/99-zz-host-tuning.conf"
TMPFILES = "/etc/tmpfiles.d/00-host-tuning.conf"
UNIT = "/etc/systemd/system/host-tuning-gpu.service"
LATER = "/etc/sysctl.d/zz-other.conf"
GPU = "/dev/shm/stand-in-gpu.json"
TUNED = {
    "net.core.rmem_max": 128 << 20,
    "net.core.wmem_max": 128 << 20,
    "net.ipv4.tcp_rmem": 128 << 20,
    "net.ipv4.tcp_wmem": 128 << 20,
}


def greatest(host) -> dict[str, int]:
    """Return the last number of each setting; for TCP it is the maximum."""
    return {name: int(host.check_output("sysctl -n %s", name).split()[-1]) for name in TUNED}


def pages(host) -> str:
    return host.check_output("cat /sys/kernel/mm/transparent_hugepage/enabled")


def gpu(host, path: str = GPU) -> dict:
    return json.loads(host.file(path).content_string)


def test_the_settings_are_in_force(host, converge):
    assert greatest(host) == TUNED
    assert int(host.check_output("sysctl -n fs.nr_open")) >= 1048576
    assert int(host.check_output("sysctl -n fs.file-max")) >= 1048576
    assert "[madvise]" in pages(host)
    assert gpu(host) == {"persistence": "Enabled", "power": 60, "clocks": "300,1500"}
    assert "vllm.service" in host.check_output("systemctl show host-tuning-gpu --property Before --value")
    outcome = converge(playbook="checklist.yml")
    assert outcome.code == 0, outcome.text


def test_manual_changes_are_corrected_and_a_later_file_is_named(host, converge):
    host.check_output("sysctl -w net.core.rmem_max=300000")
    host.check_output("echo always > /sys/kernel/mm/transparent_hugepage/enabled")
    host.check_output("nvidia-smi -pl 50")
    host.check_output("echo 'net.core.wmem_max = 300000' > %s", LATER)
    outcome = converge()
    assert outcome.code == 0 and outcome.changed, outcome.text
    # Ansible wraps warnings.
    assert f"Atthenextboot{LATER}setsnet.core.wmem_maxto300000" in "".join(outcome.text.split())
    assert greatest(host) == TUNED and "[madvise]" in pages(host) and gpu(host)["power"] == 60
    host.check_output("rm %s", LATER)


def test_a_value_that_the_card_does_not_accept_is_refused(host, converge):
    outcome = converge({"host_tuning_gpu_power_limit_watts": 300, "host_tuning_socket_buffer_mib": 64})
    assert outcome.code == 2 and outcome.changed == [], outcome.text
    assert "host_tuning_gpu_power_limit_watts is 300, and GPU 0 (NVIDIA L4) takes 40 to 72 W" in outcome.message
    assert greatest(host) == TUNED


@pytest.mark.full
@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"host_tuning_socket_buffer_mib": "much"}, "host_tuning_socket_buffer_mib"),
        ({"host_tuning_open_files": 1024}, "host_tuning_open_files is 1024; it must be 65536 to"),
        ({"host_tuning_gpu_clocks_mhz": [1500, 300]}, "such as [300, 1500]"),
        ({"host_tuning_gpu_persistence": False}, "without it the driver forgets power limit and clocks"),
        ({"host_tuning_engines": ["vllm"]}, "host_tuning_engines: vllm: a unit is named with its ending"),
    ],
)
def test_bad_input_is_one_sentence(host, converge, variables, sentence):
    outcome = converge(variables)
    assert outcome.code == 2 and sentence in outcome.message and not outcome.changed, outcome.text


@pytest.mark.full
def test_it_survives_a_reboot_and_the_engine_finds_the_gpu_set_up(host, converge, restart):
    restart()
    assert greatest(host) == TUNED and "[madvise]" in pages(host)
    expected = {"persistence": "Enabled", "power": 60, "clocks": "300,1500"}
    assert gpu(host) == gpu(host, "/run/as-the-engine-found-it") == expected
    assert converge().changed == []


@pytest.mark.full
def test_removal_restores_the_host(host, converge, restart):
    assert converge({"host_tuning_state": "absent"}, check=True).changed
    assert host.file(SYSCTL).exists
    assert converge({"host_tuning_state": "absent"}).code == 0
    after = (greatest(host), pages(host))
    assert "[always]" in after[1] and max(after[0].values()) < 128 << 20
    assert gpu(host) == {"persistence": "Disabled", "power": 72, "clocks": ""}
    for path in (SYSCTL, TMPFILES, UNIT, "/var/lib/llm-server/host_tuning.json"):
        assert not host.file(path).exists, path
    assert converge({"host_tuning_state": "absent"}).changed == []
    restart()
    assert (greatest(host), pages(host)) == after
