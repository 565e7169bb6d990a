"""gpu_vram with real programs: the distribution's nvidia-smi, and this machine's.

The distribution's packages are downloaded once into the laboratory's cache and unpacked there; nothing is installed.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from plugins.module_utils.gpu import nvidia_smi

CACHE = Path(os.environ.get("LAB_CACHE", Path.home() / ".cache" / "llm-server-lab")) / "nvidia-smi"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"


def archive() -> str:
    """Return the source line of the distribution's non-free part, at the archive that this machine already uses."""
    targets = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    for line in targets.splitlines():
        uri, codename, component = line.split()
        if component == "main" and "-" not in codename:
            return f"deb [signed-by={KEYRING}] {uri} {codename} non-free\n"
    raise AssertionError("this machine has no source of the distribution's own packages")


@pytest.fixture(scope="module")
def distribution():
    """Return the directory with Debian's nvidia-smi and libnvidia-ml, unpacked."""
    root = CACHE / "root"
    if not (root / "usr/lib/nvidia/current/nvidia-smi").is_file():
        for part in ("lists/partial", "archives/partial", "packages"):
            (CACHE / part).mkdir(parents=True, exist_ok=True)
        (CACHE / "sources.list").write_text(archive())
        options = [
            f"Dir::Etc::SourceList={CACHE / 'sources.list'}", "Dir::Etc::SourceParts=/dev/null",
            f"Dir::State::Lists={CACHE / 'lists'}", f"Dir::Cache={CACHE}", "APT::Sandbox::User=root",
        ]  # fmt: skip
        apt = ["apt-get", "-q", *(word for option in options for word in ("-o", option))]
        subprocess.run([*apt, "update"], check=True, capture_output=True, timeout=120)
        fetch = [*apt, "download", "nvidia-smi", "libnvidia-ml1"]
        subprocess.run(fetch, check=True, capture_output=True, timeout=120, cwd=CACHE / "packages")
        for package in (CACHE / "packages").glob("*.deb"):
            subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    return root


def test_the_distributions_program_without_its_library(distribution):
    with pytest.raises(nvidia_smi.GpuError) as caught:
        nvidia_smi.query(binary=str(distribution / "usr/lib/nvidia/current/nvidia-smi"))
    assert caught.value.kind == "no_driver"
    assert "install the driver" in str(caught.value)


def test_the_distributions_program_without_a_driver(distribution, monkeypatch):
    library = distribution / "usr/lib/x86_64-linux-gnu/nvidia/current"
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library))
    binary = str(distribution / "usr/lib/nvidia/current/nvidia-smi")
    if Path("/proc/driver/nvidia/version").exists():
        # The machine has a driver: this library either has another version or works with it.
        try:
            assert nvidia_smi.parse(nvidia_smi.query(binary=binary))["gpus"]
        except nvidia_smi.GpuError as error:
            assert error.kind == "library_mismatch"
        return
    with pytest.raises(nvidia_smi.GpuError) as caught:
        nvidia_smi.query(binary=binary)
    assert caught.value.kind == "no_driver"
    assert "not running" in str(caught.value)


def test_this_machine():
    """With a GPU, the values agree with nvidia-smi's own list; without one, the error says what is missing."""
    program = shutil.which("nvidia-smi")
    if program is None:
        with pytest.raises(nvidia_smi.GpuError) as caught:
            nvidia_smi.read()
        assert caught.value.kind == "no_nvidia_smi"
        return
    listed = subprocess.run([program, "-L"], capture_output=True, text=True, check=False).stdout
    uuids = [line.rsplit("UUID: ", 1)[1].rstrip(")\n") for line in listed.splitlines() if line.startswith("GPU ")]
    if not uuids:
        with pytest.raises(nvidia_smi.GpuError):
            nvidia_smi.read()
        return
    found = nvidia_smi.read()
    assert [gpu["uuid"] for gpu in found["gpus"]] == uuids
    for gpu in found["gpus"]:
        usable = nvidia_smi.usable(gpu)
        assert 0 < usable["free_mib"] <= usable["total_mib"]
        assert usable["used_mib"] + usable["free_mib"] <= usable["total_mib"] + 1
