"""The newest version of a checksum table, which is the default of a role."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from plugins.filter import releases
from plugins.module_utils.install import release_table

ROLES = Path(__file__).resolve().parents[3] / "roles"


@pytest.mark.parametrize(
    ("versions", "newest"),
    [
        (["1.8.2", "1.9.1", "1.10.3"], "1.10.3"),
        (["1.10.3", "1.9.0"], "1.10.3"),
        (["2.0.1"], "2.0.1"),
        (["1.22.12", "1.23.2", "1.23.10"], "1.23.10"),
        (["1.0-1", "1.1-1"], "1.1-1"),
        # A pre-release is never the default.
        (["0.27.0", "0.28.0-rc.0"], "0.27.0"),
        (["2.0.0rc1", "2.0.0-beta.2", "1.9"], "1.9"),
        (["1.2.0", "1.2.0-rc.1"], "1.2.0"),
    ],
)
def test_versions_are_compared_as_numbers(versions, newest):
    assert release_table.newest(versions) == newest
    assert releases.newest_version({version: {} for version in versions}) == newest


@pytest.mark.parametrize(
    "rising",
    [
        ["1.0.0-alpha.1", "1.0.0-beta.1", "1.0.0-rc.1", "1.0.0-rc.2", "1.0.0-rc.10", "1.0.0", "1.0.1"],
        ["0.9.9", "0.10.0rc1", "0.10.0", "0.10.0-1", "0.10.0-2"],
        ["9", "9.1", "10"],
    ],
)
def test_the_order(rising):
    assert sorted(reversed(rising), key=release_table.parsed) == rising


@pytest.mark.parametrize("text", ["", "v1.0", "1.", "1..0", "latest", "1.0 ", "1.0-x", "\u0661.0", "1.0\n"])
def test_not_a_version(text):
    with pytest.raises(ValueError, match=r"is not a version, such as 1\.10\.0; correct it in the checksum table\.$"):
        release_table.parsed(text)


def test_newest_first():
    assert release_table.newest_first(["1.9.0", "1.10.3", "1.11.0-rc.0", "1.8.2"]) == ["1.10.3", "1.9.0", "1.8.2"]


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({}, "The checksum table has no release (known: none); add one, or set the role's version."),
        ({"1.0.0-rc.1": {}}, "no release (known: 1.0.0-rc.1)"),
        ({"1.0.0": {}, "latest": {}}, "latest is not a version, such as 1.10.0; correct it in the checksum table."),
    ],
)
def test_a_table_without_a_release_is_one_sentence(table, sentence):
    with pytest.raises(AnsibleFilterError) as failure:
        releases.newest_version(table)
    assert sentence in str(failure.value)


def tables():
    """Return ``(role, name of the table)`` of every checksum table of a role."""
    for path in sorted(ROLES.glob("*/vars/main.yml")):
        variables = yaml.safe_load(path.read_text()) or {}
        yield from ((path.parts[-3], name) for name in variables if name.endswith("_checksums"))


@pytest.mark.parametrize(("role", "table"), list(tables()))
def test_the_default_of_a_version_is_the_newest_of_its_table(role, table):
    variable = table.removeprefix("__").replace("_checksums", "_version")
    defaults = yaml.safe_load((ROLES / role / "defaults/main.yml").read_text())
    assert defaults[variable] == f"{{{{ {table} | llm.server.newest_version }}}}"


def test_every_released_program_has_a_table():
    callers = {path.parts[-3] for path in ROLES.glob("*/tasks/main.yml") if "released_service\n" in path.read_text()}
    assert callers == {role for role, _ in tables()} - {"cuda_keyring", "dcgm_exporter"}
