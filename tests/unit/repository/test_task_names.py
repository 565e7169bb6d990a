"""The scenarios assert which tasks and steps changed something: those that they name are in the roles."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]
TESTS = sorted((ROOT / "molecule").glob("*/tests/*.py"))
NAMED = re.compile(r"(\w+) : ([A-Z].*)")
BATCH = "llm.server.batch"
# A template in a task's name, escaped; and what stands for a field of a formatted text of Python.
TEMPLATE = re.compile(r"\\\{\\\{.*?\\\}\\\}")
FIELD = "\0"


def tasks() -> Iterator[tuple[str, str]]:
    """Yield the role and the name of each task, and of each step of a task that is a batch."""
    for path in sorted((ROOT / "roles").glob("*/tasks/*.yml")):
        pending = list(yaml.safe_load(path.read_text()) or ())
        while pending:
            task = pending.pop()
            if "name" in task:
                yield path.parts[-3], task["name"]
            yield from ((path.parts[-3], name) for name in steps((task.get(BATCH) or {}).get("steps", ())))
            for word in ("block", "rescue", "always"):
                pending += task.get(word, ())


def steps(entries: list[dict]) -> Iterator[str]:
    """Yield the names of a batch's steps; an entry with ``role``, or one with a template, stands for those of roles."""
    for entry in entries:
        if "role" in entry:
            role = "*" if "{{" in entry["role"] else entry["role"]
            for path in sorted((ROOT / "roles").glob(f"{role}/vars/*.yml")):
                yield from named(yaml.safe_load(path.read_text()))
        else:
            yield entry["name"]


def named(content) -> Iterator[str]:
    """Yield the names of the steps in a role's variables; those that a filter makes are not seen."""
    for each in content.values() if isinstance(content, dict) else content or ():
        if isinstance(each, dict) and {"name", "module", "options"} <= each.keys():
            yield each["name"]
        elif isinstance(each, dict | list):
            yield from named(each)


def texts(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else FIELD for part in node.values)


def exists(role: str, name: str, known: dict[str, list[str]]) -> bool:
    """Return whether a task of the role can have the name, whatever its template and the name's fields are."""
    return any(re.fullmatch(TEMPLATE.sub(".+", re.escape(task)), name) for task in known[role])


def test_the_tasks_that_scenarios_name_exist():
    known: dict[str, list[str]] = {}
    for role, name in tasks():
        known.setdefault(role, []).append(name)
    named = {
        (path.parts[-3], *match.groups())
        for path in TESTS
        for text in texts(path)
        if (match := NAMED.fullmatch(text)) and match[1] in known
    }
    assert len(named) > 15
    assert [each for each in sorted(named) if not exists(*each[1:], known)] == []
