"""Fixtures of all scenarios: run the scenario's playbook with other variables, and show the journal on failure."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

sys.path.insert(0, os.environ["MOLECULE_PROJECT_DIRECTORY"])

from lab import playbook as playbooks
from lab.playbook import Outcome

REBOOT_WITHIN = 600  # seconds
FULL = os.environ.get("FULL") == "1"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "stand_in: needs a stand-in of the laboratory; left out by make gpu-check")
    config.addinivalue_line("markers", "full: upgrades, downgrades, removals and long bad inputs; only with FULL=1")
    config.addinivalue_line("markers", "platform(name): what only machines of that platform have")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests marked `full` unless FULL=1, and tests for other platforms."""
    left_out = [item for item in items if (item.get_closest_marker("full") and not FULL) or elsewhere(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def elsewhere(item: pytest.Item) -> bool:
    """Return whether a test is marked for another platform."""
    return any(mark.args != (os.environ["PLATFORM"],) for mark in item.iter_markers("platform"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    report = (yield).get_result()
    if report.when == "call" and report.failed and "host" in getattr(item, "funcargs", {}):
        report.sections.append(("journal", journal(item.funcargs["host"])))


def journal(host) -> str:
    """Return the last lines of the machine's journal, without the logins of the tests."""
    try:
        lines = host.run("journalctl --no-pager --lines=400").stdout.splitlines()
    except RuntimeError as error:  # raised by testinfra if SSH does not answer
        return f"The machine does not answer: {error}"
    return "\n".join([line for line in lines if " sshd" not in line and " sudo[" not in line][-60:])


@pytest.fixture(scope="session")
def converge() -> Callable[..., Outcome]:
    """Run the scenario's converge.yml, with variables laid over its own, and return the outcome."""
    scenario = Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"])
    inventory = Path(os.environ["MOLECULE_INVENTORY_FILE"]).parent

    def run(
        variables: dict[str, Any] | None = None,
        *,
        check: bool = False,
        verbose: bool = False,
        playbook: str = "converge.yml",
    ) -> Outcome:
        words = ["--diff", *(["--check"] if check else []), *(["-vvv"] if verbose else [])]
        return playbooks.run(playbooks.command(inventory, playbook, variables or {}, *words), scenario)

    return run


@pytest.fixture(scope="session")
def inventory() -> dict[str, Any]:
    """Return the machine's inventory variables, such as lab_mirror."""
    file = Path(os.environ["MOLECULE_INVENTORY_FILE"]).with_name("machine.yml")
    return yaml.safe_load(file.read_text())["all"]["hosts"]["machine"]


@pytest.fixture(scope="session")
def restart(inventory: dict[str, Any]) -> Callable[[], None]:
    """Reboot the machine and return when it answers."""
    ssh = ["ssh", "-F", str(Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "ssh_config")]

    def run() -> None:
        if "lab_machine" in inventory:
            lab("restart", inventory["lab_machine"])
        else:
            reboot(ssh)
        # The reboot leaves dead SSH connections: Ansible's end by themselves, this shared one has to be closed.
        subprocess.run([*ssh, "-O", "exit", "machine"], check=False, capture_output=True)

    return run


def reboot(ssh: list[str]) -> None:
    """Reboot a machine that is not the laboratory's, and wait until its boot ID changes."""

    def boot() -> str:
        command = [
            *ssh,
            "-o",
            "ControlPath=none",
            "-o",
            "ConnectTimeout=5",
            "machine",
            "cat /proc/sys/kernel/random/boot_id",
        ]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout

    before, deadline = boot(), time.monotonic() + REBOOT_WITHIN
    subprocess.run([*ssh, "machine", "sudo systemctl reboot"], check=False, capture_output=True)
    while boot() in ("", before):
        assert time.monotonic() < deadline, f"the machine is not back after {REBOOT_WITHIN} s"
        time.sleep(5)


@pytest.fixture(scope="session")
def services() -> dict[str, Any]:
    """Return the addresses of the laboratory's mirror, hub and Loki; see `python -m lab services show`."""
    return json.loads(lab("services", "show"))


def lab(*words: str) -> str:
    """Run a command of the laboratory and return its output."""
    command = [sys.executable, "-m", "lab", *words]
    project = os.environ["MOLECULE_PROJECT_DIRECTORY"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="session")
def build() -> Callable[..., dict[str, Any]]:
    """Build an older release for the mirror; return its row of a checksum table."""

    def built(name: str, version: str) -> dict[str, Any]:
        (release,) = json.loads(lab("build", f"{name}@{version}"))
        return {version: {"amd64": release["checksum"]}}

    return built


@pytest.fixture
def mirror_requests(host, services) -> Callable[[], list[str]]:
    """Return the paths that this machine, not others, has requested from the mirror since the test began."""
    own = host.check_output("hostname -I").split()

    def so_far() -> list[str]:
        with urllib.request.urlopen(f"{services['mirror']}/requests", timeout=10) as answer:
            return [entry["path"] for entry in json.load(answer)["requests"] if entry["client"] in own]

    before = len(so_far())
    return lambda: so_far()[before:]


@pytest.fixture
def hide_files(host) -> Iterator[Callable[[str], None]]:
    """Move files of a shell pattern away for one test; dpkg still considers them installed."""
    taken: list[str] = []

    def take(pattern: str) -> None:
        path = host.check_output(f"readlink -f {pattern}")
        host.check_output("mv %s %s.away", path, path)
        taken.append(path)

    yield take
    for path in taken:
        host.check_output("mv %s.away %s", path, path)


@pytest.fixture
def cramped(host) -> Iterator[Callable[..., None]]:
    """Move a directory to its own disk with so many MiB of free space, for one test."""
    taken: list[str] = []

    def cramp(path: str, room_mib: int) -> None:
        kept = host.check_output("mktemp -d")
        host.run_test("mount -t tmpfs -o mode=755 tmpfs %s && cp -a %s/. %s", kept, path, kept)
        used = int(host.check_output("df --output=used -k %s | tail -n 1", kept))
        host.run_test("mount -o remount,size=%sk %s", str(used + room_mib * 1024), kept)
        host.run_test("mount --bind %s %s && umount %s && rmdir %s", kept, path, kept, kept)
        taken.append(path)

    yield cramp
    for path in taken:
        host.run_test("umount --lazy %s", path)


STRAY = """
import http.server, os, pathlib, sys
control_group, port = sys.argv[1], int(sys.argv[2])
if control_group:
    root = pathlib.Path("/sys/fs/cgroup")
    root = root / "unified" if (root / "unified").is_dir() else root
    (root / control_group.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
server = http.server.HTTPServer(("0.0.0.0", port), http.server.SimpleHTTPRequestHandler)
pathlib.Path(f"/run/stray-{port}").write_text(str(os.getpid()))
server.serve_forever()
"""


@pytest.fixture
def stray(host) -> Iterator[Callable[[str], int]]:
    """Make a process of a unit (or of none, if empty) listen on all addresses; return the port."""
    ports: list[str] = []

    def listen(unit: str) -> int:
        port = str(9770 + len(ports))
        group, score = "", "0"
        if unit:  # with the unit's OOM score, like its own children
            command = "systemctl show --property %s --value %s"
            group, score = (host.check_output(command, name, unit) for name in ("ControlGroup", "OOMScoreAdjust"))
        run = "systemd-run --unit stray-%s --property OOMScoreAdjust=%s python3 -c %s %s %s"
        host.check_output(run, port, score, STRAY, group, port)
        ports.append(port)
        host.run_test("for _ in 1 2 3 4 5 6 7 8 9; do test -s /run/stray-%s && exit; sleep 0.3; done; exit 1", port)
        return int(port)

    yield listen
    for port in ports:
        host.run("kill -KILL $(cat /run/stray-%s); rm /run/stray-%s; systemctl stop stray-%s", port, port, port)


@pytest.fixture(scope="session")
def reached(inventory: dict[str, Any]) -> Callable[[int], bool]:
    """Return whether another machine (the controller) can connect to a TCP port of this one."""

    def connects(port: int) -> bool:
        try:
            with socket.create_connection((inventory["ansible_host"], port), timeout=2):
                return True
        except OSError:
            return False

    return connects
