"""Roles and files of the collection are found wherever it is installed, by full names and by own_path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.errors import AnsibleFilterError

from plugins.filter import own_path

ROOT = Path(__file__).resolve().parents[3]
FILES = [path for folder in ("playbooks", "roles", "molecule") for path in sorted((ROOT / folder).rglob("*.yml"))]
INCLUDES = ("ansible.builtin.include_role", "ansible.builtin.import_role")


def mappings(content: Any) -> Iterator[dict]:
    if isinstance(content, dict):
        yield content
        content = list(content.values())
    for part in content if isinstance(content, list) else ():
        yield from mappings(part)


def roles(path: Path) -> Iterator[str]:
    """Return the roles that a file names: those of plays, and those that tasks include, also by templates."""
    for each in mappings(yaml.safe_load(path.read_text())):
        yield from (each[word]["name"] for word in INCLUDES if word in each)
        if "hosts" in each:
            yield from (role if isinstance(role, str) else role["role"] for role in each.get("roles", ()))


def test_every_role_has_its_full_name():
    named = [(path, role) for path in FILES for role in roles(path)]
    assert len(named) > 60
    assert [(path, role) for path, role in named if not role.startswith("llm.server.")] == []


def test_a_file_of_the_collection_is_found():
    assert Path(own_path.own_path("data/vllm/versions.yml")) == ROOT / "data/vllm/versions.yml"


def test_a_collection_that_lacks_a_folder_is_named():
    with pytest.raises(AnsibleFilterError, match=r"^The collection has no lost/table\.yml: .* install it again\.$"):
        own_path.own_path("lost/table.yml")
