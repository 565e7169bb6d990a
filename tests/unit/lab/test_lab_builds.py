"""What is built, under which names, and how it is packed."""

import dataclasses
import hashlib
import socket
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import yaml

from lab import builds, collector, host, licences
from plugins.module_utils.install import release_table


def test_archives_have_upstreams_names():
    node, promtail = builds.parse(["node_exporter", "promtail"])
    released = "https://github.com/prometheus/node_exporter/releases/download"
    assert node.url == f"{released}/v{node.version}/node_exporter-{node.version}.linux-amd64.tar.gz"
    assert node.member == f"node_exporter-{node.version}.linux-amd64/node_exporter"
    version = builds.supported("promtail")[0]
    assert promtail.url == f"https://github.com/grafana/loki/releases/download/v{version}/promtail-linux-amd64.zip"


@pytest.mark.parametrize("name", builds.PROGRAMS)
def test_the_newest_version_here_is_the_roles_default(name):
    program = builds.PROGRAMS[name]
    here, default = builds.newest()[name], builds.supported(program.role or name)[0]
    assert here == default or program.instead, (
        f"The default of {name} is {default} and lab/builds.py builds {here}: add {default} with its module's digest."
    )
    assert list(program.versions) == release_table.newest_first(program.versions)
    assert here != default or not program.instead, f"{name} no longer needs a reason in `instead`."


def test_one_archive_may_have_several_programs(tmp_path):
    (build,) = builds.parse(["vmutils"])
    assert build.members == {
        "vmagent-prod": "./app/vmagent",
        "vmalert-prod": "./app/vmalert",
        "vmalert-tool-prod": "./app/vmalert-tool",
    }
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF")
    builds.write_archive(tmp_path / "1.tar.gz", {**dict.fromkeys(build.members, program), "LICENSE": program}, False, 3)
    with tarfile.open(tmp_path / "1.tar.gz") as archive:
        assert [item.mode for item in archive] == [0o755, 0o755, 0o755, 0o644]


def test_a_program_that_reports_another_version_is_not_packed(tmp_path, monkeypatch):
    (build,) = builds.parse(["vmutils"])
    packed = []

    def compiled(command, **_):
        packed.append(command[4])
        Path(command[6]).write_text(f"#!/bin/sh\necho vmagent-v{told_version} >&2\n")
        Path(command[6]).chmod(0o755)

    monkeypatch.setattr(host, "run", compiled)
    monkeypatch.setattr(licences, "check", lambda go, program, cache: {})
    told_version = build.version
    assert builds.compile_program(build, "go", tmp_path, "./app/vmagent", tmp_path / "vmagent-prod").exists()
    assert packed == [f"-s -w -X {build.program.version_variable}=vmagent-v{build.version}"]
    told_version = "1.0.0"
    with pytest.raises(host.Problem, match=r"says 'vmagent-v1\.0\.0' and not version"):
        builds.compile_program(build, "go", tmp_path, "./app/vmagent", tmp_path / "vmagent-prod")


def test_the_collector_is_the_one_that_the_role_installs(tmp_path, monkeypatch):
    (build,) = builds.parse(["otel_collector"])
    version = builds.supported("otel_collector")[0]
    assert build.url.endswith(f"/opentelemetry-collector-releases/releases/download/v{version}/{build.path.name}")
    assert build.path.name == f"otelcol-contrib_{version}_linux_amd64.tar.gz"
    in_table = builds.checksums("otel_collector")[version]["amd64"]
    assert build.member == "otelcol-contrib" and f"sha256:{build.released_checksum}" == in_table
    assert build.version == version
    before = build.recipe
    lock = tmp_path / "go.sum"
    lock.write_text("another")
    monkeypatch.setattr(collector, "HERE", tmp_path)
    assert build.recipe != before, "another lock is another program"


def test_the_collectors_source_is_made_by_upstreams_builder_and_locked(tmp_path, monkeypatch):
    ran = []

    def run(argv, **options):
        ran.append(argv)
        (tmp_path / "collector").mkdir(exist_ok=True)

    monkeypatch.setattr(host, "run", run)
    source = collector.generate("go", {}, tmp_path)
    assert ran[0][-1] == f"go.opentelemetry.io/collector/cmd/builder@v{collector.version()}"
    assert {"--skip-compilation", "--skip-get-modules"} <= set(ran[1])
    wanted = yaml.safe_load((tmp_path / "builder.yaml").read_text())
    assert wanted["dist"]["output_path"] == str(source)
    for name in ("go.mod", "go.sum"):
        assert (source / name).read_text() == (collector.HERE / name).read_text()


def test_mirror_keeps_host_and_path_of_the_origin():
    (build,) = builds.parse(["promtail"])
    assert str(build.path.relative_to(builds.MIRROR)) == build.url.removeprefix("https://")


@pytest.mark.parametrize("name", ["prometheus", "promtail@9.9.9"])
def test_unknown_names_are_refused_with_the_choices(name):
    with pytest.raises(host.Problem, match="choose from"):
        builds.parse([name])


@pytest.mark.parametrize(
    ("version", "enough"), [("go1.27.0", False), ("go1.27.1", True), ("go1.28", True), ("go2.0", True), ("", False)]
)
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


ARCHIVE = b"the released archive"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache; a build only writes a word."""

    def make(build):
        unfinished = build.path.with_suffix(".part")
        unfinished.write_text("built here")
        build.keep(unfinished, build.recipe)

    monkeypatch.setattr(builds, "MIRROR", tmp_path)
    monkeypatch.setattr(builds, "make", make)


@pytest.fixture
def origin(monkeypatch):
    """A server with upstream's files under the same paths; return the list of requested paths."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(ARCHIVE)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        move(monkeypatch, server.server_port)
        yield requests
        server.shutdown()


def move(monkeypatch, port):
    """Set upstream's origin to a port of this machine."""
    for name, program in builds.PROGRAMS.items():
        there = program.origin.replace("https://github.com", f"http://127.0.0.1:{port}")
        monkeypatch.setitem(builds.PROGRAMS, name, dataclasses.replace(program, origin=there))


@pytest.mark.parametrize("name", builds.PROGRAMS)
def test_the_released_archive_is_taken_where_its_origin_answers(cache, origin, monkeypatch, name):
    sum_of_it = hashlib.sha256(ARCHIVE).hexdigest()
    monkeypatch.setattr(builds.Build, "released_checksum", sum_of_it)
    (built,) = builds.ensure([name])
    assert Path(built["archive"]).read_bytes() == ARCHIVE
    assert built["checksum"] == f"sha256:{sum_of_it}"
    assert builds.ensure([name]) == [built] == builds.listing()
    assert len(origin) == 1


def test_a_released_archive_with_another_sum_is_not_used(cache, origin):
    # The checksum is that of the role's table.
    with pytest.raises(host.Problem, match=rf"{builds.parse(['promtail'])[0].released_checksum}.*do not use it"):
        builds.ensure(["promtail"])
    assert builds.listing() == []


def test_a_version_without_a_sum_in_the_role_is_made_here(cache, origin):
    assert not builds.parse(["victoria_logs"])[0].released_checksum
    (built,) = builds.ensure(["victoria_logs"])
    assert (Path(built["archive"]).read_text(), origin) == ("built here", [])


def test_what_is_made_here_is_kept_where_the_origin_does_not_answer(cache, monkeypatch):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setattr(builds, "ORIGIN_TIMEOUT", 0.1)
        move(monkeypatch, silent.getsockname()[1])
        (built,) = builds.ensure(["node_exporter"])
    assert Path(built["archive"]).read_text() == "built here"
    assert built["checksum"] == f"sha256:{hashlib.sha256(b'built here').hexdigest()}"
    assert builds.ensure(["node_exporter"]) == [built] == builds.listing()


def test_changed_archive_is_not_finished(cache):
    (build,) = builds.parse(["promtail"])
    build.path.parent.mkdir(parents=True)
    builds.make(build)
    assert build.finished()
    build.path.write_bytes(b"another")
    assert not build.finished()


@pytest.mark.parametrize("tries, message", [(2, "arrived\n"), (1, None)])
def test_network_requests_are_retried(tmp_path, monkeypatch, tries, message):
    monkeypatch.setattr(host, "PAUSE", 0)
    argv = ["sh", "-c", "test -e seen && echo arrived || { touch seen; echo connection reset >&2; exit 1; }"]
    if message:
        assert host.run(argv, cwd=tmp_path, tries=tries) == message
    else:
        with pytest.raises(host.Problem, match="connection reset; look"):
            host.run(argv, cwd=tmp_path, tries=tries, cure="look")
