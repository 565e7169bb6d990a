"""Each role's page, defaults and argument specs agree."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SPEC = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
generate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(generate)
ROLES = sorted(path.name for path in (ROOT / "roles").iterdir() if path.is_dir())


def disagreements(options: dict, defaults: dict) -> list[str]:
    """Return one sentence per key on which argument specs and defaults disagree."""
    found = [f"{name} has a default and no argument spec" for name in defaults.keys() - options.keys()]
    for name, option in options.items():
        if option.get("required"):
            if name in defaults or "default" in option:
                found.append(f"{name} is required and has a default")
        elif name not in defaults:
            found.append(f"{name} is optional and has no default in defaults/main.yml")
        elif "default" not in option:
            found.append(f"{name} is optional and has no default in its argument spec")
        elif (option["default"], type(option["default"])) != (defaults[name], type(defaults[name])):
            found.append(f"{name} is {option['default']!r} in the argument spec and {defaults[name]!r} in the defaults")
    return sorted(found)


@pytest.mark.parametrize("role", ROLES)
def test_specs_and_defaults_agree(role):
    specification = generate.specification(role)
    assert disagreements(specification.get("options") or {}, generate.defaults(role)) == []


@pytest.mark.parametrize("role", ROLES)
def test_every_variable_is_the_roles_own_and_described(role):
    options = generate.specification(role).get("options") or {}
    assert [name for name in options if not name.startswith(f"{role}_")] == []

    def check(prefix, options):
        for name, option in options.items():
            assert re.search(r"\w", generate.plain(option.get("description", ""))), f"{prefix}{name} has no description"
            check(f"{prefix}{name}.", option.get("options") or {})

    check("", options)


@pytest.mark.parametrize("role", ROLES)
def test_the_page_has_todays_table(role):
    page = generate.page(role)
    assert page.exists(), "run docs/generate.py, then write the prose"
    text = page.read_text()
    assert generate.render(role, text) == text, "run docs/generate.py"


@pytest.mark.parametrize("role", ROLES)
def test_the_page_has_prose_before_its_table(role):
    prose = generate.page(role).read_text().split(generate.BEGIN)[0]
    assert prose.startswith(f"# {role}\n")
    assert len(prose.split()) > 60, "a page says what the role does, when it refuses and how it is used"


@pytest.mark.parametrize(
    "options, defaults, sentence",
    [
        ({"a": {"default": 1}}, {"a": 1}, None),
        ({"a": {"required": True}}, {}, None),
        ({"a": {"default": 1}}, {"a": 2}, "a is 1 in the argument spec and 2 in the defaults"),
        ({"a": {"default": True}}, {"a": 1}, "a is True in the argument spec and 1 in the defaults"),
        ({"a": {"default": 1}}, {}, "a is optional and has no default in defaults/main.yml"),
        ({"a": {}}, {"a": 1}, "a is optional and has no default in its argument spec"),
        ({"a": {"required": True}}, {"a": 1}, "a is required and has a default"),
        ({}, {"a": 1}, "a has a default and no argument spec"),
    ],
)
def test_a_disagreement_is_found(options, defaults, sentence):
    assert disagreements(options, defaults) == ([sentence] if sentence else [])


def test_markup_becomes_markdown():
    text = ["See C(a | b), V(x(y)) and O(z).", "M(service_release)\n  too."]
    assert generate.plain(text) == r"See `a \| b`, `x(y)` and `z`. `service_release` too."


def test_parts_of_a_variable_have_rows_of_their_own():
    options = {
        "x_jobs": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "description": "Jobs.",
            "options": {"job": {"type": "str", "required": True, "description": "Its name."}},
        },
        "x_state": {"choices": ["present", "absent"], "default": "present", "description": "State."},
    }
    assert generate.rows(options) == [
        "| `x_jobs` | list of dict | `[]` | Jobs. |",
        "| `x_jobs[].job` | str | **required** | Its name. |",
        "| `x_state` | str: `present`, `absent` | `present` | State. |",
    ]


def test_hand_written_text_stays(monkeypatch):
    monkeypatch.setattr(generate, "block", lambda role: f"{generate.BEGIN}\nnew\n{generate.END}")
    text = f"# x\n\nprose\n{generate.BEGIN}\nold\n{generate.END}\nmore prose\n"
    assert generate.render("x", text) == f"# x\n\nprose\n{generate.BEGIN}\nnew\n{generate.END}\nmore prose\n"
    with pytest.raises(ValueError, match="must have each of these lines once"):
        generate.render("promtail", "# x\n")


@pytest.mark.parametrize("role", ROLES)
def test_every_download_may_come_from_the_mirror_of_all_roles(role):
    words = ("llm.server.mirrored(", "name: llm.server.released_service")
    downloads = any(word in path.read_text() for path in (ROOT / "roles" / role).rglob("*.yml") for word in words)
    mirror = generate.defaults(role).get(f"{role}_mirror")
    if role != "released_service":  # it gets the mirror from the role that imports it
        assert downloads == (mirror is not None), f"{role} downloads and has no {role}_mirror, or the other way round"
    assert mirror in (None, "{{ download_mirror | default('') }}")
