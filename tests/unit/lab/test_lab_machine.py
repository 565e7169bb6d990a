"""The laboratory's decisions before it starts anything."""

import socket
from pathlib import Path

import pytest

from lab import host, image, machine


def test_recipe_digest_follows_every_ingredient():
    base = image.Recipe("debian12", ("deb http://m/debian bookworm main",), (), ("python3",), "true", ())
    other = image.Recipe("debian12", ("deb http://m/debian bookworm main",), (), ("python3", "sudo"), "true", ())
    assert base.tag != other.tag
    assert base.tag == image.Recipe(**base.__dict__).tag


def test_sources_use_the_mirrors_of_the_host():
    targets = (
        "Debian|Debian|http://mirror.example/debian/\n"
        "Debian|Debian-Security|http://mirror.example/security/\n"
        "Docker|Docker CE|http://other.example/\n"
    )
    addresses = image.archive_addresses(targets)
    assert image.sources("debian13", addresses) == (
        "deb http://mirror.example/debian trixie main",
        "deb http://mirror.example/debian trixie-updates main",
        "deb http://mirror.example/security trixie-security main",
    )


def test_mirror_lists_of_cloud_images_are_followed(tmp_path):
    listed = tmp_path / "debian.list"
    listed.write_text("# mirrors\nhttp://near.example/debian priority:1\nhttp://far.example/debian\n")
    assert image.first_mirror(f"mirror+file:{listed}") == "http://near.example/debian"


def test_a_host_without_debian_mirror_is_refused_with_the_cure():
    with pytest.raises(host.Problem, match="needs a Debian host"):
        image.sources("debian12", image.archive_addresses("Ubuntu|Ubuntu|http://mirror.example/ubuntu/"))


def test_unknown_platform_names_the_choices():
    with pytest.raises(host.Problem, match="debian11, debian12, debian13, bare"):
        image.recipe("debian10")


def test_only_settings_that_reach_packages_are_taken_from_the_host():
    dump = (
        'Acquire::http::Proxy "http://proxy.example:3128";\nAPT::Architecture "amd64";\nAcquire::Check-Date "false";\n'
    )
    assert image.apt_options(dump)[1:] == (
        'Acquire::http::Proxy "http://proxy.example:3128";',
        'Acquire::Check-Date "false";',
    )


def test_machines_are_not_privileged_and_never_on_the_network_of_the_host():
    command = machine.create_command("m", "debian12", "tag", "10.0.0.2", "1g", [], [], Path("/models"))
    assert "--privileged" not in command
    assert command[command.index("--network") + 1] == machine.NETWORK
    assert command[command.index("--systemd") + 1] == "always"


def test_image_has_nothing_that_manages_network_interfaces():
    assert not {"udev", "systemd-networkd", "network-manager", "ifupdown"} & set(image.PACKAGES)


def test_addresses_are_not_given_twice():
    assert machine.free_address("10.0.0.0/29", {"10.0.0.2", "10.0.0.3"}) == "10.0.0.4"
    with pytest.raises(host.Problem, match="full"):
        machine.free_address("10.0.0.0/30", {"10.0.0.2"})


def test_an_address_keeps_its_hardware_address():
    assert machine.hardware_address("10.89.0.2") == "02:4c:0a:59:00:02"


@pytest.mark.parametrize(
    ("text", "port"),
    [("127.0.0.1:8000:8001", ("127.0.0.1", 8000)), ("8000:8001", ("0.0.0.0", 8000))],
)
def test_published_ports_are_read(text, port):
    assert machine.published_ports([text]) == [port]


def test_malformed_port_is_refused_with_the_form():
    with pytest.raises(host.Problem, match="ADDRESS:HOST_PORT:PORT"):
        machine.published_ports(["8000"])


def test_taken_port_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(host.Problem, match=f"127.0.0.1:{port}"):
            host.ensure_port_free("127.0.0.1", port)


def test_missing_room_is_reported_in_gibibytes(tmp_path):
    with pytest.raises(host.Problem, match="1e\\+06 GiB are needed"):
        host.ensure_room(tmp_path / "not" / "yet", 1_000_000, "a test")


def test_failed_command_becomes_one_sentence():
    with pytest.raises(host.Problem, match="no such thing; do that"):
        host.run(["sh", "-c", "echo noise >&2; echo no such thing >&2; exit 3"], cure="do that")
