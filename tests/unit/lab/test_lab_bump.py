"""`make bump` with a loopback server as the programs' origin."""

from __future__ import annotations

import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import yaml

from lab import builds, bump
from lab.host import ROOT, Problem

AMD64, ARM64 = "a1" * 32, "b2" * 32
LOKI = "/github.com/grafana/loki/releases/download/v9.0.0/SHA256SUMS"
BOTH = f"{AMD64}  promtail-linux-amd64.zip\n{ARM64}  promtail-linux-arm64.zip\n{'c3' * 32}  loki-linux-amd64.zip\n"
NEWEST = builds.supported("promtail")[0]
PROGRAMS = sorted(path.parts[-3] for path in ROOT.glob("roles/*/vars/main.yml") if "_sums_url:" in path.read_text())


@pytest.fixture
def roles(tmp_path):
    """A copy of the roles' variables that tests may change."""
    for path in ROOT.glob("roles/*/vars/main.yml"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True)
        shutil.copy(path, copy)
    return tmp_path / "roles"


@pytest.fixture
def origin():
    """A server with the given texts by path, and a status for all other paths; yield (base URL, texts, paths asked)."""
    texts, requests = {}, []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            found = texts.get(self.path, 404)
            self.send_response(found if isinstance(found, int) else 200)
            self.end_headers()
            self.wfile.write(b"" if isinstance(found, int) else found.encode())

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", texts, requests
        server.shutdown()


def table(roles, program="promtail"):
    return yaml.safe_load((roles / program / "vars/main.yml").read_text())[f"__{program}_checksums"]


def test_a_new_release_is_one_row_and_the_default(roles, origin):
    url, texts, requests = origin
    texts[LOKI] = BOTH
    before = (roles / "promtail/vars/main.yml").read_text()
    shown = bump.bump("promtail", "9.0.0", url, roles)
    assert requests == [LOKI]
    after = table(roles)
    assert list(after)[-1] == "9.0.0"
    assert after["9.0.0"] == {"amd64": f"sha256:{AMD64}", "arm64": f"sha256:{ARM64}"}
    added = [line[1:] for line in shown.splitlines() if line.startswith("+") and not line.startswith("+++")]
    assert [line for line in shown.splitlines() if line.startswith("-") and not line.startswith("---")] == []
    assert added == [
        "  # From the checksum list of the release.",
        '  "9.0.0":',
        f"    amd64: sha256:{AMD64}",
        f"    arm64: sha256:{ARM64}",
    ]
    # All other lines, including comments, are unchanged.
    written = (roles / "promtail/vars/main.yml").read_text()
    assert written.replace("\n".join(added) + "\n", "") == before


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_has_its_archives_in_the_list(program, roles, origin):
    url, texts, requests = origin
    variables = bump.variables_of(program, roles)
    for architecture, value in (("amd64", AMD64), ("arm64", ARM64)):
        addresses = [
            bump.address(variables, template, program, "9.1.2", architecture)
            for template in (variables[f"__{program}_sums_url"], variables[f"__{program}_program"]["url"])
        ]
        listing, archive = (each.removeprefix("https:/") for each in addresses)
        # The list is in the archive's directory.
        assert listing.rpartition("/")[0] == archive.rpartition("/")[0]
        texts[listing] = texts.get(listing, "") + f"{value}  {archive.rpartition('/')[2]}\n"
    bump.bump(program, "9.1.2", url, roles)
    assert table(roles, program)["9.1.2"] == {"amd64": f"sha256:{AMD64}", "arm64": f"sha256:{ARM64}"}
    assert set(requests) == texts.keys()


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_archive_is_the_one_that_the_laboratory_builds(program):
    variables = bump.variables_of(program)
    (build,) = [one for one in builds.parse([]) if (one.program.role or one.name) == program]
    assert (
        bump.address(variables, variables[f"__{program}_program"]["url"], program, build.version, "amd64") == build.url
    )


@pytest.mark.parametrize(
    ("version", "place"), [("1.0.0", 0), ("1.9.5", 3), ("1.10.0", 3), ("1.10.3-rc.1", 3), ("1.11.0", 4)]
)
def test_the_order_by_version_stays(version, place):
    text = (ROOT / "roles/node_exporter/vars/main.yml").read_text()
    head = text.index("__node_exporter_checksums:")
    rows = "".join(
        f'  "{each}":\n    amd64: sha256:{AMD64}\n    arm64: sha256:{ARM64}\n'
        for each in ("1.8.2", "1.9.0", "1.9.1", "1.10.3")
    )
    text = f"{text[:head]}__node_exporter_checksums:\n{rows}\n# After it.\nother: 1\n"
    after = bump.with_row(text, "node_exporter", version, {"amd64": ARM64, "arm64": AMD64})
    assert list(yaml.safe_load(after)["__node_exporter_checksums"]).index(version) == place
    assert after.endswith("\n\n# After it.\nother: 1\n")


def test_a_comment_stays_with_its_row():
    row = f'  "{{}}":\n    amd64: sha256:{AMD64}\n    arm64: sha256:{ARM64}\n'
    text = "__x_checksums:\n  # From two records.\n" + row.format("2.0") + "  # Only here.\n" + row.format("3.0")
    after = bump.with_row(text, "x", "2.5", {"amd64": ARM64, "arm64": AMD64})
    assert (
        after.index("# Only here.") > after.index('"2.5"') > after.index('"2.0"') > after.index("# From two records.")
    )


@pytest.mark.parametrize(
    ("program", "version", "answer", "sentence"),
    [
        ("promtail", "9.0.0", 404, "SHA256SUMS answers 404; correct VERSION, or wait until the release is complete."),
        ("promtail", "9.0.0", 503, "SHA256SUMS answers 503; try again later."),
        ("promtail", "9.0.0", BOTH.splitlines()[0], "has no line for promtail-linux-arm64.zip; take a version that"),
        ("promtail", "9.0.0", "", "has no line for promtail-linux-amd64.zip"),
        ("promtail", "9.0.0", BOTH.replace(AMD64, "a1" * 20), f"has '{'a1' * 20}' for promtail-linux-amd64.zip, which"),
        (
            "promtail",
            "9.0.0",
            BOTH.replace(ARM64, "B2" * 32),
            "which is not a SHA-256; do not use it before you know why.",
        ),
        (
            "promtail",
            "9.0.0",
            BOTH.replace(ARM64, AMD64),
            "has the same checksum for every architecture; do not use it",
        ),
        ("promtail", "9.0.0", BOTH + BOTH.replace(AMD64, ARM64), "has several checksums for promtail-linux-amd64.zip"),
        ("promtail", "9.0.0", "<html>" * 200_000, "has more than 1 MiB, so it is not a checksum list"),
        (
            "promtail",
            NEWEST,
            BOTH,
            f"promtail {NEWEST} is already in the table of roles/promtail/vars/main.yml; nothing to",
        ),
        ("promtail", "v9.0.0", BOTH, "VERSION v9.0.0 is not a version; write it like "),
        ("promtail", "latest", BOTH, "VERSION latest is not a version; write it like "),
        ("promtail", "9.0.0/../..", BOTH, "is not a version; write it like "),
        ("promtall", "9.0.0", BOTH, "PROGRAM promtall has no checksum table: use alertmanager, "),
        ("vmalert", "9.0.0", BOTH, "its table is that of vmagent, so bump vmagent."),
        ("../promtail", "9.0.0", BOTH, "PROGRAM ../promtail has no checksum table"),
    ],
)
def test_nothing_is_written_for_what_cannot_be_right(roles, origin, program, version, answer, sentence):
    url, texts, _ = origin
    texts[LOKI] = answer
    before = {path: path.read_bytes() for path in roles.rglob("*.yml")}
    with pytest.raises(Problem) as refused:
        bump.bump(program, version, url, roles)
    assert sentence in str(refused.value)
    assert str(refused.value).endswith(".") and "\n" not in str(refused.value)
    assert {path: path.read_bytes() for path in roles.rglob("*.yml")} == before


def test_an_origin_that_does_not_answer_is_one_sentence(roles):
    with pytest.raises(Problem, match=r"cannot be read \(.*\); try again, or name a mirror with MIRROR=URL\.$"):
        bump.bump("promtail", "9.0.0", "http://127.0.0.1:9", roles)


def test_the_command_reports_errors_and_what_is_left_to_do(capsys, monkeypatch):
    assert bump.main(["nothing", "1.0.0"]) == 2
    assert capsys.readouterr().err.startswith("error: PROGRAM nothing has no checksum table")
    monkeypatch.setattr(bump, "bump", lambda *_: "+ a row\n")
    version = builds.supported("node_exporter")[0]
    assert bump.main(["node_exporter", version]) == 0
    output = capsys.readouterr()
    assert output.out == "+ a row\n"
    assert f"go mod download -json github.com/prometheus/node_exporter@v{version}" in output.err
    assert bump.main(["node_exporter", "1.8.2"]) == 0
    assert f"The default of node_exporter_version stays {version}." in capsys.readouterr().err
