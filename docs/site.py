"""Hooks of mkdocs: pages from outside docs/, pages of modules and filters from their documentation, the navigation."""

from __future__ import annotations

import ast
import importlib
import inspect
import posixpath
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))
import generate

ROOT = generate.ROOT
# Pages that are in the folder that they describe: path in the repository → path in the site.
ELSEWHERE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "lab/README.md": "laboratory.md",
    "data/diagnosis/README.md": "reference/diagnosis.md",
    "data/gpu_memory/README.md": "reference/gpu-memory.md",
}
CONCEPTS = ("architecture", "engines", "gpu-memory", "gpu-host", "ai-server", "watching", "dashboards", "diagnosis")
RUNNING = ("operations", "google-cloud", "load", "export-watch")
FIGURES = ("benchmarks", "drill", "field-reports")
LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\[\]]*\])*)\]\(([^()\s]+)\)")
MARKED = re.compile(r"\b[PMLRU]\(([^(),]+)[^()]*\)")


def modules() -> dict[str, Path]:
    """Return the paths of the modules by full name."""
    return {f"llm.server.{path.stem}": path for path in sorted((ROOT / "plugins/modules").glob("*.py"))}


def constants(body: list[ast.stmt]) -> dict[str, Any]:
    """Return the constants that statements assign, by name."""
    assigned = [node for node in body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)]
    return {node.targets[0].id: node.value.value for node in assigned}


def plugin(name: str) -> ModuleType:
    """Return a module of plugins/, such as filter.engines."""
    # mkdocs restores the search path once it has loaded this file.
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return importlib.import_module(f"plugins.{name}")


def fragment(name: str) -> dict[str, Any]:
    """Return the options of a documentation fragment such as llm.server.service.account."""
    file, *part = name.removeprefix("llm.server.").split(".")
    holder = plugin(f"doc_fragments.{file}").ModuleDocFragment
    return yaml.safe_load(getattr(holder, "".join(part).upper() or "DOCUMENTATION"))["options"]


def documentation(path: Path) -> dict[str, Any]:
    """Return a module's DOCUMENTATION, EXAMPLES and RETURN, by name; the examples as text."""
    found = constants(ast.parse(path.read_text()).body)
    read = {name: yaml.safe_load(found[name]) for name in ("DOCUMENTATION", "RETURN") if name in found}
    described = read["DOCUMENTATION"]
    shared = [fragment(name) for name in described.get("extends_documentation_fragment", [])]
    # As in Ansible: an option of the module takes what it does not say itself from a fragment.
    options: dict[str, Any] = {}
    for given in [*shared, described.get("options") or {}]:
        for name, option in given.items():
            options[name] = options.get(name, {}) | option
    described["options"] = options
    return {**read, "EXAMPLES": found.get("EXAMPLES", "")}


def text_of(value: str | list[str]) -> str:
    """Return a description as Markdown, on one line."""
    return generate.plain([MARKED.sub(r"`\1`", part) for part in ([value] if isinstance(value, str) else value)])


def nested(options: dict[str, Any]) -> dict[str, Any]:
    """Return options in the form of a role's: suboptions and contained values under ``options``."""
    return {
        name: {
            **option,
            "description": text_of(option["description"]),
            "options": nested(option.get("suboptions") or option.get("contains") or {}),
        }
        for name, option in options.items()
    }


def module_page(name: str, path: Path) -> str:
    """Return the page of a module."""
    about = documentation(path)
    described = about["DOCUMENTATION"]
    lines = [f"# {name}", "", f"{text_of(described['short_description'])}.", ""]
    paragraphs = described["description"]
    lines += [f"- {text_of(part)}" for part in ([paragraphs] if isinstance(paragraphs, str) else paragraphs)]
    check = described.get("attributes", {}).get("check_mode", {})
    if check:
        lines += ["", f"Check mode: {text_of(check['description'])}"]
    lines += ["", "## Options", "", "| option | type | default | meaning |", "| --- | --- | --- | --- |"]
    lines += generate.rows(nested(described.get("options") or {}))
    lines += ["", "## Examples", "", "```yaml", about["EXAMPLES"].strip(), "```", ""]
    if about.get("RETURN"):
        lines += ["## Returned values", "", "| value | type | returned | meaning |", "| --- | --- | --- | --- |"]
        for key, value in about["RETURN"].items():
            cells = (
                f"`{key}`",
                value.get("type", ""),
                text_of(value.get("returned", "")),
                text_of(value["description"]),
            )
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def filters() -> dict[str, dict[str, Callable]]:
    """Return the docstring of each file in plugins/filter, with the file's filter functions by full name."""
    found = {}
    for path in sorted((ROOT / "plugins/filter").glob("*.py")):
        module = plugin(f"filter.{path.stem}")
        named = sorted(module.FilterModule().filters().items())
        found[inspect.getdoc(module)] = {f"llm.server.{name}": function for name, function in named}
    return found


def call(name: str, function: Callable) -> str:
    """Return an example call of a filter, such as ``rows | llm.server.checklist_table(width=60)``."""
    parameters = inspect.signature(function).parameters.values()
    value, *rest = (str(each.replace(annotation=inspect.Parameter.empty)) for each in parameters)
    return f"{value.lstrip('_')} | {name}" + (f"({', '.join(rest)})" if rest else "")


def filters_page() -> str:
    """Return the page of all filters: each one's call and its docstring."""
    lines = ["# Filters"]
    for about, functions in filters().items():
        lines += ["", about]
        for name, function in functions.items():
            text = inspect.getdoc(function).replace("``", "`")
            lines += ["", f"## {name}", "", f"`{call(name, function)}`", "", text]
    return "\n".join(lines) + "\n"


def on_config(config: Any) -> Any:
    """Set the navigation, so that a new page is included by its folder."""

    def folder(name: str) -> list[str]:
        return [path.relative_to(ROOT / "docs").as_posix() for path in sorted((ROOT / "docs" / name).glob("*.md"))]

    deeper = [{"Symptoms": folder("operations")}, {"Alerts": folder("operations/alerts")}]
    reference = ["reference/diagnosis.md", "reference/gpu-memory.md"]
    config.nav = [
        {"Start": ["index.md", "laboratory.md"]},
        {"Concepts": [f"{name}.md" for name in CONCEPTS]},
        {"Roles": folder("roles")},
        {"Operations": [*(f"{name}.md" for name in RUNNING), *deeper]},
        {
            "Reference": [
                {"Modules": [{path.stem: f"reference/modules/{name}.md"} for name, path in modules().items()]},
                "reference/filters.md",
                *reference,
            ]
        },
        {"Figures": [f"{name}.md" for name in FIGURES]},
        {"Contributing": ["contributing.md", "changelog.md"]},
    ]
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from outside docs/ and those of modules and filters."""
    for source, place in ELSEWHERE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    for name, path in modules().items():
        files.append(File.generated(config, f"reference/modules/{name}.md", content=module_page(name, path)))
    files.append(File.generated(config, "reference/filters.md", content=filters_page()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite links to the site's pages; a link to a file outside the site becomes its name."""
    place = page.file.src_uri
    here = {site: source for source, site in ELSEWHERE.items()}.get(place, f"docs/{place}")

    def link(match: re.Match[str]) -> str:
        image, label, target = match.groups()
        if re.match(r"[a-z]+:|#", target):
            return match[0]
        path, mark, anchor = target.partition("#")
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(here), path))
        if wanted.rstrip("/") == "docs/roles":
            wanted = "docs/roles/vllm.md"
        site = ELSEWHERE.get(wanted) or (wanted.removeprefix("docs/") if wanted.startswith("docs/") else "")
        if not site and (ROOT / wanted).exists():
            return f"{label} (`{wanted}`)" if f"`{wanted}`" != label else label
        return f"{image}[{label}]({posixpath.relpath(site or wanted, posixpath.dirname(place) or '.')}{mark}{anchor})"

    parts = re.split(r"(^```.*?^```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts)
