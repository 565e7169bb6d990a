"""Programs from Debian's packages find their files at the paths of upstream's archive."""

from __future__ import annotations

import subprocess

import pytest

from lab import debian_package, host

OLD, NEW = "/usr/share/prometheus/alertmanager", "/opt/alertmanager/current"


def test_a_program_looks_elsewhere_and_keeps_its_size():
    before = b"\x7fELF" + f"text{OLD}/no-ui and {OLD}\0more".encode()
    after = debian_package.moved(before, OLD, NEW)
    assert (len(after), after[-5:]) == (len(before), b"\0more")
    assert f"{NEW}/////////".encode() in after
    assert OLD.encode() not in after


def test_a_longer_path_cannot_take_the_place_of_a_shorter_one():
    with pytest.raises(host.Problem, match="is longer than /usr"):
        debian_package.moved(b"", "/usr", "/opt/alertmanager")


def test_programs_come_first_and_files_beside_them(tmp_path, monkeypatch):
    tree = tmp_path / "package"
    for name, text in {"DEBIAN/control": "", "usr/bin/x": f"#!{OLD}", "usr/share/x/t.tmpl": "template"}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    (tree / "DEBIAN/control").write_text("Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x\nDescription: x\n")
    subprocess.run(["dpkg-deb", "--build", str(tree), str(tmp_path / "x_1_all.deb")], check=True, capture_output=True)
    monkeypatch.setattr(debian_package, "download", lambda *_: tmp_path / "x_1_all.deb")
    wanted = debian_package.Repacked("x", {"program": "usr/bin/x"}, "usr/share/x", ("t.tmpl",), "/opt/x")
    (tmp_path / "work").mkdir()
    files = debian_package.unpack(wanted, (), (), tmp_path / "work")
    assert list(files) == ["program", "t.tmpl"]
    assert files["t.tmpl"].read_text() == "template"
