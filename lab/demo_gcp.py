"""`make demo-gcp`: a machine's complete life on Google Cloud, from creation to deletion, without Google or a GPU.

The playbooks, the inventory and site.yml are production's. Three things are replaced: the Compute API by one on
loopback (lab/compute_api.py), the VM by a machine of the laboratory, and the settings by those of `make demo` (a tiny
model on the CPU) in inventories/local. Ansible gets the API's address only from environment variables.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from lab import demo, host, machine, model, services
from lab.compute_api import Cloud, Server

NAME = "llm-server"
MACHINE = "gcp"
PROJECT = "lab-project"
BESIDE = host.STATE / "gcp"


def run(arguments: list[str]) -> int:
    """Run the complete life; return 0 if every step succeeds."""
    begin = time.monotonic()
    offered = services.up()
    model.ensure()
    write_inventory(offered)
    # A temporary folder for the authority's key, which is only valid for this run.
    with tempfile.TemporaryDirectory() as folder, Server(folder, Cloud(on_power=power)) as server:
        try:
            done = all(step(server, arguments) for step in (look, make, repeat, stop, start, leave))
        finally:
            machine.down(MACHINE)
            shutil.rmtree(BESIDE, ignore_errors=True)
    if done:
        print(f"\nComplete life cycle in {time.monotonic() - begin:.0f} s.")
    return 0 if done else 1


def write_inventory(offered: dict) -> None:
    """Write the overlay of inventories/gcp: the values of `make demo`, and variables that are only known now."""
    shutil.rmtree(BESIDE, ignore_errors=True)
    over = BESIDE / "inventory"
    over.mkdir(parents=True)
    (over / "hosts.yml").write_text("all: {}\n")
    link = over / "group_vars"
    link.symlink_to(host.ROOT / "inventories/local/group_vars")
    reached = {
        "address": "",  # set by the inventory
        "port": 22,
        "user": machine.USER,
        "key": str(host.STATE / "ssh" / "id_ed25519"),
        "known_hosts": str(BESIDE / "known_hosts"),
    }
    extra = {
        "demo": demo.facts(reached, offered),
        "gcp_project": PROJECT,
        "gcp_source_ranges": ["10.0.0.0/8"],
        # Without GPU and swap, so not in those groups; everything else as declared.
        "gcp_machines": [
            {
                "name": NAME,
                "zones": ["asia-northeast3-a", "asia-northeast3-b"],
                "labels": {"vllm": "true", "gpu": "false", "swap": "false"},
            }
        ],
    }
    secret = BESIDE / "extra.json"
    secret.touch(mode=0o600)
    secret.write_text(json.dumps(extra))


def power(name: str, state: str) -> str | None:
    """Act as the hypervisor: boot, halt or remove the machine; return its address when it is on."""
    if state == "on":
        return machine.up(MACHINE)["address"]
    if state == "off":
        host.run(["podman", "stop", "--time", "30", machine.container(MACHINE)])
    else:
        machine.down(MACHINE)
    return None


def ansible(server: Server, *words: str) -> tuple[int, str]:
    """Run ansible-playbook and show its output; return the exit code and the output."""
    program = str(Path(sys.executable).with_name("ansible-playbook"))
    inventories = ["-i", "inventories/gcp", "-i", str(BESIDE / "inventory")]
    argv = [program, *inventories, "-e", f"@{BESIDE / 'extra.json'}", *words]
    known = f"-o UserKnownHostsFile={BESIDE / 'known_hosts'}"
    environment = {**os.environ, **server.environment, "ANSIBLE_SSH_EXTRA_ARGS": known, "PYTHONUNBUFFERED": "1"}
    for name in ("https_proxy", "no_proxy", "NO_PROXY"):
        environment.pop(name, None)
    output = []
    with subprocess.Popen(argv, cwd=host.ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            output.append(line)
            print(line, end="", flush=True)
    return process.returncode, "".join(output)


def say(title: str) -> None:
    print(f"\n=== {title} ===\n", flush=True)


def look(server: Server, arguments: list[str]) -> bool:
    say("What would be made (--check --diff)")
    code, _ = ansible(server, "--check", "--diff", "playbooks/gcp_provision.yml")
    return code == 0 and not server.cloud.writes()


def make(server: Server, arguments: list[str]) -> bool:
    say("Rules, VM, and everything on it, in one run; the first zone has no capacity")
    server.cloud.stockout("asia-northeast3-a")
    code, _ = ansible(server, "playbooks/gcp_provision.yml", "site.yml", *arguments)
    return code == 0 and serves(server)


def repeat(server: Server, arguments: list[str]) -> bool:
    say("Again: nothing changes")
    code, text = ansible(server, "playbooks/gcp_provision.yml")
    return code == 0 and "changed=0 " in text


def stop(server: Server, arguments: list[str]) -> bool:
    say("Stop: only the disk still costs money")
    code, _ = ansible(server, "playbooks/gcp_stop.yml")
    return code == 0 and server.cloud.instance(NAME)["status"] == "TERMINATED"


def start(server: Server, arguments: list[str]) -> bool:
    say("Start: the address is printed, and the machine serves again by itself")
    code, _ = ansible(server, "playbooks/gcp_start.yml")
    return code == 0 and serves(server)


def leave(server: Server, arguments: list[str]) -> bool:
    say("Decommission: exactly what was made")
    code, _ = ansible(server, "playbooks/gcp_decommission.yml", "-e", f"gcp_decommission={NAME}")
    return code == 0 and not (server.cloud.instances or server.cloud.firewalls or server.cloud.disks)


def serves(server: Server, limit: float = 240) -> bool:
    """Wait until the application on the VM reports that it and the engine are healthy."""
    address = server.cloud.instance(NAME)["networkInterfaces"][0]["accessConfigs"][0]["natIP"]
    url = f"http://{address}:8000/health"
    begin = time.monotonic()
    while time.monotonic() - begin < limit:
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as answer:
            print(f"{url} answers {answer.status} {answer.read().decode()}", flush=True)
            return True
        time.sleep(2)
    print(f"{url} did not answer within {limit:.0f} s", flush=True)
    return False
