"""llama-server from a source archive: complete or absent, resumed after an interruption, errors of one sentence."""

from __future__ import annotations

import os
import tarfile
from dataclasses import replace
from types import SimpleNamespace

import pytest

from plugins.module_utils.engines.llama_cpp_build import (
    Build,
    Workshop,
    built,
    complaint,
    jobs,
    options_of,
    place,
    unused,
)
from plugins.module_utils.errors import UserError
from plugins.module_utils.install import released_program
from plugins.modules import llama_cpp_build as door

# Replaces cmake: the first step records its flags, the second creates a program unless the source is broken.
CMAKE = """#!/bin/sh
if [ "$1" = -S ]; then
    [ -e "$2/unfit" ] && { echo "CMake Error at CMakeLists.txt:5:"; echo "  No CUDA found"; exit 1; }
    mkdir -p "$4"; shift 4; echo "$@" > ../configured; echo configured >> ../steps; exit
fi
echo "built with $6" >> ../steps
[ -e "$2/../broken" ] && { echo "ggml.c:1: error: expected ;"; echo "make: *** [all] Error 2"; exit 2; }
mkdir -p "$2/bin"
printf '#!/bin/sh\\necho "version: 1"\\n' > "$2/bin/llama-server"
chmod 755 "$2/bin/llama-server"
"""


@pytest.fixture
def shop(tmp_path):
    program = tmp_path / "bin/cmake"
    program.parent.mkdir()
    program.write_text(CMAKE.replace("../", f"{tmp_path}/").replace('"$2/' + str(tmp_path), f'"{tmp_path}'))
    program.chmod(0o755)
    (tmp_path / "home").mkdir()
    path = f"{program.parent}:{os.environ['PATH']}"
    return Workshop(tmp_path / "home", jobs=3, environment={"PATH": path})


@pytest.fixture
def archive(tmp_path):
    """Return a function that creates a source archive with extra files, and returns its checksum."""

    def make(*names: str) -> tuple:
        tree = tmp_path / "source" / "llama.cpp-1"
        tree.mkdir(parents=True, exist_ok=True)
        for name in ("CMakeLists.txt", "LICENSE", *names):
            (tree / name).write_text(name)
        target = tmp_path / "source.tar.gz"
        with tarfile.open(target, "w:gz") as packed:
            packed.add(tree, tree.name)
        return target, released_program.sha256(target)

    return make


def giving(path, fetched):
    def fetch(target):
        fetched.append(target)
        target.write_bytes(path.read_bytes())

    return fetch


def test_only_the_finished_program_stays(shop, archive, tmp_path):
    path, checksum = archive()
    build, fetched = Build("b1", checksum, options=("-DGGML_NATIVE=ON",)), []
    assert not shop.whole(build)
    directory = shop.make(build, giving(path, fetched))
    assert directory == shop.home / "b1-cpu" and shop.whole(build) and len(fetched) == 1
    assert sorted(each.name for each in directory.iterdir()) == [".build.json", "LICENSE", "llama-server"]
    assert [each.name for each in shop.home.iterdir()] == ["b1-cpu"]
    flags = (tmp_path / "configured").read_text().split()
    assert "-DGGML_CUDA=OFF" in flags and flags[-1] == "-DGGML_NATIVE=ON"
    assert (tmp_path / "steps").read_text() == "configured\nbuilt with 3\n"


def test_one_that_fails_leaves_nothing_in_place_and_goes_on_later(shop, archive, tmp_path):
    path, checksum = archive()
    build, fetched = Build("b1", checksum), []
    (tmp_path / "broken").touch()
    with pytest.raises(UserError, match=r"cmake --build: ggml.c:1: error: expected ; \(.*last.log has all of it\)"):
        shop.make(build, giving(path, fetched))
    assert not (shop.home / "b1-cpu").exists()
    (tmp_path / "broken").unlink()
    shop.make(build, giving(path, fetched))
    assert shop.whole(build) and len(fetched) == 1, "the source was there already"


def test_what_cmake_misses_is_told_with_its_reason_and_looked_for_again(shop, archive):
    path, checksum = archive("unfit")
    with pytest.raises(UserError, match=r"cmake -S: CMake Error at CMakeLists.txt:5: \| No CUDA found"):
        shop.make(Build("b1", checksum, cuda=True), giving(path, []))
    (work,) = shop.home.iterdir()
    assert not (work / "build").exists()


def test_another_archive_is_not_unpacked(shop, archive):
    path, _ = archive()
    with pytest.raises(UserError, match=r"expected sha256:0000.*do not use it"):
        shop.make(Build("b1", f"sha256:{'0' * 64}"), giving(path, []))
    assert list(shop.home.iterdir()) == []


def test_another_recipe_of_a_version_goes_beside_it_and_both_stay(shop, archive):
    path, checksum = archive()
    one = Build("b1", checksum)
    other = replace(one, options=("-DGGML_NATIVE=ON",))
    shop.make(one, giving(path, []))
    directory = shop.make(other, giving(path, []))
    assert directory.name == f"b1-cpu-{other.recipe}"
    assert shop.whole(one) and shop.whole(other) and place(shop.home, one).name == "b1-cpu"
    assert place(shop.home, replace(one, cuda=True)).name == "b1-cuda"


def test_a_build_that_was_cut_off_is_not_whole(shop, archive):
    path, checksum = archive()
    build = Build("b1", checksum)
    program = shop.make(build, giving(path, [])) / "llama-server"
    program.write_text("")
    assert built(program.parent) is None and not shop.whole(build)
    shop.make(build, giving(path, []))
    assert shop.whole(build)


def test_no_build_begins_without_room(shop, archive):
    path, checksum = archive()
    with pytest.raises(UserError, match="make room, or set llama_cpp_build_mib"):
        replace(shop, needed_mib=1 << 30).make(Build("b1", checksum), giving(path, []))


def test_what_no_release_needs_is_unused(shop, archive):
    path, checksum = archive()
    kept = shop.make(Build("b1", checksum), giving(path, []))
    gone = shop.make(Build("b2", checksum), giving(path, []))
    (shop.home / ".work-1").mkdir()
    (shop.home / "mine").mkdir()
    (shop.home / "current-code").symlink_to(kept)
    assert unused(shop.home, {kept}) == [shop.home / ".work-1", gone]
    assert unused(shop.home / "absent", set()) == []


@pytest.mark.parametrize(
    ("wanted", "cpus", "memory", "found"), [(0, 8, 9000, 4), (0, 8, 1000, 1), (0, 2, 64000, 2), (5, 2, 1000, 5)]
)
def test_compilers_have_memory(wanted, cpus, memory, found):
    assert jobs(wanted, cpus, memory) == found


def test_a_compiler_that_was_killed_names_the_cure():
    said = (
        "c++: fatal error: Killed signal terminated program cc1plus\ncompilation terminated.\nmake: *** [all] Error 2"
    )
    assert complaint(said).endswith("the memory was not enough: lower llama_cpp_build_jobs")
    assert complaint("") == "it says nothing"


def test_removal_keeps_what_another_engine_is_about_to_run_on(tmp_path, monkeypatch):
    gone, coming = tmp_path / "b1-cpu", tmp_path / "b2-cpu"
    for folder in (gone, coming):
        folder.mkdir()
        (folder / ".build.json").write_text("{}")
    monkeypatch.setattr(door, "in_use", set)
    door.remove(SimpleNamespace(check_mode=False, exit_json=lambda **_: None), tmp_path, [str(coming)])
    assert not gone.exists()
    assert coming.exists()


def test_the_options_of_a_build():
    assert options_of("arm64", "", ["-DA=B"]) == ["-DA=B"]
    assert options_of("amd64", "", [])[0] == "-DGGML_NATIVE=OFF"
    assert options_of("arm64", "12-8", ["-DCMAKE_CUDA_ARCHITECTURES=90"]) == [
        "-DCMAKE_CUDA_COMPILER=/usr/local/cuda-12.8/bin/nvcc",
        "-DCMAKE_CUDA_ARCHITECTURES=native",
        "-DCMAKE_CUDA_ARCHITECTURES=90",
    ]
