"""Write the table of variables into each role's page, from the role's argument specs.

`python docs/generate.py` writes, `--check` only lists the pages that are out of date (exit code 1). A page is
docs/roles/<role>.md: hand-written text, and one generated block between two marks. A role without a page gets a new
one.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- variables: written by docs/generate.py from meta/argument_specs.yml -->"
END = "<!-- end of variables -->"
# Defaults that are templates, and their text in the table; see newest_version in plugins/filter/releases.py.
MEANINGS = {
    re.compile(r"\{\{ __\w+_checksums \| llm\.server\.newest_version \}\}"): "newest in the table",
    re.compile(r"\{\{ download_mirror \| default\(''\) \}\}"): "`download_mirror`",
}


def specification(role: str) -> dict[str, Any]:
    """Return the main entry point of a role's argument specs: short_description, description, options."""
    text = (ROOT / "roles" / role / "meta" / "argument_specs.yml").read_text()
    return yaml.safe_load(text)["argument_specs"]["main"]


def defaults(role: str) -> dict[str, Any]:
    """Return the role's defaults, without rendering templates."""
    path = ROOT / "roles" / role / "defaults" / "main.yml"
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


def roles() -> list[str]:
    """Return the roles that have argument specs."""
    return sorted(path.parent.parent.name for path in ROOT.glob("roles/*/meta/argument_specs.yml"))


def page(role: str) -> Path:
    """Return the path of the role's page."""
    return ROOT / "docs" / "roles" / f"{role}.md"


def plain(text: str | list[str]) -> str:
    """Convert Ansible's markup (`C(x)`, `V(x)`, `O(x)`, `M(x)`) to Markdown on one line, for a cell of a table."""
    joined = " ".join([text] if isinstance(text, str) else text)
    joined = re.sub(r"\b[CVOM]\(((?:[^()]|\([^()]*\))*)\)", r"`\1`", joined)
    return re.sub(r"\s+", " ", joined).replace("|", r"\|").strip()


def kind(option: dict[str, Any]) -> str:
    """Return the type of a variable, with the type of a list's elements and the choices."""
    name = option.get("type", "str")
    if "elements" in option:
        name = f"{name} of {option['elements']}"
    if "choices" in option:
        name += ": " + ", ".join(f"`{choice}`" for choice in option["choices"])
    return name


def default(option: dict[str, Any]) -> str:
    """Return a variable's default as a cell of the table."""
    if option.get("required"):
        return "**required**"
    if option.get("default") is None:
        return ""
    value = option["default"]
    text = value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
    for template, meaning in MEANINGS.items():
        if template.fullmatch(text):
            return meaning
    return f"`{text.strip()}`".replace("|", r"\|").replace("\n", " ")


def rows(options: dict[str, Any], prefix: str = "") -> list[str]:
    """Return one line of the table per variable, followed by the lines of its suboptions."""
    lines = []
    for name, option in options.items():
        cells = [f"`{prefix}{name}`", kind(option), default(option), plain(option["description"])]
        lines.append("| " + " | ".join(cells) + " |")
        if "options" in option:
            inner = f"{prefix}{name}[]." if option.get("type") == "list" else f"{prefix}{name}."
            lines += rows(option["options"], inner)
    return lines


def block(role: str) -> str:
    """Return the generated block of a role's page, including its marks."""
    head = ["| variable | type | default | meaning |", "| --- | --- | --- | --- |"]
    return "\n".join([BEGIN, "", *head, *rows(specification(role).get("options") or {}), "", END])


def beginning(role: str) -> str:
    """Return a page for a role that has none."""
    about = specification(role)
    return f"# {role}\n\n{plain(about['description'])}\n\n## Variables\n\n{BEGIN}\n{END}\n"


def render(role: str, text: str) -> str:
    """Return a page's text with its block regenerated. Raises ValueError if the marks are missing."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{page(role).relative_to(ROOT)} must have each of these lines once: {BEGIN} … {END}")
    before, rest = text.split(BEGIN)
    return before + block(role) + rest.split(END)[1]


def main(arguments: list[str]) -> int:
    """Write or check the pages; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only list the pages that are out of date")
    options = parser.parse_args(arguments)
    old = []
    for role in roles():
        path = page(role)
        written = path.read_text() if path.exists() else beginning(role)
        wanted = render(role, written)
        if not path.exists() or wanted != written:
            old.append(str(path.relative_to(ROOT)))
            if not options.check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(wanted)
    for name in old:
        print(f"{name}: {'is out of date; run docs/generate.py' if options.check else 'written'}")
    return int(options.check and bool(old))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
