"""Virtual machines, for what a container does not have: its own swap, kernel settings, a real reboot.

Everything is emulated (`-accel tcg`), which is slow but works anywhere: hosts of the laboratory are often virtual
machines whose /dev/kvm exists but does not work.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from lab import host, image, machine
from lab.host import CACHE, STATE, Problem

USER = "operator"
MEMORY_MIB = 1024
DISK = "3G"
BOOT_TIMEOUT = 480  # 20 s on an idle host, minutes on a busy one
MACHINES = STATE / "virtual" / machine.PREFIX

PROGRAMS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "mmdebstrap": "mmdebstrap",
    "mkfs.ext4": "e2fsprogs",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
}

# Not in the container image: a container gets kernel, devices and network from its host.
PACKAGES = ("e2fsprogs", "linux-image-cloud-amd64", "udev")

# Debian's mirrors list this suite's security update of the kernel but do not have it, so its first kernel is used.
WITHOUT_SECURITY = {"debian11"}

# QEMU's user network always has these addresses. QEMU's resolver forwards to the host's.
NETWORK = r"""
cat > "$root/etc/systemd/network/lab.network" <<'FILE'
[Match]
Name=eth0
[Network]
Address=10.0.2.15/24
Gateway=10.0.2.2
FILE
echo 'nameserver 10.0.2.3' > "$root/etc/resolv.conf"
chroot "$root" systemctl -q enable systemd-networkd.service
chroot "$root" systemctl -q mask systemd-networkd-wait-online.service
"""


def folder(name: str) -> Path:
    """Return the folder with all files of a machine: its disk, process ID, host key, console."""
    return MACHINES / name


def names() -> list[str]:
    """Return the names of this clone's virtual machines, or of those with the prefix LAB_PREFIX."""
    return sorted(path.parent.name for path in MACHINES.glob("*/machine.json"))


def base(platform: str) -> Path:
    """Make sure the platform's disk is in the cache, and return its path; kernel and initrd are in the same folder."""
    recipe = image.recipe(platform)
    sources = recipe.sources
    if platform in WITHOUT_SECURITY:
        sources = tuple(line for line in sources if "-security " not in line)
    recipe = dataclasses.replace(
        recipe, sources=sources, packages=(*recipe.packages, *PACKAGES), script=recipe.script + NETWORK
    )
    disk = CACHE / "virtual" / f"{platform}-{host.digest([dataclasses.asdict(recipe), DISK])}.img"
    with host.lock(f"virtual-{platform}"):
        if not disk.exists():
            build(recipe, disk)
            for old in disk.parent.glob(f"{platform}-*"):
                if old.stem != disk.stem:
                    old.unlink()
    return disk


def build(recipe: image.Recipe, disk: Path) -> None:
    """Create the disk of a platform with its kernel and initrd."""
    disk.parent.mkdir(parents=True, exist_ok=True)
    host.ensure_room(disk.parent, 4, "the disk of virtual machines")
    with (
        host.step(f"Building the virtual machine's disk {recipe.platform} from the distribution's packages", "60 s"),
        tempfile.TemporaryDirectory(dir=disk.parent) as work,
    ):
        tree = Path(work) / "tree"
        image.bootstrap(recipe, tree)
        for kind, suffix in (("vmlinuz", ".vmlinuz"), ("initrd.img", ".initrd")):
            (found,) = (tree / "boot").glob(f"{kind}-*")
            shutil.copy(found, disk.with_suffix(suffix))
        unfinished = disk.with_suffix(".part")
        unfinished.unlink(missing_ok=True)
        host.run(["mkfs.ext4", "-q", "-d", str(tree), str(unfinished), DISK])
        unfinished.rename(disk)


def up(name: str, platform: str = "debian12") -> dict[str, Any]:
    """Boot a virtual machine unless it is running, and return how to access it: see `machine.up`."""
    host.ensure_packages(PROGRAMS)
    key = host.ssh_key()
    if running(name):
        return describe(name)
    origin = base(platform)
    home = folder(name)
    if not (home / "machine.json").exists():
        home.mkdir(parents=True, exist_ok=True)
        host.ensure_room(home, 3, "a virtual machine")
        personal_disk(origin, home, key.with_suffix(".pub"))
        reached = {
            "name": name,
            "address": "127.0.0.1",
            "port": free_port(),
            "user": USER,
            "key": str(key),
            "known_hosts": str(home / "known_hosts"),
            "python": image.PLATFORMS[platform].python,
        }
        public = (home / "ssh_host_ed25519_key.pub").read_text().split()
        (home / "known_hosts").write_text(f"[127.0.0.1]:{reached['port']} {' '.join(public[:2])}\n")
        (home / "machine.json").write_text(json.dumps(reached))
        for path in (MACHINES.parent, MACHINES, home, home / "known_hosts"):
            host.give_to_caller(path)
    with host.step(f"Booting the virtual machine {name}", "30 s"):
        host.run(qemu_command(origin, home, describe(name)["port"]))
        wait(name)
    return describe(name)


def personal_disk(origin: Path, home: Path, login_key: Path) -> None:
    """Copy the platform's disk and add the machine's own host key and the login key."""
    host.run(["cp", "--sparse=always", "--reflink=auto", str(origin), str(home / "disk.img")])
    own = home / "ssh_host_ed25519_key"
    for old in home.glob(f"{own.name}*"):
        old.unlink()
    host.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(own)])
    places = {
        own: f"/etc/ssh/{own.name}",
        own.with_suffix(".pub"): f"/etc/ssh/{own.name}.pub",
        login_key: f"/home/{USER}/.ssh/authorized_keys",
    }
    for source, place in places.items():
        host.run(["debugfs", "-w", "-R", f"write {source} {place}", str(home / "disk.img")])


def qemu_command(origin: Path, home: Path, port: int) -> list[str]:
    """Return the command that starts a machine in the background."""
    return [
        *("qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", str(MEMORY_MIB)),
        *("-nodefaults", "-display", "none", "-daemonize", "-pidfile", str(home / "pid")),
        *("-serial", f"file:{home / 'console.log'}"),
        *("-kernel", str(origin.with_suffix(".vmlinuz")), "-initrd", str(origin.with_suffix(".initrd"))),
        *("-append", f"root=/dev/vda rw console=ttyS0 net.ifnames=0 quiet systemd.hostname={home.name}"),
        *("-drive", f"file={home / 'disk.img'},if=virtio,format=raw,cache=unsafe"),
        *("-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:22", "-device", "virtio-net-pci,netdev=net"),
        *("-device", "virtio-rng-pci"),
    ]


def free_port() -> int:
    """Return a free port of the loopback address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def process(name: str) -> int | None:
    """Return the machine's process ID, None if it does not run."""
    try:
        number = int((folder(name) / "pid").read_text())
        words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return None
    return number if str(folder(name) / "pid").encode() in words else None


def running(name: str) -> bool:
    """Return whether the machine is switched on."""
    return process(name) is not None


def describe(name: str) -> dict[str, Any]:
    """Return how to access a machine; raise Problem if there is none of that name."""
    record = folder(name) / "machine.json"
    if not record.exists():
        raise Problem(f"There is no virtual machine {name}: start it with `python -m lab up {name} --virtual`.")
    return json.loads(record.read_text())


def ssh_command(name: str, command: list[str]) -> list[str]:
    """Return the ssh command that runs `command` (a shell if empty) on a machine."""
    there = describe(name)
    return [
        *("ssh", "-q", "-i", there["key"], "-p", str(there["port"]), "-o", "IdentitiesOnly=yes"),
        *("-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "StrictHostKeyChecking=yes"),
        *("-o", f"UserKnownHostsFile={there['known_hosts']}", f"{there['user']}@{there['address']}", *command),
    ]


def boot_id(name: str) -> str:
    """Return the ID of the current boot; empty while SSH does not answer."""
    command = ssh_command(name, ["cat", "/proc/sys/kernel/random/boot_id"])
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def wait(name: str, other_than: str = "") -> None:
    """Wait until SSH answers; after a reboot, until the boot ID is other than before."""
    deadline = time.monotonic() + BOOT_TIMEOUT
    while boot_id(name) in ("", other_than):
        if time.monotonic() > deadline or not running(name):
            console = folder(name) / "console.log"
            raise Problem(f"The virtual machine {name} did not answer within {BOOT_TIMEOUT} s; see {console}.")
        time.sleep(1)


def restart(name: str) -> dict[str, Any]:
    """Reboot a machine from inside."""
    before = boot_id(name)
    with host.step(f"Restarting the virtual machine {name}", "35 s"):
        subprocess.run(ssh_command(name, ["sudo", "systemctl", "reboot"]), capture_output=True, check=False)
        wait(name, before)
    return describe(name)


def down(name: str) -> None:
    """Switch a machine off and remove its disk."""
    number = process(name)
    if number is not None:
        os.kill(number, signal.SIGTERM)
        while running(name):
            time.sleep(0.1)
    shutil.rmtree(folder(name), ignore_errors=True)
