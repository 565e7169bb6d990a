"""The filters that turn a version into what is downloaded."""

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError

from plugins.filter import releases

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
