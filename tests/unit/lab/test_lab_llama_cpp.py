"""llama.cpp in the mirror: a source fit for a build, verified, and created again when its recipe changes."""

from __future__ import annotations

import io
import tarfile

import pytest

from lab import builds, host, llama_cpp


def distribution(path, *names):
    """Write an archive with the given names below the distribution's copy of llama.cpp."""
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as packed:
        for name in names:
            entry = tarfile.TarInfo(llama_cpp.INSIDE + name if not name.startswith("/") else name[1:])
            entry.size = 1
            packed.addfile(entry, io.BytesIO(b"x"))


def test_the_source_has_what_a_build_needs_below_one_folder(tmp_path):
    long = f"ggml/{'x' * 120}.cpp"
    distribution(tmp_path / "all.tar.gz", "CMakeLists.txt", long, "docs/a.md", ".gitignore", "/other/CMakeLists.txt")
    with tarfile.open(tmp_path / "all.tar.gz") as packed:
        found = list(llama_cpp.wanted_members(packed))
    assert [entry.name for entry in found] == [f"llama.cpp-0c1e57098/{name}" for name in ("CMakeLists.txt", long)]
    assert not any(entry.pax_headers for entry in found)
    assert {(entry.uid, entry.uname) for entry in found} == {(0, "root")}


def test_the_archives_are_where_the_role_expects_them():
    source = llama_cpp.source().relative_to(builds.MIRROR)
    assert str(source) == "github.com/ggml-org/llama.cpp/archive/0c1e57098.tar.gz"
    assert llama_cpp.release().name == "llama-0c1e57098-bin-ubuntu-x64.tar.gz"


def test_another_recipe_makes_it_again(tmp_path, monkeypatch):
    archive, part = tmp_path / "a.tar.gz", tmp_path / "a.part"
    part.write_bytes(b"x")
    llama_cpp.keep(part, archive)
    assert llama_cpp.finished(archive)
    monkeypatch.setattr(llama_cpp, "LEFT_OUT", ())
    assert not llama_cpp.finished(archive)


def test_a_distribution_without_it_is_refused(tmp_path, monkeypatch):
    def download(argv, **_):
        target = argv[argv.index("--dest") + 1]
        distribution(f"{target}/llama_cpp_python-0.3.36.tar.gz", "README.md")

    monkeypatch.setattr(llama_cpp, "CACHE", tmp_path)
    monkeypatch.setattr(host, "run", download)
    with pytest.raises(host.Problem, match=r"no longer contains llama\.cpp"):
        llama_cpp.fetch(tmp_path / "made" / "source.tar.gz")
