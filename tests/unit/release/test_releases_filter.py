"""The filters that turn a version into what is downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from plugins.filter import releases

ROOT = Path(__file__).resolve().parents[3]
TABLE = {"1.1-1": {"debian12-x86_64": "sha256:aa"}}


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("", "https://h.example/a/b.tar.gz"),
        (None, "https://h.example/a/b.tar.gz"),
        ("http://mirror/base", "http://mirror/base/h.example/a/b.tar.gz"),
        ("http://mirror/base/", "http://mirror/base/h.example/a/b.tar.gz"),
    ],
)
def test_a_mirror_serves_the_origins_host_and_path(base, url):
    assert releases.mirrored("https://h.example/a/b.tar.gz", base) == url


@pytest.mark.parametrize(
    "source", ["git@github.com:NVIDIA/dcgm-exporter.git", "ssh://git@host/a.git", "file:///srv/a.git", "/srv/a.git"]
)
def test_other_addresses_are_returned_unchanged(source):
    assert releases.mirrored(source, "http://mirror/base") == source


def test_a_known_version_gives_its_checksum():
    assert releases.checksum_of(TABLE, "1.1-1", "debian12-x86_64", "x_version") == "sha256:aa"


@pytest.mark.parametrize(
    ("version", "architecture", "sentence"),
    [
        ("1.0", "debian12-x86_64", "x_version: version 1.0 has no checksum (known: 1.1-1); choose"),
        ("1.1-1", "debian13-sbsa", "has no checksum for debian13-sbsa (known: debian12-x86_64); choose"),
        # Versions are not matched by their beginning.
        ("1.1", "debian12-x86_64", "x_version: version 1.1 has no checksum"),
    ],
)
def test_an_unknown_one_is_refused_with_the_known_ones_and_the_variable_that_adds_it(version, architecture, sentence):
    with pytest.raises(AnsibleFilterError) as raised:
        releases.checksum_of(TABLE, version, architecture, "x_version")
    assert sentence in str(raised.value) and "by x_checksums" in str(raised.value)


PROGRAM = {
    "name": "app",
    "state": "present",
    "version": "1.1",
    "url": "https://h.example/app-1.1.tar.gz",
    "checksums": {"1.1": {"amd64": "sha256:aa", "arm64": "sha256:bb"}},
    "mirror": "http://mirror",
    "ca_path": "",
    "unit": {"Service": {"ExecStart": "/opt/app/current/app"}},
    "probes": [{"http": {"url": "http://127.0.0.1:1/"}}],
}


@pytest.mark.parametrize(("machine", "checksum"), [("x86_64", "sha256:aa"), ("aarch64", "sha256:bb")])
def test_a_released_program_is_one_step(machine, checksum):
    (step,) = releases.released_steps(PROGRAM, machine)
    assert (step["name"], step["module"], step["register"]) == ("Run app", "service_release", "app")
    assert step["options"] == {
        "name": "app",
        "state": "present",
        "user": "app",
        "unit": PROGRAM["unit"],
        "probes": PROGRAM["probes"],
        "start_timeout": 30,
        "program": {
            "version": "1.1",
            "url": "http://mirror/h.example/app-1.1.tar.gz",
            "checksum": checksum,
            "member": None,
            "ca_path": None,
        },
    }


@pytest.mark.parametrize("option", releases.GIVEN)
def test_what_a_program_declares_reaches_its_release(option):
    (step,) = releases.released_steps({**PROGRAM, option: ["declared"]}, "x86_64")
    assert step["options"][option] == ["declared"]


def test_every_option_of_a_program_is_used():
    spec = yaml.safe_load((ROOT / "roles/released_service/meta/argument_specs.yml").read_text())["argument_specs"]
    options = spec["main"]["options"]["released_service_program"]["options"]
    assert {*PROGRAM, *releases.GIVEN, "user", "member", "start_timeout"} == options.keys()


def test_a_program_has_its_own_user_member_and_time():
    own = {"user": "other", "member": "app-prod", "start_timeout": 90, "ca_path": "/etc/ca.pem"}
    (step,) = releases.released_steps({**PROGRAM, **own}, "x86_64")
    assert (step["options"]["user"], step["options"]["start_timeout"]) == ("other", 90)
    assert (step["options"]["program"]["member"], step["options"]["program"]["ca_path"]) == ("app-prod", "/etc/ca.pem")


def test_a_removal_needs_no_checksum_and_removes_the_program_after_the_service():
    service, program = releases.released_steps(
        {**PROGRAM, "state": "absent", "purge": True, "checksums": {}}, "riscv64"
    )
    assert (service["name"], service["options"]["state"], service["options"]["purge"]) == ("Remove app", "absent", True)
    assert "program" not in service["options"]
    assert (program["module"], program["options"]) == ("released_program", {"name": "app", "state": "absent"})


def test_a_version_or_machine_without_a_release_is_named():
    with pytest.raises(AnsibleFilterError, match=r"^app_version: version 2 has no checksum \(known: 1\.1\)"):
        releases.released_steps({**PROGRAM, "version": "2"}, "x86_64")
    with pytest.raises(
        AnsibleFilterError, match=r"^There are no releases for riscv64; use a host with x86_64 or aarch64"
    ):
        releases.released_steps(PROGRAM, "riscv64")
