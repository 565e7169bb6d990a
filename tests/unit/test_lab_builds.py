"""What is built, under which names, and how it is packed."""

import tarfile
import zipfile

import pytest

from lab import builds, host


def test_archives_have_upstreams_names():
    node, promtail = builds.parse(["node_exporter@1.9.0", "promtail"])
    assert node.url == (
        "https://github.com/prometheus/node_exporter/releases/download/v1.9.0/node_exporter-1.9.0.linux-amd64.tar.gz"
    )
    assert node.member == "node_exporter-1.9.0.linux-amd64/node_exporter"
    assert promtail.url == "https://github.com/grafana/loki/releases/download/v3.4.2/promtail-linux-amd64.zip"


def test_mirror_keeps_host_and_path_of_the_origin():
    build = builds.Build("loki", "3.4.2")
    assert str(build.path.relative_to(builds.MIRROR)) == build.url.removeprefix("https://")


@pytest.mark.parametrize("name", ["prometheus", "promtail@9.9.9"])
def test_unknown_names_are_refused_with_the_choices(name):
    with pytest.raises(host.Problem, match="choose from"):
        builds.parse([name])


@pytest.mark.parametrize(("version", "enough"), [("go1.19.8", False), ("go1.23.0", True), ("go2.0", True), ("", False)])
def test_old_go_is_not_used(version, enough):
    assert builds.new_enough(version) is enough


def test_packing_twice_gives_the_same_bytes(tmp_path):
    program, licence = tmp_path / "program", tmp_path / "LICENSE"
    program.write_bytes(b"\x7fELF")
    licence.write_text("free")
    files = {"x-1/x": program, "x-1/LICENSE": licence}
    for kind in ("zip", "tar.gz"):
        first, second = tmp_path / f"1.{kind}", tmp_path / f"2.{kind}"
        builds.write_archive(first, files, zipped=kind == "zip")
        program.touch()
        builds.write_archive(second, files, zipped=kind == "zip")
        assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(tmp_path / "1.zip") as archive:
        assert archive.getinfo("x-1/x").external_attr >> 16 & 0o777 == 0o755
    with tarfile.open(tmp_path / "1.tar.gz") as archive:
        assert {item.name: item.mode for item in archive} == {"x-1/x": 0o755, "x-1/LICENSE": 0o644}


def test_changed_archive_is_not_finished(tmp_path, monkeypatch):
    monkeypatch.setattr(builds, "MIRROR", tmp_path)
    build = builds.Build("promtail", "3.4.2")
    build.path.parent.mkdir(parents=True)
    build.path.write_bytes(b"archive")
    builds.checksum_file(build.path).write_text(f"{builds.sha256(build.path)}  {build.path.name}\n")
    build.path.with_name(build.path.name + ".build").write_text(build.recipe)
    assert build.finished()
    build.path.write_bytes(b"another")
    assert not build.finished()


@pytest.mark.parametrize("tries, said", [(2, "arrived\n"), (1, None)])
def test_what_asks_the_network_is_tried_again(tmp_path, monkeypatch, tries, said):
    monkeypatch.setattr(host, "PAUSE", 0)
    argv = ["sh", "-c", "test -e seen && echo arrived || { touch seen; echo connection reset >&2; exit 1; }"]
    if said:
        assert host.run(argv, cwd=tmp_path, tries=tries) == said
    else:
        with pytest.raises(host.Problem, match="connection reset; look"):
            host.run(argv, cwd=tmp_path, tries=tries, cure="look")
