"""The steps of batches in roles: ansible-lint does not check them; these tests do."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
SPEC = importlib.util.spec_from_file_location("site_of_the_docs", ROOT / "docs/site.py")
site = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(site)


def each_of(content, wanted: Callable[[dict], bool]) -> Iterator[dict]:
    """Yield the wanted mappings in a file of tasks or of a role's variables; those that a filter makes are not seen."""
    for each in content.values() if isinstance(content, dict) else content or []:
        if isinstance(each, dict) and wanted(each):
            yield each
        elif isinstance(each, dict | list):
            yield from each_of(each, wanted)


def in_roles(name: str, wanted: Callable[[dict], bool]) -> list:
    """Return the wanted mappings in all roles as parameters, each with the value of ``name`` in its id."""
    return [
        pytest.param(each, id=f"{path.parts[-3]}: {each[name]}")
        for folder in ("tasks", "vars")
        for path in sorted((ROOT / "roles").glob(f"*/{folder}/*.yml"))
        for each in each_of(yaml.safe_load(path.read_text()), wanted)
    ]


STEPS = in_roles("name", lambda each: {"module", "options"} <= each.keys())
# Entries that stand for the steps of a role.
ENTRIES = in_roles("role", lambda each: {"role"} == each.keys() - {"vars"} and "{" not in each["role"])


def options_of(module: str) -> dict[str, dict]:
    return site.documentation(ROOT / f"plugins/modules/{module}.py")["DOCUMENTATION"]["options"]


def test_there_are_steps():
    assert len(STEPS) > 8


@pytest.mark.parametrize("step", STEPS)
def test_a_step_is_a_call_that_its_module_takes(step):
    known = options_of("batch")["steps"]["suboptions"]
    assert step.keys() <= known.keys() - {"role", "vars", "group"} and step["module"] in known["module"]["choices"]
    options = options_of(step["module"])
    taken = {place.partition(".")[0] for place in step.get("options_from", {})}
    given = step["options"].keys() | taken
    assert given <= options.keys()
    assert {name for name, option in options.items() if option.get("required")} <= given


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_is_a_role_with_steps_and_variables_that_it_has(entry):
    role = ROOT / "roles" / entry["role"]
    assert f"__{role.name}_steps" in yaml.safe_load((role / "vars/main.yml").read_text())
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    assert entry.get("vars", {}).keys() <= specs.keys()


def test_roles_build_with_their_own_environment_for_uv():
    assert {entry.values[0]["role"] for entry in ENTRIES} > {"uv"}
    nested = [entry.values[0] for entry in ENTRIES if entry.values[0]["role"] == "uv" and "vars" in entry.values[0]]
    assert [set(entry["vars"]) for entry in nested] == [{"uv_build_environment"}] * 2


def at(options, place: str):
    """Return the value at a place such as ``links.0.target``, or None where a template makes it."""
    for word in place.split("."):
        if isinstance(options, str):
            return None
        options = options[int(word)] if word.isdigit() else options.get(word, "")
    return options


@pytest.mark.parametrize("step", [each for each in STEPS if each.values[0].get("options_from")])
def test_what_results_fill_in_is_empty_before(step):
    places = {place: at(step["options"], place) for place in step["options_from"]}
    assert set(places.values()) <= {"", None}
    of_a_file = [place.removeprefix("secrets.0.") for place, value in places.items() if value is None]
    dotenv = yaml.safe_load((ROOT / "roles/ai_server/vars/main.yml").read_text())["__ai_server_dotenv"]
    assert [at(dotenv, place) for place in of_a_file] == [""] * len(of_a_file)
