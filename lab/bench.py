"""How long the roles take, fresh and when nothing is to be done, beside the floor under any run over SSH.

Each round boots a machine and measures on it, one after the other: a bare SSH command and one module call (the floor),
then for each case a first run and a second one. Every command opens its own SSH connection. Module calls are counted in
the machine's journal, requests in the mirror's record.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lab import builds, host, machine, services
from lab.host import ROOT, Problem

NAME = "bench"
PAGE = ROOT / "docs" / "benchmarks.md"
BIN = Path(sys.executable).parent
CASES = {
    "node_exporter": ["node_exporter"],
    "promtail": ["promtail"],
    "node_exporter + promtail": ["node_exporter", "promtail"],
    "uv": ["uv"],
}
FLOOR = "one module call"
BARE = "one bare SSH command"
# What users would pick instead, as measured once on a machine like this one; see the page.
PEERS = """
What users would pick instead, measured once on a machine like this one with the same versions of both programs and
pipelining on, medians of 4 (collections prometheus.prometheus 0.30.2, grafana.grafana 6.0.6; one module call: 1.3 s):

| case | fresh | no-op | no-op / floor | requests of a no-op |
| --- | --- | --- | --- | --- |
| node_exporter + promtail | 21.5 s | 16.7 s | 13 | 5 |
"""


@dataclass
class Series:
    """Repeated measurements of one thing: seconds, and what each run did."""

    seconds: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)
    calls: list[int] = field(default_factory=list)
    requests: list[int] = field(default_factory=list)

    def cells(self) -> list[str]:
        """Return median, spread, ratio to the floor, module calls and requests, as cells of the table."""
        spread = f"{min(self.seconds):.1f} to {max(self.seconds):.1f} s"
        calls, requests = (
            "" if not counts else str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
            for counts in (self.calls, self.requests)
        )
        ratio = f"{statistics.median(self.ratios):.1f}" if self.ratios else ""
        return [f"{statistics.median(self.seconds):.1f} s", spread, ratio, calls, requests]


class Bench:
    """One machine after the other, and what was measured on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.services = services.up()
        self.series: dict[str, Series] = {}
        self.floor = 0.0
        self.there: dict[str, Any] = {}
        self.inventory = folder / "inventory.yml"

    def boot(self) -> None:
        """Have a machine that nothing was ever done to."""
        machine.down(NAME)
        self.there = machine.up(NAME)
        checksums: dict[str, dict[str, Any]] = {}
        for program in builds.listing():
            checksums.setdefault(program["name"], {})[program["version"]] = {"amd64": program["checksum"]}
        variables = {
            "ansible_host": self.there["address"],
            "ansible_port": self.there["port"],
            "ansible_user": self.there["user"],
            "ansible_ssh_private_key_file": self.there["key"],
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={self.there['known_hosts']} -o IdentitiesOnly=yes",
            "promtail_loki_url": self.services["loki"],
            "promtail_journal_jobs": [{"job": "ssh", "unit": "ssh.service"}],
        }
        for role in ("node_exporter", "promtail"):
            variables |= {f"{role}_mirror": self.services["mirror"], f"{role}_checksums": checksums[role]}
        self.inventory.write_text(yaml.safe_dump({"all": {"hosts": {"machine": variables}}}))

    def measure(self, name: str, command: list[str], counted: bool = True) -> None:
        """Time a command and count what it did; raises Problem with its last words where it fails."""
        since = self.ask("date", "+%s.%N").strip()
        self.record("DELETE")
        environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_HOME": str(self.folder)}
        with tempfile.TemporaryDirectory(prefix="cp-") as sockets:
            environment["ANSIBLE_SSH_CONTROL_PATH_DIR"] = sockets
            start = time.monotonic()
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            seconds = time.monotonic() - start
            for socket in Path(sockets).iterdir():
                subprocess.run(["ssh", "-o", f"ControlPath={socket}", "-O", "exit", "machine"], capture_output=True)
        if done.returncode:
            lines = (done.stdout + done.stderr).strip().splitlines()
            told = [line for line in lines if "[ERROR]" in line or "fatal" in line] or lines
            raise Problem(f"{name} failed: {told[0]}")
        series = self.series.setdefault(name, Series())
        series.seconds.append(seconds)
        # The floor of the same machine in the same minute: a busy host slows both.
        if name == FLOOR:
            self.floor = seconds
        elif counted:
            series.ratios.append(seconds / self.floor)
        if counted:
            series.calls.append(self.module_calls(since))
            series.requests.append(len(self.record("GET")["requests"]))
        host.say(f"  {name}: {seconds:.1f} s")

    def ask(self, *command: str) -> str:
        """Run a command on the machine, outside of what is timed."""
        return subprocess.run(
            machine.ssh_command(NAME, list(command)), capture_output=True, text=True, check=True
        ).stdout

    def module_calls(self, since: str) -> int:
        """Count the modules that ran on the machine as root: each is a command of sudo in the journal."""
        lines = self.ask("sudo", "journalctl", f"--since=@{since}", "--no-pager").splitlines()
        return sum("BECOME-SUCCESS" in line for line in lines)

    def record(self, method: str) -> dict[str, Any]:
        """Return or forget (DELETE) what the mirror was asked by this machine."""
        request = urllib.request.Request(f"{self.services['mirror']}/requests", method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            told = json.load(answer)
        return {"requests": [entry for entry in told["requests"] if entry["client"] == self.there["address"]]}

    def round(self) -> None:
        """Measure everything once."""
        for case, roles in CASES.items():
            self.boot()
            ansible = [str(BIN / "ansible"), "--inventory", str(self.inventory), "all", "--become"]
            self.measure(BARE, machine.ssh_command(NAME, ["true"]), counted=False)
            self.measure(FLOOR, [*ansible, "--module-name", "ansible.builtin.ping"])
            playbook = self.folder / "playbook.yml"
            playbook.write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "roles": roles}]))
            run = [str(BIN / "ansible-playbook"), "--inventory", str(self.inventory), str(playbook)]
            self.measure(f"{case}, fresh", run)
            self.measure(f"{case}, no-op", run)

    def table(self) -> list[str]:
        """Return the lines of the table of results."""
        head = ["what", "median", "spread", "/ floor", "module calls", "requests"]
        lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        for name, series in self.series.items():
            lines.append(f"| {' | '.join([name, *series.cells()])} |")
        return lines


def run(repeats: int, write: Callable[[str], Any] = PAGE.write_text) -> str:
    """Measure `repeats` rounds, write the page, and return the table."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        bench = Bench(Path(folder))
        try:
            for number in range(repeats):
                host.say(f"Round {number + 1} of {repeats} …")
                bench.round()
        finally:
            machine.down(NAME)
    table = "\n".join(bench.table())
    write(page(table, repeats))
    return table


def page(table: str, repeats: int) -> str:
    """Return the text of the page."""
    load = f"{os.cpu_count()} processors, load {os.getloadavg()[2]:.1f} at the end"
    return (
        "# How long the roles take\n\n"
        "Written by `make bench`. Each case runs on a new machine of the laboratory, fresh, then again with nothing\n"
        "to do. The floor is one module call (`ansible -m ping`): what any run costs before it does anything. Every\n"
        "command opens its own SSH connection. Module calls are counted on the machine, requests at the mirror from\n"
        "which released programs come; uv comes from a package index, so its requests are not seen here. A ratio is\n"
        "the median of those to the floor of the same machine in the same minute.\n\n"
        f"{repeats} rounds on {load}.\n\n{table}\n{PEERS}"
    )
