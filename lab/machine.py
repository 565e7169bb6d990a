"""Machines: containers that boot systemd, answer SSH, and are accessed like any other host."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import os
import resource
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lab import host, image, model
from lab.host import CACHE, STATE, Problem

PREFIX = os.environ.get("LAB_PREFIX") or f"lab-{hashlib.sha256(str(host.ROOT).encode()).hexdigest()[:6]}"
NETWORK = "llm-lab"
LABEL = "llm-server-lab"
USER = "operator"
BOOT_TIMEOUT = 180
SHARED_UV_CACHE = "/var/cache/llm-server-lab/uv"
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
HOST_BEFORE = Path("/run/llm-server-lab/host.json")
CHAIN = "CNI-"  # prefix of the packet filter chains that podman's network programs create

PROGRAMS = {
    "podman": "podman",
    "runc": "runc",
    "/usr/lib/cni/bridge": "containernetworking-plugins",
    "iptables": "iptables",
    "mmdebstrap": "mmdebstrap",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}

# systemd mounts credentials in its own namespace and expects them to appear outside: the root must be a shared mount,
# which nothing else sets up in a container. The last word lets systemd 256 and later run on hosts with cgroup version
# 1; on other hosts it has no effect.
INIT = "mount --make-rshared / && exec /sbin/init SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1"

# On a host with cgroup version 1, a second hierarchy of version 2 exists, without controllers. systemd from 258 on runs
# on that alone; it accepts limits of memory and CPU but does not enforce them.
UNIFIED_INIT = f"umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup && {INIT}"

# SYS_ADMIN: mount namespaces of hardened units. SYS_PTRACE: root reads the environment of other users' processes.
# AUDIT_WRITE: sudo. The container is not privileged: no devices, no loading of modules, /proc/sys read-only.
CAPABILITIES = ("SYS_ADMIN", "SYS_PTRACE", "AUDIT_WRITE")


def container(name: str) -> str:
    """Return the container name of one of this clone's machines."""
    return f"{PREFIX}-{name}"


def ready_host() -> None:
    """Make sure that machines can be started here: programs and rights."""
    host.ensure_packages(PROGRAMS)
    host.run(["podman", "info"], cure="podman needs root's rights and its storage; run `podman info` to see more")


def ensure_network() -> None:
    """Create the network between machines, and first record what it will change on this host (see leave_host)."""
    if not HOST_BEFORE.exists():
        HOST_BEFORE.parent.mkdir(parents=True, exist_ok=True)
        chains = CHAIN in host.run(["iptables-save"])
        HOST_BEFORE.write_text(json.dumps({"ip_forward": FORWARDING.read_text().strip(), "chains": chains}))
    if subprocess.run(["podman", "network", "exists", NETWORK], check=False).returncode != 0:
        host.run(["podman", "network", "create", "--opt", f"mtu={uplink_mtu()}", NETWORK])


def uplink_mtu() -> int:
    """Return the MTU of this host's uplink in bytes, so that machines send no larger packets."""
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        interface, destination = line.split()[:2]
        if destination == "00000000":
            return int(Path(f"/sys/class/net/{interface}/mtu").read_text())
    return 1500


def inspect(name: str) -> dict[str, Any] | None:
    """Return podman's record of a machine, None if there is no such machine."""
    seen = subprocess.run(["podman", "container", "inspect", container(name)], capture_output=True, check=False)
    return json.loads(seen.stdout)[0] if seen.returncode == 0 else None


def free_address(subnet: str, used: set[str]) -> str:
    """Return the first free address of the subnet; its first address is the bridge's own."""
    for address in list(ipaddress.ip_network(subnet).hosts())[1:]:
        if str(address) not in used:
            return str(address)
    raise Problem(f"The laboratory's network {subnet} is full: stop a machine with `python -m lab down NAME`.")


def hardware_address(address: str) -> str:
    """Return the MAC address of an IP address, so that a restarted machine is found before its ARP entry expires."""
    return "02:4c" + "".join(f":{part:02x}" for part in ipaddress.ip_address(address).packed)


def network_use() -> tuple[str, set[str]]:
    """Return the network's subnet and the addresses that machines of all clones use."""
    network = json.loads(host.run(["podman", "network", "inspect", NETWORK]))[0]
    subnet = network["subnets"][0]["subnet"]
    every = json.loads(host.run(["podman", "ps", "--all", "--filter", f"network={NETWORK}", "--format", "json"]))
    return subnet, {item["Labels"].get(f"{LABEL}.address", "") for item in every}


def create_command(
    name: str,
    platform: str,
    tag: str,
    address: str,
    shm: str,
    publish: Sequence[str],
    mounts: Sequence[str],
    models: Path,
) -> list[str]:
    """Return the podman command that creates a machine."""
    open_files = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], 1048576)
    kind = image.PLATFORMS[platform]
    return [
        *("podman", "create", "--name", container(name), "--hostname", name),
        *("--label", f"{LABEL}={PREFIX}", "--label", f"{LABEL}.address={address}"),
        *("--label", f"{LABEL}.python={kind.python}"),
        *("--network", NETWORK, "--ip", address, "--mac-address", hardware_address(address)),
        # Set explicitly: the other common runtime fails on hosts with both cgroup versions.
        *("--runtime", "runc", "--systemd", "always", "--stop-signal", "SIGRTMIN+3"),
        *(("--cgroupns", "private") if kind.unified_control_groups else ()),
        *("--cap-add", ",".join((*CAPABILITIES, *kind.capabilities))),
        *("--security-opt", "apparmor=unconfined", "--security-opt", "label=disable"),
        # Podman's defaults are higher than a host without CAP_SYS_RESOURCE may pass on.
        *("--ulimit", f"nofile={open_files}:{open_files}", "--ulimit", "nproc=32768:32768"),
        *("--shm-size", shm),
        # On disk as on a real machine: podman would put both into memory, and a restart would empty them.
        *("--volume", "/tmp", "--volume", "/var/log/journal"),
        # Virtual environments are linked from this cache, so the path must be the same on every machine.
        *("--volume", f"{CACHE / 'uv'}:{SHARED_UV_CACHE}"),
        *("--volume", f"{models}:/srv/models:ro"),
        *(word for mount in mounts for word in ("--volume", mount)),
        *(word for port in publish for word in ("--publish", port)),
        tag,
        *("/bin/sh", "-c", UNIFIED_INIT if kind.unified_control_groups else INIT),
    ]


def published_ports(publish: Sequence[str]) -> list[tuple[str, int]]:
    """Parse `ADDRESS:HOST_PORT:PORT` or `HOST_PORT:PORT` into (address, host port)."""
    ports = []
    for text in publish:
        parts = text.split(":")
        if len(parts) not in (2, 3) or not all(part.isdigit() for part in parts[-2:]):
            raise Problem(f"--publish {text} is not of the form 127.0.0.1:8000:8000; write ADDRESS:HOST_PORT:PORT.")
        ports.append((parts[0] if len(parts) == 3 else "0.0.0.0", int(parts[-2])))
    return ports


def up(
    name: str,
    platform: str = "debian12",
    shm: str = "1g",
    publish: Sequence[str] = (),
    mounts: Sequence[str] = (),
) -> dict[str, Any]:
    """Boot a machine unless it is running, and return how to access it.

    `publish` and `mounts` are podman's options for a port and for a host folder on the machine.
    Returns name, address, port, user, key (path of the private key), known_hosts (path), and python (the interpreter
    for roles).
    """
    ready_host()
    seen = inspect(name)
    if seen is None:
        for address, port in published_ports(publish):
            host.ensure_port_free(address, port)
        tag = image.ensure(platform)
        models = model.ensure()
        host.ensure_room(CACHE, 1, "a machine")
        (CACHE / "uv").mkdir(parents=True, exist_ok=True)
        # Under one lock: another clone that removes its last machine also removes a network without machines.
        with host.lock("network"):
            ensure_network()
            subnet, used = network_use()
            address = free_address(subnet, used)
            host.run(create_command(name, platform, tag, address, shm, publish, mounts, models))
    if seen is None or not seen["State"]["Running"]:
        # Owned by root and readable by everyone: the SSH server accepts it, and the user cannot delete it.
        public = host.ssh_key().with_suffix(".pub")
        host.run(["podman", "cp", str(public), f"{container(name)}:/home/{USER}/.ssh/authorized_keys"])
        with host.step(f"Booting the machine {name}", "3 s"):
            start(name)
    return describe(name)


def start(name: str) -> None:
    """Start a machine's container and wait until systemd has booted and SSH answers."""
    host.run(
        ["podman", "start", container(name)],
        cure="podman may not start system containers here: run as root on a machine of your own",
    )
    deadline = time.monotonic() + BOOT_TIMEOUT
    while (state := system_state(name)) not in ("running", "degraded"):
        if time.monotonic() > deadline or not (inspect(name) or {"State": {"Running": False}})["State"]["Running"]:
            logs = subprocess.run(["podman", "logs", "--tail", "5", container(name)], capture_output=True, text=True)
            log = " ".join((logs.stdout + logs.stderr).split())
            raise Problem(
                f"The machine {name} did not boot within {BOOT_TIMEOUT} s (systemd says {state or 'nothing'}; {log}); "
                f"see `podman exec {container(name)} journalctl -b`."
            )
        time.sleep(0.2)
    remember_host_key(name)
    while subprocess.run(ssh_command(name, ["true"]), capture_output=True, check=False).returncode != 0:
        if time.monotonic() > deadline:
            raise Problem(
                f"The machine {name} booted but SSH does not answer; "
                f"see `podman exec {container(name)} journalctl -u ssh` and this host's firewall."
            )
        time.sleep(0.2)


def system_state(name: str) -> str:
    """Return the state that the machine's systemd reports, e.g. starting, running, degraded."""
    command = ["podman", "exec", container(name), "systemctl", "is-system-running"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def remember_host_key(name: str) -> None:
    """Write the machine's host key, read inside the container, to its known_hosts file."""
    key = host.run(["podman", "exec", container(name), "cat", "/etc/ssh/ssh_host_ed25519_key.pub"])
    known = known_hosts(name)
    known.parent.mkdir(parents=True, exist_ok=True)
    known.write_text(f"{describe(name)['address']} {' '.join(key.split()[:2])}\n")
    for path in (known.parent, known):
        host.give_to_caller(path)


def known_hosts(name: str) -> Path:
    """Return the path of a machine's own known_hosts file, which is removed with the machine."""
    return STATE / "known_hosts" / name


def describe(name: str) -> dict[str, Any]:
    """Return how to access a machine; raise Problem if there is none of that name."""
    seen = inspect(name)
    if seen is None:
        raise Problem(f"There is no machine {name}: start it with `python -m lab up {name}`.")
    return {
        "name": name,
        "address": seen["Config"]["Labels"][f"{LABEL}.address"],
        "port": 22,
        "user": USER,
        "key": str(host.ssh_key()),
        "known_hosts": str(known_hosts(name)),
        "python": seen["Config"]["Labels"][f"{LABEL}.python"],
    }


def ssh_command(name: str, command: list[str]) -> list[str]:
    """Return the ssh command that runs `command` (a shell if empty) on a machine."""
    there = describe(name)
    return [
        *("ssh", "-q", "-i", there["key"], "-p", str(there["port"])),
        *("-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5"),
        *("-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={there['known_hosts']}"),
        f"{there['user']}@{there['address']}",
        *command,
    ]


def restart(name: str) -> dict[str, Any]:
    """Reboot a machine: its disk stays, its processes end."""
    describe(name)
    with host.step(f"Restarting the machine {name}", "5 s"):
        host.run(["podman", "stop", "--time", "30", container(name)])
        start(name)
    return describe(name)


def names() -> list[str]:
    """Return the names of this clone's machines, including stopped ones."""
    listed = host.run(
        ["podman", "ps", "--all", "--filter", f"label={LABEL}={PREFIX}", "--format", "{{.Names}}"]
    ).split()
    return sorted(item.removeprefix(f"{PREFIX}-") for item in listed)


def down(name: str) -> None:
    """Remove a machine with its disk; after the last one of all clones, also undo the changes of this host."""
    subprocess.run(
        ["podman", "rm", "--force", "--time", "5", "--volumes", "--ignore", container(name)],
        capture_output=True,
        check=False,
    )
    known_hosts(name).unlink(missing_ok=True)
    leave_host()


def leave_host() -> None:
    """Remove the network, and restore packet forwarding and filter, if no container uses them any more."""
    with host.lock("network"):
        if host.run(["podman", "ps", "--all", "--quiet", "--filter", f"network={NETWORK}"]).strip():
            return
        subprocess.run(["podman", "network", "rm", NETWORK], capture_output=True, check=False)
        if not HOST_BEFORE.exists() or host.run(["podman", "ps", "--quiet"]).strip():
            return
        before = json.loads(HOST_BEFORE.read_text())
        FORWARDING.write_text(before["ip_forward"])
        if not before["chains"]:
            kept = [line for line in host.run(["iptables-save"]).splitlines(keepends=True) if CHAIN not in line]
            subprocess.run(["iptables-restore"], input="".join(kept), text=True, check=True)
        HOST_BEFORE.unlink()
