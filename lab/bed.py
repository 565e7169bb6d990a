"""Machines of one inventory, converged by site.yml and probed with completion requests: for drill and benchmark."""

from __future__ import annotations

import json
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lab import demo, host, machine, model, playbook
from lab.host import ROOT, STATE, Problem
from lab.playbook import Outcome

FOLDER = STATE / "beds"
WATCH = Path(__file__).parent / "drill" / "watch.py"
HOME = "/run/drill"
CALLER = "caller-of-the-drill-0123456789abcdef"
ENGINE_KEY = "engine-of-the-drill-0123456789abcdef"
# {connection variable: the laboratory's name for it}
REACHED = {
    "ansible_host": "address",
    "ansible_port": "port",
    "ansible_user": "user",
    "ansible_ssh_private_key_file": "key",
}
BACKUP_PASSWORD = "backups-of-the-drill-0123456789abcdef"  # shared by all machines: one restores another's backup

# Runs on a machine and prints each service's process and releases as JSON; one that a timer starts has no process.
SERVICES = r"""
import json, pathlib, subprocess
told = {}
for store in sorted(pathlib.Path("/var/lib/llm-server/services").glob("*")):
    if pathlib.Path(f"/etc/systemd/system/{store.name}.timer").exists():
        continue
    state = json.loads((store / "state.json").read_text())
    asked = ["systemctl", "show", store.name, "--property", "MainPID,InvocationID,ActiveState"]
    live = dict(line.split("=", 1) for line in subprocess.run(asked, capture_output=True, text=True).stdout.split())
    environ = pathlib.Path(f"/proc/{live['MainPID']}/environ")
    entries = environ.read_bytes().split(b"\0") if environ.exists() else []
    running = [entry.partition(b"=")[2].decode() for entry in entries if entry.startswith(b"SERVICE_RELEASE=")]
    journal = ["journalctl", "--quiet", "--output", "cat", "_PID=1", f"UNIT={store.name}.service"]
    lines = subprocess.run(journal, capture_output=True, text=True).stdout.splitlines()
    told[store.name] = {
        "pid": int(live["MainPID"]), "active": live["ActiveState"], "written": state["current"],
        "running": (running or [None])[0], "verified": (state["verified"] or [None])[-1], "failed": state["failed"],
        "starts": sum(line.startswith("Started ") for line in lines),
    }
print(json.dumps(told))
"""


@dataclass
class Host:
    """One machine. `kind` is the laboratory's module that manages it."""

    name: str
    kind: Any
    platform: str
    reached: dict[str, Any] = field(default_factory=dict)

    def boot(self) -> None:
        """Recreate the machine."""
        self.kind.down(self.name)
        self.reached = self.kind.up(self.name, self.platform)

    def sh(self, script: str, check: bool = True) -> str:
        """Run a shell script as root and return its output."""
        argv = self.kind.ssh_command(self.name, ["sudo", "sh", "-s"])
        done = subprocess.run(argv, input=script, capture_output=True, text=True, errors="replace", check=False)
        if check and done.returncode:
            raise Problem(f"{self.name}: {script.strip().splitlines()[-1]}: {done.stderr.strip() or done.returncode}")
        return done.stdout

    def put(self, text: str, place: str) -> None:
        """Write a file that only root can read."""
        self.sh(f"umask 077; mkdir -p {Path(place).parent}; cat > {place} <<'END-OF-FILE'\n{text}\nEND-OF-FILE\n")

    def services(self) -> dict[str, dict[str, Any]]:
        """Return each service's pid, its start count, and its written, running and verified releases."""
        return json.loads(self.sh(f"python3 - <<'END-OF-FILE'\n{SERVICES}\nEND-OF-FILE\n"))

    def astray(self) -> list[str]:
        """Return the services that are inactive or whose written, running and verified releases differ."""
        return [
            name
            for name, seen in self.services().items()
            if seen["active"] != "active" or not seen["written"] == seen["running"] == seen["verified"]
        ]

    def watch(self, url: str, key: str, model: str) -> None:
        """Start sending completion requests to the server; `watched` returns the result."""
        self.sh("systemctl stop drill-watch 2>/dev/null; true")
        self.put(WATCH.read_text(), f"{HOME}/watch.py")
        self.put(json.dumps({"url": url, "key": key, "model": model}), f"{HOME}/question.json")
        self.sh(
            f"systemd-run --quiet --unit drill-watch python3 {HOME}/watch.py {HOME}/question.json {HOME}/state.json"
        )
        self.until(lambda: self.watched()["asked"] > 0, 30, "the watch sends no request")

    def watched(self) -> dict[str, Any]:
        """Return the number of requests, the number that failed, and the total seconds without an answer."""
        state = self.sh(f"cat {HOME}/state.json 2>/dev/null || true")
        return json.loads(state) if state else {"asked": 0, "refused": 0, "silent": 0.0, "now": False}

    def until(self, holds, seconds: float, otherwise: str) -> float:
        """Wait until a condition holds and return how long it took; raises Problem after ``seconds``."""
        begin = time.monotonic()
        while not holds():
            if time.monotonic() - begin > seconds:
                raise Problem(f"{self.name}: {otherwise} after {seconds:.0f} s")
            time.sleep(0.3)
        return time.monotonic() - begin


def logs(offered: dict[str, Any]) -> dict[str, Any]:
    """Return the variables that make a bed ship its logs by promtail to the stand-in of Loki and push no metrics."""
    sums = {each["version"]: {"amd64": each["checksum"]} for each in offered["programs"] if each["name"] == "promtail"}
    return {
        "vmagent_url": "",
        "log_shipper": "promtail",
        "promtail_mirror": offered["mirror"],
        "promtail_checksums": sums,
        "promtail_loki_url": offered["loki"],
        "promtail_journal_jobs": "{{ otel_collector_journal_jobs }}",
        "promtail_file_jobs": "{{ otel_collector_file_jobs }}",
    }


class Bed:
    """Machines of one inventory, with the variables that they share."""

    def __init__(self, name: str, hosts: list[str], groups: list[str], variables: dict[str, Any], **about: Any) -> None:
        kind, platform = about.get("kind", machine), about.get("platform", "debian12")
        self.hosts = [Host(each, kind, platform) for each in hosts]
        self.name, self.groups, self.variables = name, groups, variables
        self.members: dict[str, list[str]] = about.get("members", {})  # of groups that only some machines are in
        self.folder = FOLDER / name
        self.own: dict[str, dict[str, Any]] = {}  # per machine

    @property
    def one(self) -> Host:
        """Return the machine of a bed that has only one."""
        return self.hosts[0]

    def boot(self, offered: dict[str, Any]) -> None:
        """Recreate all machines and write the inventory: the demo's, with each machine's own facts."""
        for each in self.hosts:
            each.boot()
        self.folder.mkdir(parents=True, exist_ok=True)
        link = self.folder / "group_vars"
        link.unlink(missing_ok=True)
        link.symlink_to(ROOT / "inventories/local/group_vars")
        self.describe(offered)

    def prepare(self) -> None:
        """Copy the tiny model to machines that do not share this host's folders."""
        for each in self.hosts:
            if each.kind is not machine:
                packed = subprocess.run(["tar", "-c", "-C", str(model.ensure()), "."], capture_output=True, check=True)
                unpack = each.kind.ssh_command(
                    each.name, ["sudo", "sh", "-c", "'mkdir -p /srv/models && tar -x -C /srv/models'"]
                )
                subprocess.run(unpack, input=packed.stdout, capture_output=True, check=True)

    def describe(self, offered: dict[str, Any]) -> None:
        """Write the inventory's hosts; call it again when a machine's address or port has changed."""
        variables = {}
        for each in self.hosts:
            facts = demo.facts(each.reached, offered)
            facts["secrets"] |= {
                "vllm_api_key": ENGINE_KEY,
                "ai_server_api_key": CALLER,
                "backup_password": BACKUP_PASSWORD,
            }
            # Literal, as in a real inventory; the demo's are templates, which Ansible evaluates for every task.
            connection = {variable: each.reached[name] for variable, name in REACHED.items()}
            always = {"demo": facts, "lab_directory": str(ROOT / "lab"), "promtail_host_label": each.name, **connection}
            variables[each.name] = {**always, **logs(offered), **self.variables, **self.own.get(each.name, {})}
        names = {name: {} for name in variables}
        groups = {group: {"hosts": names} for group in self.groups}
        groups |= {group: {"hosts": {name: {} for name in some}} for group, some in self.members.items()}
        inventory = {"all": {"hosts": variables, "children": groups}}
        (self.folder / "hosts.yml").write_text(yaml.safe_dump(inventory))
        (self.folder / "hosts.yml").chmod(0o600)

    def command(self, change: dict[str, Any] | None = None, *words: str, run: str = "site.yml") -> list[str]:
        """Return the command that runs a playbook, site.yml by default, on this bed with some variables changed."""
        return playbook.command(self.folder / "hosts.yml", run, change or {}, *words)

    def converge(self, change: dict[str, Any] | None = None, *words: str, run: str = "site.yml") -> Outcome:
        """Run a playbook, site.yml by default, on this bed with some variables changed."""
        return playbook.run(self.command(change, *words, run=run), ROOT, self.environment())

    def environment(self) -> dict[str, str]:
        """Return the environment of each run: its own SSH sockets, so that a killed run leaves none to the next."""
        return {"ANSIBLE_SSH_CONTROL_PATH_DIR": str(host.STATE / "cp"), "ANSIBLE_HOME": str(STATE / "ansible")}

    def down(self) -> None:
        """Remove the machines."""
        for each in self.hosts:
            each.kind.down(each.name)
