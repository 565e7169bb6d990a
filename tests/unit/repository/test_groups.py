"""The one table of the groups' roles: every role is in it, and has rows in the checklist."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from plugins.module_utils.release import checklist

ROOT = Path(__file__).resolve().parents[3]
VARIABLES = yaml.safe_load((ROOT / "playbooks/vars/groups.yml").read_text())
# Monitoring is a template with one of two log shippers.
MONITORING = ["node_exporter", "promtail", "otel_collector", "vmagent"]
ROLES = [
    role
    for group, roles in VARIABLES["roles_of_groups"].items()
    for role in (MONITORING if group == "monitoring" else roles)
]
ENGINES = ["llama_cpp", "vllm"]
ROW = {"what", "kind", "options", "cure", "bearer", "password"}
# Roles that other roles include.
PARTS = ["released_service", "uv"]


def test_every_role_is_brought_by_a_group_once():
    assert sorted([*ROLES, *ENGINES, *PARTS]) == sorted(path.name for path in (ROOT / "roles").iterdir())
    assert all(role in VARIABLES["roles_of_groups"]["monitoring"] for role in ("node_exporter", "promtail", "vmagent"))


@pytest.mark.parametrize("role", [*ROLES, *ENGINES])
def test_every_role_has_rows_in_the_checklist(role):
    checks = yaml.safe_load((ROOT / "roles" / role / "vars/checklist.yml").read_text())[f"__{role}_checks"]
    named = [check for check in checks if isinstance(check, dict)]
    assert named
    for check in named:
        assert check["kind"] in checklist.KINDS
        assert {"what", "options", "cure"} <= check.keys() <= {*ROW, "when", "outside"}
