"""What is copied over a platform's root file system."""

from __future__ import annotations

import dataclasses
import subprocess
import zipfile
from pathlib import Path

import pytest

from lab import cpython, host, image, machine, nvidia_driver


@pytest.mark.parametrize(
    ("member", "place"),
    [
        ("bin/python3.10", "bin/python3.10"),
        ("python3.10", None),
        ("libpython3.10.so.1.0", "lib/libpython3.10.so.1.0"),
        ("libjnipython.so", None),
        ("lib/python3.10/os.py", "lib/python3.10/os.py"),
        ("lib/python3.10/test/test_os.py", None),
        ("lib/python3.10/", None),
        ("include/python3.10/Python.h", "include/python3.10/Python.h"),
    ],
)
def test_the_interpreter_is_laid_out_as_an_installation(member, place):
    assert cpython.place_of(cpython.INSIDE + member) == place
    assert cpython.place_of(member) is None


def test_the_newest_interpreter_is_laid_out_in_the_same_way():
    def place(member):
        return cpython.place_of(cpython.INSIDE + member, cpython.NEWEST)

    assert place("bin/python3.14") == "bin/python3.14"
    assert place("libffi.so.8") == "lib/libffi.so.8"
    assert place("lib/python3.14/os.py") == "lib/python3.14/os.py"
    assert place("lib/python3.14/test/test_os.py") is None
    assert place("bin/python3.10") is None


def test_the_interpreter_is_unpacked_completely_and_runs(tmp_path):
    archive = tmp_path / "cpython.jar"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.writestr("META-INF/MANIFEST.MF", "")
        packed.writestr(f"{cpython.INSIDE}bin/python3.10", "#!/bin/sh\necho runs\n")
        packed.writestr(f"{cpython.INSIDE}lib/python3.10/os.py", "")
    cpython.unpack(archive, tmp_path / "made")
    assert subprocess.check_output([tmp_path / "made/bin/python3.10"], text=True) == "runs\n"
    assert not (tmp_path / "made/META-INF").exists()


def test_another_artefact_than_the_known_one_is_refused(tmp_path, monkeypatch):
    def maven(argv, **_):
        (tmp_path / "cpython-x.jar").write_text("something else")

    monkeypatch.setattr(host, "ensure_packages", lambda programs: None)
    monkeypatch.setattr(host, "run", maven)
    with pytest.raises(host.Problem, match="checksum differs"):
        cpython.fetch(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_stand_ins_of_a_driver_match_their_names(tmp_path):
    nvidia_driver.copy_into(tmp_path)
    modprobe = tmp_path / "usr/bin/nvidia-modprobe"
    assert modprobe.stat().st_mode & 0o7777 == 0o4755
    assert subprocess.run([modprobe, "-c", "x"], capture_output=True, check=False).returncode == 1
    dynamic = subprocess.check_output(["objdump", "-p", tmp_path / "usr/lib/x86_64-linux-gnu/libcuda.so.1"], text=True)
    assert "libcuda.so.1" in dynamic.split("SONAME")[1].split()[0]


def test_only_the_bare_machine_may_make_device_nodes():
    def added(platform):
        command = machine.create_command("m", platform, "tag", "10.0.0.2", "1g", [], [], Path("/models"))
        return command[command.index("--cap-add") + 1].split(",")

    assert [platform for platform in image.PLATFORMS if "MKNOD" in added(platform)] == ["bare"]


def test_the_recipe_follows_what_is_laid_over(monkeypatch):
    before = nvidia_driver.recipe(), cpython.recipe()
    monkeypatch.setattr(nvidia_driver, "MODPROBE", nvidia_driver.LIBRARY)
    monkeypatch.setattr(cpython, "UBUNTU", dataclasses.replace(cpython.UBUNTU, checksum="another"))
    after = nvidia_driver.recipe(), cpython.recipe()
    assert all(old != new for old, new in zip(before, after, strict=True))


def test_a_suite_without_the_old_control_groups_gets_the_new_ones():
    def command(platform):
        return machine.create_command("m", platform, "tag", "10.0.0.2", "1g", [], [], Path("/models"))

    unified = {platform for platform in image.PLATFORMS if "mount -t cgroup2" in command(platform)[-1]}
    assert unified == {platform for platform in image.PLATFORMS if "--cgroupns" in command(platform)} == {"forky"}
    assert all(machine.INIT in command(platform)[-1] for platform in image.PLATFORMS)
