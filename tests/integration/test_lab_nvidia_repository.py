"""The stand-in of NVIDIA's repository is signed with the key in its keyring package, and its libraries load."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
from pathlib import Path

import pytest

from lab import builds, nvidia_repository


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    cache = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nvidia_repository, "CACHE", cache)
        patch.setattr(builds, "MIRROR", cache / "mirror")
        folder = nvidia_repository.folder_of("debian12")
        nvidia_repository.make("debian12", folder)
    return folder


def unpacked(package: Path, folder: Path) -> Path:
    subprocess.run(["dpkg-deb", "--extract", str(package), str(folder)], check=True)
    return folder


def stanzas(repository: Path) -> list[dict[str, str]]:
    text = (repository / "Packages").read_text()
    return [dict(line.split(": ", 1) for line in one.splitlines()) for one in text.split("\n\n")]


def test_the_release_is_signed_by_the_key_in_the_keyring_package(repository, tmp_path):
    tree = unpacked(repository / "cuda-keyring_1.1-1_all.deb", tmp_path)
    key = tree / "usr/share/keyrings/cuda-archive-keyring.gpg"
    verify = ["gpgv", "--keyring", str(key), str(repository / "InRelease")]
    assert subprocess.run(verify, capture_output=True, check=False).returncode == 0
    altered = tmp_path / "InRelease"
    altered.write_text((repository / "InRelease").read_text().replace("NVIDIA CUDA", "SOMETHING"))
    assert subprocess.run([*verify[:-1], str(altered)], capture_output=True, check=False).returncode != 0


def test_the_index_lists_every_package_with_its_checksum(repository):
    for entry in stanzas(repository):
        file = repository / entry["Filename"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == entry["SHA256"]
    found = {(entry["Package"], entry["Version"]) for entry in stanzas(repository)}
    assert {("datacenter-gpu-manager", "1:3.3.9"), ("datacenter-gpu-manager-4-core", "1:4.2.3-2")} <= found
    assert not [version for name, version in found if name == "datacenter-gpu-manager" and version.startswith("1:4")]


@pytest.mark.parametrize(
    ("package", "library", "version"),
    [
        ("datacenter-gpu-manager_3.3.9_amd64.deb", "libdcgm.so.3", "3.3.9"),
        ("datacenter-gpu-manager-4-core_4.2.3-2_amd64.deb", "libdcgm.so.4", "4.2.3"),
    ],
)
def test_a_library_returns_its_version_and_values(repository, tmp_path, package, library, version):
    folder = unpacked(repository / package, tmp_path) / nvidia_repository.LIBRARIES
    assert (folder / "libdcgm.so").exists() == (library == "libdcgm.so.3")
    dcgm = ctypes.CDLL(str(folder / library))
    info = (ctypes.c_char * 516)()
    ctypes.c_uint.from_buffer(info).value = 516 | 2 << 24
    assert dcgm.dcgmVersionInfo(info) == 0
    assert f"version:{version}".encode() in bytes(info)
    handle = ctypes.c_void_p()
    assert dcgm.dcgmConnect(b"127.0.0.1:9", ctypes.byref(handle)) == -21
    assert dcgm.dcgmStartEmbedded(1, ctypes.byref(handle)) == 0
    gpus, count = (ctypes.c_uint * 32)(), ctypes.c_int()
    assert dcgm.dcgmGetAllDevices(handle, gpus, ctypes.byref(count)) == 0 and count.value == 1
