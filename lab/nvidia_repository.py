"""Stand-in of NVIDIA's apt repository: packages with its names and relevant versions, signed with a key made here.

It has the origin's path in the mirror, so the roles use it by URL, key, checksum and version exactly as they would use
NVIDIA's. The contents of the packages are in `lab/stand_ins`.
"""

from __future__ import annotations

import gzip
import hashlib
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab import builds, host
from lab.host import CACHE

HOST = "developer.download.nvidia.com"
ARCHITECTURE = "x86_64"
DISTRIBUTIONS = ("debian11", "debian12", "debian13")
KEYRINGS = ("1.0-1", "1.1-1")
DCGM = ("3.3.8", "3.3.9", "4.2.3-2")
PARTS = ("core", "cuda12", "proprietary")  # of DCGM 4
STAND_INS = Path(__file__).with_name("stand_ins")
LIBRARIES = "usr/lib/x86_64-linux-gnu"
DATE = "Wed, 15 Nov 2023 00:00:00 UTC"  # earlier than every machine's clock
PROGRAMS = {"gpg": "gnupg", "dpkg-deb": "dpkg", "gcc": "gcc"}

UNIT = """[Unit]
Description=NVIDIA DCGM service (stand-in)

[Service]
ExecStart=/usr/bin/nv-hostengine -n --service-account nvidia-dcgm
Restart=on-abort

[Install]
WantedBy=multi-user.target
"""

PIN = """Package: *
Pin: release l=NVIDIA CUDA
Pin-Priority: 600
"""


@dataclass(frozen=True)
class Package:
    """A Debian package: its control fields, files (path: content and mode), links, and configuration files."""

    fields: dict[str, str]
    files: dict[str, tuple[bytes, int]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    conffiles: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        version = self.fields["Version"].rpartition(":")[2]
        return f"{self.fields['Package']}_{version}_{self.fields['Architecture']}.deb"

    def build(self, target: Path) -> None:
        """Write the package to the file `target`."""
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            tree = Path(folder)
            tree.chmod(0o755)
            for name, (content, mode) in self.files.items():
                (tree / name).parent.mkdir(parents=True, exist_ok=True)
                (tree / name).write_bytes(content)
                (tree / name).chmod(mode)
            for name, to in self.links.items():
                (tree / name).symlink_to(to)
            control = tree / "DEBIAN"
            control.mkdir()
            (control / "control").write_text(stanza({**self.fields, "Description": "Stand-in of NVIDIA's package"}))
            if self.conffiles:
                (control / "conffiles").write_text("".join(f"/{name}\n" for name in self.conffiles))
            if any(".so" in name for name in self.files):
                (control / "triggers").write_text("activate-noawait ldconfig\n")
            date = {"SOURCE_DATE_EPOCH": "1700000000"}
            host.run(["dpkg-deb", "--build", "--root-owner-group", "-Zgzip", str(tree), str(target)], env=date)


def stanza(fields: dict[str, str]) -> str:
    return "".join(f"{name}: {value}\n" for name, value in fields.items())


def common(name: str, version: str, architecture: str) -> dict[str, str]:
    """Return the control fields that all packages have."""
    return {
        "Package": name,
        "Version": version,
        "Architecture": architecture,
        "Maintainer": "llm-server laboratory <laboratory@localhost>",
        "Section": "utils",
        "Priority": "optional",
    }


def keyring(distribution: str, version: str, public_key: bytes) -> Package:
    """Return the keyring package of a distribution: the key, the source, the preference."""
    source = f"etc/apt/sources.list.d/cuda-{distribution}-{ARCHITECTURE}.list"
    pin = "etc/apt/preferences.d/cuda-repository-pin-600"
    place = f"https://{HOST}/compute/cuda/repos/{distribution}/{ARCHITECTURE}/"
    line = f"deb [signed-by=/usr/share/keyrings/cuda-archive-keyring.gpg] {place} /\n"
    return Package(
        common("cuda-keyring", version, "all"),
        {
            source: (line.encode(), 0o644),
            pin: (PIN.encode(), 0o644),
            "usr/share/keyrings/cuda-archive-keyring.gpg": (public_key, 0o644),
        },
        conffiles=(source, pin),
    )


def dcgm(version: str, library: bytes) -> list[Package]:
    """Return the packages of one DCGM version: one up to 3.x; from 4 on several with other names, which replace it.

    Up to 4.6, the CUDA and proprietary parts are separate packages that depend on the core (NVIDIA/deepops#1394,
    dcgm-exporter#456).
    """
    major = version.partition(".")[0]
    files = {
        f"{LIBRARIES}/libdcgm.so.{major}": (library, 0o644),
        "lib/systemd/system/nvidia-dcgm.service": (UNIT.encode(), 0o644),
    }
    for name in ("dcgmi", "nv-hostengine"):
        text = (STAND_INS / name).read_text().replace("@MAJOR@", major)
        files[f"usr/bin/{name}"] = (text.encode(), 0o755)
    needs = {"Depends": "libc6, python3"}
    plain = common("datacenter-gpu-manager", f"1:{version}", "amd64")
    if int(major) < 4:
        return [Package({**plain, **needs}, files, {f"{LIBRARIES}/libdcgm.so": f"libdcgm.so.{major}"})]
    core, *others = (common(f"{plain['Package']}-4-{part}", f"1:{version}", "amd64") for part in PARTS)
    older = {field: "datacenter-gpu-manager (<< 1:4)" for field in ("Breaks", "Conflicts", "Replaces")}
    on_core = {"Depends": f"{core['Package']} (= 1:{version})"}
    return [Package({**core, **needs, **older}, files), *(Package({**other, **on_core}) for other in others)]


def compiled(version: str, folder: Path) -> bytes:
    """Return the stand-in library of a DCGM version."""
    number = version.partition("-")[0]
    target = folder / f"libdcgm-{number}"
    host.run(
        [
            *("gcc", "-O1", "-Wall", "-shared", "-fPIC", f'-DDCGM_VERSION="{number}"'),
            *(f"-Wl,-soname,libdcgm.so.{number.partition('.')[0]}", "-o", str(target), str(STAND_INS / "libdcgm.c")),
        ]
    )
    return target.read_bytes()


class SigningKey:
    """The repository's key; it stays in the cache, so that the checksums of the keyring packages do not change."""

    def __init__(self) -> None:
        self.home = CACHE / "nvidia" / "gnupg"
        if not list(self.home.glob("private-keys-v1.d/*.key")):
            self.home.mkdir(parents=True, exist_ok=True)
            self.home.chmod(0o700)
            who = "NVIDIA repository (stand-in) <laboratory@localhost>"
            self.gpg("--passphrase", "", "--quick-generate-key", who, "rsa3072", "sign", "never")

    def gpg(self, *words: str) -> None:
        host.run(["gpg", "--batch", "--yes", "--quiet", *words], env={"GNUPGHOME": str(self.home)})

    def __enter__(self) -> SigningKey:
        return self

    def __exit__(self, *_: object) -> None:
        """Stop the agent that gpg started."""
        host.run(["gpgconf", "--homedir", str(self.home), "--kill", "gpg-agent"])

    def public(self, folder: Path) -> bytes:
        self.gpg("--output", str(folder / "key.gpg"), "--export")
        return (folder / "key.gpg").read_bytes()


def ensure() -> dict[str, Any]:
    """Create the missing repositories, and return how to use them.

    Returns `checksums` {version: {"debian12-x86_64": "sha256:…"}} of the keyring packages, and the `dcgm` versions.
    """
    host.ensure_packages(PROGRAMS)
    sources = [Path(__file__), *sorted(STAND_INS.glob("*"))]
    recipe = host.digest([path.read_text() for path in sources if path.is_file()])
    with host.lock("nvidia"):
        for distribution in DISTRIBUTIONS:
            target = folder_of(distribution)
            stamp = target / ".recipe"
            if not stamp.exists() or stamp.read_text() != recipe:
                with host.step(f"Making the stand-in of NVIDIA's repository for {distribution}", "5 s"):
                    make(distribution, target)
                stamp.write_text(recipe)
    checksums: dict[str, dict[str, str]] = {version: {} for version in KEYRINGS}
    for distribution in DISTRIBUTIONS:
        for version in KEYRINGS:
            package = folder_of(distribution) / f"cuda-keyring_{version}_all.deb"
            checksums[version][f"{distribution}-{ARCHITECTURE}"] = f"sha256:{builds.sha256(package)}"
    return {"checksums": checksums, "dcgm": list(DCGM)}


def folder_of(distribution: str) -> Path:
    """Return the repository's path in the mirror."""
    return builds.MIRROR / HOST / "compute/cuda/repos" / distribution / ARCHITECTURE


def make(distribution: str, target: Path) -> None:
    """Create one repository: packages, index, signatures."""
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    with SigningKey() as key, tempfile.TemporaryDirectory() as work:
        packages = [keyring(distribution, version, key.public(Path(work))) for version in KEYRINGS]
        for version in DCGM:
            packages += dcgm(version, compiled(version, Path(work)))
        entries = []
        for package in packages:
            file = target / package.file_name
            package.build(file)
            content = file.read_bytes()
            place = {
                "Filename": f"./{file.name}",
                "Size": str(len(content)),
                "SHA256": hashlib.sha256(content).hexdigest(),
            }
            entries.append(stanza({**package.fields, **place, "Description": "Stand-in of NVIDIA's package"}))
        (target / "Packages").write_text("\n".join(entries))
        (target / "Packages.gz").write_bytes(gzip.compress((target / "Packages").read_bytes(), mtime=0))
        sums = "".join(
            f" {hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_size} {path.name}\n"
            for path in (target / "Packages", target / "Packages.gz")
        )
        head = {"Origin": "NVIDIA", "Label": "NVIDIA CUDA", "Architecture": ARCHITECTURE, "Date": DATE}
        (target / "Release").write_text(stanza(head) + f"SHA256:\n{sums}")
        key.gpg("--output", str(target / "InRelease"), "--clearsign", str(target / "Release"))
        key.gpg("--output", str(target / "Release.gpg"), "--armor", "--detach-sign", str(target / "Release"))
