"""The loaded driver, its library on disk, and the kernel of the next boot."""

from __future__ import annotations

import pytest

from plugins.module_utils.gpu import nvidia_driver, nvidia_smi
from plugins.module_utils.gpu.nvidia_smi import GpuError


def cache(folder, version: str | None) -> str:
    """Return the output of `ldconfig -p` for a libcuda of this version in a folder."""
    path = folder / "libcuda.so.1"
    if version:
        (folder / f"libcuda.so.{version}").touch()
        path.symlink_to(f"libcuda.so.{version}")
    else:
        path.touch()
    return f"2 libs found\n\tlibc.so.6 (libc6,x86-64) => /lib/libc.so.6\n\tlibcuda.so.1 (libc6,x86-64) => {path}\n"


@pytest.mark.parametrize("version", ["580.95.05", "535.104", None])
def test_the_version_of_the_library_is_in_its_name(tmp_path, version):
    assert nvidia_driver.library_version(cache(tmp_path, version)) == version


def test_a_library_of_another_architecture_is_not_the_drivers(tmp_path):
    assert nvidia_driver.library_version(cache(tmp_path, "580.95.05").replace("libc6,x86-64", "libc6")) is None
    assert nvidia_driver.library_version("0 libs found in cache\n") is None


def test_without_a_module_there_is_no_version(tmp_path):
    assert nvidia_driver.loaded_version(tmp_path / "version") is None
    (tmp_path / "version").write_text("580.95.05\n")
    assert nvidia_driver.loaded_version(tmp_path / "version") == "580.95.05"


@pytest.mark.parametrize(
    "loaded, library, told",
    [("580.95.05", "580.95.05", False), ("580.95.05", "580.105.08", True), (None, "580.95.05", False),
     ("580.95.05", None, False)],
)  # fmt: skip
def test_an_upgrade_without_a_reboot_is_reported_with_both_versions(loaded, library, told):
    sentence = nvidia_driver.mismatch(loaded, library)
    assert bool(sentence) is told
    if told:
        assert loaded in sentence and library in sentence and sentence.endswith("reboot this host.")


def kernels(folder, modules):
    """Create kernels in a folder: version -> file name of the module, "" for none."""
    for name, module in modules.items():
        (folder / f"vmlinuz-{name}").touch()
        extra = folder / name / "updates/dkms"
        extra.mkdir(parents=True)
        if module:
            (extra / module).touch()


def test_the_newest_kernel_counts_and_not_the_last_by_letter(tmp_path):
    kernels(tmp_path, {"6.8.0-1009-gcp": "nvidia.ko", "6.8.0-1010-gcp": "", "6.8.0-999-gcp": "nvidia.ko"})
    kernel, has_module = nvidia_driver.next_kernel(tmp_path, tmp_path)
    assert (kernel, has_module) == ("6.8.0-1010-gcp", False)
    assert "6.8.0-1010-gcp" in nvidia_driver.unready_kernel(kernel, has_module)


@pytest.mark.parametrize("name", ["nvidia.ko", "nvidia.ko.zst"])
def test_a_kernel_with_its_module_is_ready(tmp_path, name):
    kernels(tmp_path, {"6.8.0-1010-gcp": name})
    assert nvidia_driver.unready_kernel(*nvidia_driver.next_kernel(tmp_path, tmp_path)) is None


def test_a_container_has_no_kernel_to_be_ready(tmp_path):
    assert nvidia_driver.next_kernel(tmp_path, tmp_path) == ("", True)


def test_files_are_not_device_nodes(tmp_path):
    (tmp_path / "nvidiactl").touch()
    (tmp_path / "nvidia-uvm").symlink_to("/dev/null")
    assert nvidia_driver.missing_nodes(1, tmp_path) == ["/dev/nvidiactl", "/dev/nvidia0"]


def test_a_mismatch_is_reported_before_the_driver_is_queried(monkeypatch, tmp_path):
    monkeypatch.setattr(nvidia_driver, "loaded_version", lambda: "580.95.05")
    monkeypatch.setattr(nvidia_driver, "linker_cache", lambda: cache(tmp_path, "580.105.08"))
    monkeypatch.setattr(nvidia_smi, "read", lambda: pytest.fail("a driver with another library is not asked"))
    with pytest.raises(GpuError, match=r"580\.105\.08") as refused:
        nvidia_driver.read()
    assert refused.value.kind == "library_mismatch"


def test_a_kernel_without_a_module_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr(nvidia_driver, "loaded_version", lambda: None)
    monkeypatch.setattr(nvidia_driver, "linker_cache", lambda: cache(tmp_path, "580.95.05"))
    monkeypatch.setattr(nvidia_smi, "read", lambda: {"driver_version": "580.95.05", "gpus": [{}]})
    monkeypatch.setattr(nvidia_driver, "next_kernel", lambda: ("6.8.0-1010-gcp", False))
    found = nvidia_driver.read()
    assert (found["driver_version"], found["library_version"]) == ("580.95.05", "580.95.05")
    assert "6.8.0-1010-gcp" in found["warnings"][0]
