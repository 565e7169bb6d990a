"""The pages for operations name only what exists: playbooks, targets of make, variables, causes, metrics and pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from plugins.module_utils.engines import engines
from plugins.module_utils.incident import summary

ROOT = Path(__file__).resolve().parents[3]
INDEX = ROOT / "docs/operations.md"
PAGES = sorted((ROOT / "docs/operations").glob("*.md"))
ALERTS = sorted((ROOT / "docs/operations/alerts").glob("*.md"))  # see test_alerts.py
EXPORT = ROOT / "docs/export-watch.md"
STEPS = yaml.safe_load((ROOT / "playbooks/vars/incident.yml").read_text())["incident_steps"]
SPECS = {
    name
    for path in (ROOT / "roles").glob("*/meta/argument_specs.yml")
    for name in yaml.safe_load(path.read_text())["argument_specs"]["main"].get("options") or {}
}
ROLES = "|".join(path.name for path in (ROOT / "roles").iterdir())
CAUSES = "\n".join(path.read_text() for path in (ROOT / "data/diagnosis/causes").glob("*.yml"))
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("path", [INDEX, EXPORT, *PAGES, *ALERTS], ids=lambda path: path.stem)
def test_what_a_page_names_exists(path):
    text = path.read_text()
    for playbook in re.findall(r"\bplaybooks/[\w-]+\.yml", text):
        assert (ROOT / playbook).is_file(), playbook
    for target in re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE):
        assert target in TARGETS, target
    for step in re.findall(r"-e step=([\w|]+)", text):
        assert set(step.split("|")) <= set(STEPS), step
    for variable in re.findall(rf"`((?:{ROLES})_\w+)", text):
        known = variable in SPECS or f"id: {variable}\n" in CAUSES or (ROOT / "roles" / variable).is_dir()
        assert known, variable
    for link, anchor in re.findall(r"\]\(([\w./-]+\.md)(#[\w-]+)?\)", text):
        there = (path.parent / link).resolve()
        assert there.is_file(), link
        heads = [re.sub(r"[^\w -]", "", line.lstrip("# ").lower()).replace(" ", "-") for line in
                 there.read_text().splitlines() if line.startswith("#")]  # fmt: skip
        assert not anchor or anchor[1:] in heads, anchor


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_begins_with_its_command_and_is_found(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ") and lines[2] == "```console" and lines[4] == "```"
    assert f"(operations/{path.name})" in INDEX.read_text()
    assert len(lines) < 40, "a page is short"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_causes_that_a_page_names_are_in_the_table(path):
    named = re.findall(r"[Cc]auses?((?:(?: such as)?[\s(,]*(?:and )?`\w+`)+)", path.read_text())
    for cause in re.findall(r"`(\w+)`", " ".join(named)):
        assert f"id: {cause}\n" in CAUSES, cause


def test_the_metrics_of_the_watchdog_exist():
    program = (ROOT / "roles/watchdog/files/watchdog.py").read_text()
    for name in re.findall(r"llm_watchdog_(\w+)", INDEX.read_text()):
        assert f'"{name}":' in program, name


def test_what_is_brought_back_is_the_same_in_playbook_and_rows():
    variables = yaml.safe_load((ROOT / "playbooks/vars/incident.yml").read_text())
    assert variables["incident_recoverable"] == "{{ engines_here | map(attribute='name') | list + ['ai-server'] }}"
    assert (*engines.ROLES, "ai-server") == summary.RECOVERABLE
