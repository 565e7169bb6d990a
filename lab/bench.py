"""Measure how long the roles take, on a fresh machine and without changes, against the floor of any run over SSH.

For each case, each round boots a machine and measures on it in turn: a bare SSH command and one module call (the
floor), then a first run and a second one. Every command opens its own SSH connection. Module calls are counted in the
machine's journal, requests in the mirror's record.
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

from lab import exporter_repository, host, machine, nvidia_repository, playbook, qemu, services
from lab.bed import Bed
from lab.host import ROOT, Problem

PAGE = ROOT / "docs" / "benchmarks.md"
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Case:
    """The roles that are timed, the roles that must run before them, and whether they need a virtual machine."""

    roles: tuple[str, ...]
    before: tuple[str, ...] = ()
    virtual: bool = False


CASES = {
    "node_exporter": Case(("node_exporter",)),
    "promtail": Case(("promtail",)),
    "node_exporter + promtail": Case(("node_exporter", "promtail")),
    "uv": Case(("uv",)),
    "ai_server": Case(("ai_server",), before=("uv",)),
    "vllm": Case(("vllm",), before=("uv",)),
    "cuda_keyring": Case(("cuda_keyring",)),
    "dcgm": Case(("dcgm",), before=("cuda_keyring",)),
    "dcgm_exporter": Case(("dcgm_exporter",), before=("cuda_keyring", "dcgm")),
    "swap": Case(("swap",), virtual=True),
}
VIRTUAL = " (virtual machine)"
FLOOR = "one module call"
BARE = "one bare SSH command"
# What users would otherwise choose, measured once on a machine like this one; see the page.
PEERS = """
What users would otherwise choose, measured once on a machine like this one with the same versions of both programs and
pipelining on, medians of 4 (collections prometheus.prometheus 0.30.2, grafana.grafana 6.0.6; one module call: 1.3 s):

| case | fresh | no-op | no-op / floor | requests of a no-op |
| --- | --- | --- | --- | --- |
| node_exporter + promtail | 21.5 s | 16.7 s | 13 | 5 |
"""


@dataclass
class Series:
    """Repeated measurements of one command: seconds, module calls and requests."""

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
    """Benchmark one machine after another and keep the measurements."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.services = services.up()
        self.series: dict[str, Series] = {}
        self.floor = 0.0
        self.bed: Bed

    def boot(self, case: Case) -> None:
        """Boot a fresh machine and run only the roles that the case needs before it."""
        nvidia = {**nvidia_repository.ensure(), "exporter": exporter_repository.ensure()}
        go = nvidia["exporter"]["go"]
        variables = {
            "swap_size_mib": 256,
            "cuda_keyring_mirror": self.services["mirror"],
            "cuda_keyring_checksums": nvidia["checksums"],
            "dcgm_exporter_mirror": self.services["mirror"],
            "dcgm_exporter_commits": nvidia["exporter"]["commits"],
            "dcgm_exporter_go_version": go["version"],
            "dcgm_exporter_go_checksums": {go["version"]: go["checksums"]},
        }
        name = "bench-virtual" if case.virtual else "bench"
        self.bed = Bed("bench", [name], [], variables, kind=qemu if case.virtual else machine)
        self.bed.boot(self.services)
        self.bed.one.put((ROOT / "lab/stand_ins/nvidia-smi").read_text(), "/usr/bin/nvidia-smi")
        self.bed.one.sh("chmod 755 /usr/bin/nvidia-smi")
        if case.before:
            outcome = playbook.run(self.run_of(case.before), ROOT, self.bed.environment())
            if outcome.code:
                raise Problem(f"{', '.join(case.before)} failed: {outcome.message}")

    def run_of(self, roles: tuple[str, ...]) -> list[str]:
        """Return the command that runs some roles on the machine."""
        play = {"hosts": "all", "gather_facts": False, "roles": [f"llm.server.{role}" for role in roles]}
        written = self.folder / f"{'-'.join(roles)}.yml"
        written.write_text(yaml.safe_dump([play]))
        return self.bed.command(run=str(written))

    def measure(self, name: str, command: list[str], counted: bool = True) -> None:
        """Time a command and count its module calls and requests; raise Problem with its error if it fails."""
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
            errors = [line for line in lines if "[ERROR]" in line or "fatal" in line] or lines
            raise Problem(f"{name} failed: {errors[0]}")
        series = self.series.setdefault(name, Series())
        series.seconds.append(seconds)
        # The floor comes from the same machine in the same minute, because a busy host slows both.
        if name.startswith(FLOOR):
            self.floor = seconds
        elif counted:
            series.ratios.append(seconds / self.floor)
        if counted:
            series.calls.append(self.module_calls(since))
            series.requests.append(len(self.record("GET")["requests"]))
        host.say(f"  {name}: {seconds:.1f} s")

    def ask(self, *command: str) -> str:
        """Run a command on the machine without timing it."""
        there = self.bed.one
        argv = there.kind.ssh_command(there.name, list(command))
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    def module_calls(self, since: str) -> int:
        """Count the modules that ran on the machine as root: each is a sudo command in the journal."""
        lines = self.ask("sudo", "journalctl", f"--since=@{since}", "--no-pager").splitlines()
        return sum("BECOME-SUCCESS" in line for line in lines)

    def record(self, method: str) -> dict[str, Any]:
        """Return the requests that this machine sent to the mirror; DELETE clears them."""
        request = urllib.request.Request(f"{self.services['mirror']}/requests", method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            record = json.load(answer)
        # A virtual machine's requests come from this host's address; the host itself sends none meanwhile.
        clients = {self.bed.one.reached["address"]}
        if clients != {"127.0.0.1"}:
            return {"requests": [entry for entry in record["requests"] if entry["client"] in clients]}
        return record

    def round(self) -> None:
        """Measure everything once."""
        for name, case in CASES.items():
            self.boot(case)
            there, kind = self.bed.one, VIRTUAL if case.virtual else ""
            try:
                self.measure(BARE + kind, there.kind.ssh_command(there.name, ["true"]), counted=False)
                ansible = [str(BIN / "ansible"), "--inventory", str(self.bed.folder / "hosts.yml"), "all", "--become"]
                self.measure(FLOOR + kind, [*ansible, "--module-name", "ansible.builtin.ping"])
                run = self.run_of(case.roles)
                self.measure(f"{name}, fresh", run)
                self.measure(f"{name}, no-op", run)
            finally:
                self.bed.down()

    def table(self) -> list[str]:
        """Return the lines of the result table."""
        head = ["what", "median", "spread", "/ floor", "module calls", "requests"]
        lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
        for name, series in self.series.items():
            lines.append(f"| {' | '.join([name, *series.cells()])} |")
        return lines


def run(repeats: int, write: Callable[[str], Any] = PAGE.write_text) -> str:
    """Measure `repeats` rounds, write the page, and return the table."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        bench = Bench(Path(folder))
        for number in range(repeats):
            host.say(f"Round {number + 1} of {repeats} …")
            bench.round()
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
        "which released programs, NVIDIA's packages (stand-ins) and the exporter's source come; Python packages come\n"
        "from an index, through a cache, so their requests are not seen here. vllm is the engine's CPU build, with\n"
        "its start; uv is there before it and before ai_server, as each role before those that need it. swap needs a\n"
        "virtual machine, without hardware's help, and has a floor of its own. A ratio is the median of those to the\n"
        "floor of the same machine in the same minute.\n\n"
        f"{repeats} rounds on {load}.\n\n{table}\n{PEERS}"
    )
