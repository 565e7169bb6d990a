"""The swap file on a real kernel; the tests run in the order of a machine's life."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

FOREIGN = b"# /swapfile none swap sw 0 0\n/foreign.swap   none  swap  sw,pri=1   0 0\n# caf\xe9\r\n"
LINE = b"/swapfile none swap sw 0 0\n"
SWAPPED_WITHIN = 600  # seconds; the machine is emulated


def swaps(host) -> dict[str, int]:
    """Return the active swap as {path: MiB}; the kernel's number lacks the file's first page."""
    rows = host.file("/proc/swaps").content_string.splitlines()[1:]
    return {row.split()[0]: round((int(row.split()[2]) + 4) / 1024) for row in rows}


def test_it_is_in_use_and_written_down_once(host):
    assert swaps(host) == {"/foreign.swap": 16, "/swapfile": 128}
    assert host.check_output("stat -c '%a %U %G %s' /swapfile") == f"600 root root {128 << 20}"
    assert host.file("/etc/fstab").content == FOREIGN + LINE
    assert host.check_output("sysctl -n vm.swappiness") == "10"


@pytest.fixture
def hold(host) -> Iterator[Callable[[int, int], None]]:
    """Run a program that holds so many MiB until the test ends, and wait until so many of them are in swap."""

    def start(held: int, swapped: int) -> None:
        program = f"import time; held = [bytearray(b'x') * (4 << 20) for _ in range({held // 4})]; time.sleep(3600)"
        # Its own limit pushes it into swap, so that enough memory remains for the machine.
        host.run_expect([0], "systemd-run --unit=holder --property=MemoryHigh=24M python3 -c %s", program)
        deadline = time.monotonic() + SWAPPED_WITHIN
        while int(host.check_output("awk 'NR > 1 {used += $4} END {print used}' /proc/swaps")) < swapped * 1024:
            assert time.monotonic() < deadline, "nothing was swapped out"
            time.sleep(1)

    yield start
    host.run("systemctl stop holder")


@pytest.fixture
def scarce(host) -> Iterator[Callable[[int], None]]:
    """Leave the machine so many MiB of available memory; huge pages use the rest without being written."""

    def leave(available: int) -> None:
        now = int(host.check_output("awk '/^MemAvailable/ {print $2}' /proc/meminfo")) >> 10
        host.check_output("sysctl -w vm.nr_hugepages=%s", str((now - available) // 2))

    yield leave
    host.check_output("sysctl -w vm.nr_hugepages=0")


def test_it_takes_pages_and_survives_growing_with_them(host, converge, hold):
    host.check_output("swapoff /foreign.swap")
    hold(64, 24)
    outcome = converge({"swap_size_mib": 256})
    assert outcome.code == 0 and outcome.changed, outcome.text
    assert swaps(host) == {"/swapfile": 256}
    assert host.check_output("systemctl is-active holder") == "active"
    assert host.check_output("ls / | grep swap").split() == ["foreign.swap", "swapfile"]
    assert host.file("/etc/fstab").content == FOREIGN + LINE


def test_it_does_not_shrink_below_what_is_in_use(host, converge, hold, scarce):
    hold(216, 176)
    scarce(160)
    outcome = converge({"swap_size_mib": 16})
    assert outcome.code == 2 and "swap_size_mib: switching /swapfile" in outcome.message, outcome.text
    assert swaps(host) == {"/swapfile": 256}
    assert host.check_output("systemctl is-active holder") == "active"


def test_it_shrinks_and_takes_another_swappiness(host, converge):
    outcome = converge({"swap_size_mib": 128, "swap_swappiness": 30})
    assert outcome.code == 0, outcome.text
    assert swaps(host) == {"/swapfile": 128}
    assert host.check_output("sysctl -n vm.swappiness") == "30"


def test_a_line_keeps_its_options_and_they_hold(host, converge):
    host.check_output("sed -i 's:^/swapfile.*:/swapfile\tnone swap sw,nofail,pri=100 0 0:' /etc/fstab")
    line = b"/swapfile\tnone swap sw,nofail,pri=100 0 0\n"
    before = {"swap_size_mib": 128, "swap_swappiness": 30}
    assert converge(before).changed == []
    assert converge({**before, "swap_size_mib": 96}).code == 0
    assert host.file("/etc/fstab").content == FOREIGN + line
    assert host.check_output("swapon --show=PRIO --noheadings /swapfile").strip() == "100"
    host.check_output("sed -i 's:^/swapfile.*:/swapfile none swap sw 0 0:' /etc/fstab")
    assert converge(before).code == 0


@pytest.mark.full
@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"swap_size_mib": "much"}, "swap_size_mib"),
        ({"swap_size_mib": 999999}, "swap_size_mib: / has"),
        ({"swap_path": "/dev/shm/swapfile"}, "lies on tmpfs, which cannot hold a swap file"),
        ({"swap_path": "/etc/hostname"}, "swap_path: /etc/hostname holds data that is not swap"),
    ],
)
def test_bad_input_is_one_sentence_and_the_swap_stays(host, converge, variables, sentence):
    outcome = converge(variables)
    assert outcome.code == 2 and sentence in outcome.message, outcome.text
    assert swaps(host) == {"/swapfile": 128}


@pytest.mark.full
def test_it_survives_a_reboot(host, converge, restart):
    converge()
    restart()
    assert swaps(host) == {"/foreign.swap": 16, "/swapfile": 128}
    assert host.check_output("sysctl -n vm.swappiness") == "10"
    assert converge().changed == []


@pytest.mark.full
def test_it_moves(host, converge):
    assert converge({"swap_path": "/var/swap"}).code == 0
    assert "/swapfile" not in swaps(host) and swaps(host)["/var/swap"] == 128
    assert not host.file("/swapfile").exists
    assert host.file("/etc/fstab").content == FOREIGN + b"/var/swap none swap sw 0 0\n"
    assert converge().code == 0
    assert host.file("/etc/fstab").content == FOREIGN + LINE


@pytest.mark.full
def test_removal_restores_the_host(host, converge):
    assert converge({"swap_state": "absent"}, check=True).changed
    assert host.file("/swapfile").exists
    assert converge({"swap_state": "absent"}).code == 0
    assert "/swapfile" not in swaps(host) and not host.file("/swapfile").exists
    assert host.file("/etc/fstab").content == FOREIGN
    assert not host.file("/etc/sysctl.d/99-zz-swap.conf").exists
    assert host.check_output("sysctl -n vm.swappiness") == "60"
    assert converge({"swap_state": "absent"}).changed == []
