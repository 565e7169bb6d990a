"""The machine image: the root file system of a fresh cloud machine, made from the distribution's packages."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

from lab import cpython, host, nvidia_driver
from lab.host import Problem


@dataclass(frozen=True)
class Platform:
    """A Debian suite, what is copied over its root file system, and how its machines differ from others."""

    suite: str
    laid_over: ModuleType | None = None
    python: str = "/usr/bin/python3"  # the interpreter for the roles
    capabilities: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()  # what every machine needs and the suite's packages do not install by themselves
    unified_control_groups: bool = False  # its systemd does not run on cgroup version 1


PLATFORMS = {
    # Older than Ubuntu 22.04 in systemd and glibc, with the Python of Ubuntu 22.04.
    "debian11": Platform("bullseye", cpython, cpython.PROGRAM),
    "debian12": Platform("bookworm"),
    "debian13": Platform("trixie"),
    # An accelerator image: a driver, and no build tools.
    "bare": Platform("bookworm", nvidia_driver, capabilities=("MKNOD",)),
    # Debian's next release (testing): the first with a package of llama.cpp.
    "forky": Platform("forky", packages=("mount", "passwd"), unified_control_groups=True),
}

# The packages of a cloud image, without those that the roles must install themselves (python3-venv, compilers, curl).
# python3-apt is on cloud images, and without it Ansible's check mode cannot inspect packages.
# No systemd-networkd and no udev: inside a container they would take over network interfaces.
PACKAGES = [
    "ca-certificates",
    "dbus",
    "iproute2",
    "openssh-server",
    "procps",
    "python3",
    "python3-apt",
    "sudo",
    "systemd",
    "systemd-sysv",
]

EXTRA_CERTIFICATES = Path("/usr/local/share/ca-certificates")
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"

# Runs on the host, "$1" is the root of the new file system.
CUSTOMIZE = r"""
set -eu
root="$1"

chroot "$root" ldconfig
chroot "$root" useradd --create-home --shell /bin/bash --gid users operator
install -d -o 0 -g 0 -m 755 "$root/home/operator/.ssh"
echo 'operator ALL=(ALL) NOPASSWD: ALL' > "$root/etc/sudoers.d/operator"
chmod 440 "$root/etc/sudoers.d/operator"

# Every machine makes host keys of its own at its first boot.
rm -f "$root"/etc/ssh/ssh_host_*
cat > "$root/etc/systemd/system/ssh-host-keys.service" <<'UNIT'
[Unit]
Description=SSH host keys of this machine
Before=ssh.service
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -q -t ed25519 -N "" -f /etc/ssh/ssh_host_ed25519_key
[Install]
WantedBy=multi-user.target
UNIT
chroot "$root" systemctl -q enable ssh-host-keys.service
echo 'HostKey /etc/ssh/ssh_host_ed25519_key' > "$root/etc/ssh/sshd_config.d/lab.conf"
# A login uid can be set once and only by the real init: in a container the login would fail for it.
sed -i 's/^session *required *pam_loginuid.so/session optional pam_loginuid.so/' "$root/etc/pam.d/sshd"

# Timers that would use the package lock or the host's disks at times of their own choosing.
chroot "$root" systemctl -q mask apt-daily.timer apt-daily-upgrade.timer fstrim.timer e2scrub_all.timer
"""

# Only for a host with its own certificates: without them every TLS connection from inside fails.
# Python's installers use their own certificate lists unless configured; sudo drops the variable.
CERTIFICATES = rf"""
cp {EXTRA_CERTIFICATES}/*.crt "$root/usr/local/share/ca-certificates/"
chroot "$root" update-ca-certificates >/dev/null
echo 'SSL_CERT_FILE={BUNDLE}' >> "$root/etc/environment"
echo 'Defaults env_keep += "SSL_CERT_FILE"' >> "$root/etc/sudoers.d/operator"
mkdir -p "$root/etc/uv" "$root/etc/systemd/system.conf.d"
printf '[global]\ncert = {BUNDLE}\n' > "$root/etc/pip.conf"
printf 'native-tls = true\n' > "$root/etc/uv/uv.toml"
"""


@dataclass(frozen=True)
class Recipe:
    """Everything that determines an image; an image of the same recipe is not built again."""

    platform: str
    sources: tuple[str, ...]
    apt_options: tuple[str, ...]
    packages: tuple[str, ...]
    script: str
    certificates: tuple[str, ...]
    laid_over: str = ""

    @property
    def tag(self) -> str:
        """Return the image's name in podman's store; it changes with the recipe."""
        return f"localhost/llm-server-lab:{self.platform}-{host.digest(self.__dict__)}"

    @property
    def archive(self) -> Path:
        """Return the path of the root file system's archive in the cache."""
        return host.CACHE / "images" / f"{self.tag.rpartition(':')[2]}.tar"


def archive_addresses(index_targets: str) -> dict[str, str]:
    """Return the host's Debian mirrors from lines `origin|label|address` of apt's index targets.

    The result maps label to address: `Debian` for packages, and `Debian-Security` for updates if the host has them.
    """
    addresses = {}
    for line in index_targets.splitlines():
        origin, label, address = line.split("|")
        if origin == "Debian" and label in ("Debian", "Debian-Security"):
            addresses.setdefault(label, first_mirror(address).rstrip("/"))
    return addresses


def first_mirror(address: str) -> str:
    """Return the address; for apt's `mirror+file:` (on cloud images), the first address of its list."""
    if not address.startswith("mirror+file:"):
        return address
    lines = Path(urlsplit(address).path).read_text().split("\n")
    return next(line.split()[0] for line in lines if line.strip() and not line.startswith("#"))


def sources(platform: str, addresses: dict[str, str]) -> tuple[str, ...]:
    """Return a platform's package sources, one line each, on the host's own mirrors."""
    if "Debian" not in addresses:
        raise Problem("No Debian mirror in this host's apt configuration: the laboratory needs a Debian host.")
    suite = PLATFORMS[platform].suite
    lines = [f"deb {addresses['Debian']} {suite} main", f"deb {addresses['Debian']} {suite}-updates main"]
    if "Debian-Security" in addresses:
        lines.append(f"deb {addresses['Debian-Security']} {suite}-security main")
    return tuple(lines)


def apt_options(dump: str) -> tuple[str, ...]:
    """Return the host's apt settings (lines of `apt-config dump`) that determine how packages are downloaded."""
    wanted = re.compile(r'^Acquire::(https?::Proxy[^ ]*|Check-Valid-Until|Check-Date|Retries) "[^"]+";$')
    return ('Acquire::Languages "none";', *(line for line in dump.splitlines() if wanted.match(line)))


def recipe(platform: str) -> Recipe:
    """Return the recipe of a platform's image on this host.

    Raises Problem for an unknown platform or a host without a Debian mirror.
    """
    if platform not in PLATFORMS:
        raise Problem(f"Unknown platform {platform}: choose one of {', '.join(PLATFORMS)}.")
    command = ["apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)"]
    targets = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    if not archive_addresses(targets):
        host.run(["apt-get", "-q", "update"])
        targets = host.run(command)
    certificates = sorted(EXTRA_CERTIFICATES.glob("*.crt"))
    laid_over = PLATFORMS[platform].laid_over
    return Recipe(
        platform=platform,
        sources=sources(platform, archive_addresses(targets)),
        apt_options=apt_options(host.run(["apt-config", "dump"])),
        packages=(*PACKAGES, *PLATFORMS[platform].packages),
        script=CUSTOMIZE + (CERTIFICATES if certificates else ""),
        certificates=tuple(path.read_text() for path in certificates),
        laid_over=laid_over.recipe() if laid_over else "",
    )


def bootstrap(made: Recipe, target: Path) -> None:
    """Create the root file system: an archive or a folder, by the target's name."""
    laid_over = PLATFORMS[made.platform].laid_over
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        script, tree = Path(work) / "customize.sh", Path(work) / "tree"
        script.write_text(made.script)
        tree.mkdir()
        if laid_over:
            laid_over.copy_into(tree)
        host.run(bootstrap_command(made, script, tree, target), cure="check the network and try again")


def bootstrap_command(made: Recipe, script: Path, tree: Path, target: Path) -> list[str]:
    """Return the command that creates the root file system; `tree` is copied over it before the script runs."""
    unneeded = ("/usr/share/man/*", "/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/info/*")
    return [
        "mmdebstrap",
        "--quiet",
        "--variant=apt",
        f"--include={','.join(made.packages)}",
        *(f"--aptopt={option}" for option in made.apt_options),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in unneeded),
        f"--customize-hook=sync-in {tree} /",
        f'--customize-hook=sh {script} "$1"',
        PLATFORMS[made.platform].suite,
        str(target),
        *made.sources,
    ]


def ensure(platform: str) -> str:
    """Make sure the platform's image is in podman's store and return its tag."""
    made = recipe(platform)
    if subprocess.run(["podman", "image", "exists", made.tag], check=False).returncode == 0:
        return made.tag
    with host.lock(f"image-{platform}"):
        if not made.archive.exists():
            host.ensure_room(made.archive.parent, 2, "the machine image")
            made.archive.parent.mkdir(parents=True, exist_ok=True)
            unfinished = made.archive.with_suffix(".part.tar")
            with host.step(f"Building the machine image {platform} from the distribution's packages", "30 s"):
                bootstrap(made, unfinished)
            unfinished.rename(made.archive)
            for old in made.archive.parent.glob(f"{platform}-*.tar"):
                if old != made.archive:
                    old.unlink()
        with host.step("Importing the image", "5 s"):
            host.run(["podman", "import", "--quiet", str(made.archive), made.tag], cure="is podman's storage writable?")
    return made.tag


def clean() -> None:
    """Remove the laboratory's images and its complete cache of downloads and builds."""
    tags = host.run(["podman", "images", "--quiet", "--filter", "reference=localhost/llm-server-lab"]).split()
    if tags:
        host.run(["podman", "rmi", "--force", *sorted(set(tags))])
    # Go's module cache is read-only.
    host.run(["chmod", "-R", "u+w", str(host.CACHE)])
    shutil.rmtree(host.CACHE)
