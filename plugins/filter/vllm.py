"""Filters that turn the variables of the vllm role into the engine's input."""

from __future__ import annotations

import json
import re

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version

from ..module_utils.engines import adapters, sleep_mode
from ..module_utils.gpu.memory.vllm_start import LORA_RANKS


def engine_config(arguments: dict) -> dict:
    """Return ``arguments`` in the form that every vLLM since 0.15 reads from a ``--config`` file.

    A true switch stays true; a false one becomes ``no-<name>: true``, since the parser drops ``false``. A mapping
    becomes a JSON string and a list of mappings a list of JSON strings, since the parser would pass on their Python
    form. Null removes an argument. Source: vllm/utils/argparse_utils.py of 0.15.1 and 0.32.0.
    """
    config = {}
    for name, value in arguments.items():
        name = name.lstrip("-").replace("_", "-")
        if value is None:
            config.pop(name, None)
            continue
        if value is False:
            config.pop(name, None)
            config[f"no-{name}"] = True
        elif isinstance(value, dict):
            config[name] = json.dumps(value, sort_keys=True)
        elif isinstance(value, list):
            config[name] = [json.dumps(item, sort_keys=True) if isinstance(item, dict) else item for item in value]
        else:
            config[name] = value
    return config


def lora_modules(wanted: list, paths: dict, base: str) -> list:
    """Return the engine's ``lora-modules``: one mapping per adapter, its directory taken from ``paths`` by its name."""
    return [{"name": each["name"], "path": paths[each["name"]], "base_model_name": base} for each in wanted]


def lora_rank_problem(rank) -> str:
    """Return the rank and the ranks that the engine takes if ``rank`` is none of these; else an empty text."""
    *others, last = (str(each) for each in LORA_RANKS)
    return "" if str(rank) in (*others, last) else f"{rank}; the engine takes {', '.join(others)} or {last}"


def length_told(length: int, arguments: dict) -> int | None:
    """Return the context length in tokens that the engine gets, which its own ``arguments`` may change or remove.

    None if it gets none, or a word such as 8k or auto that it converts to a number itself.
    """
    length_text = str(engine_config({"max-model-len": length, **arguments}).get("max-model-len"))
    return int(length_text) if length_text.isdigit() else None


def completion_probes(models: list, url: str, key: dict, timeout: float) -> list:
    """Return one ``completion`` probe per model; ``key`` says where the key is (module_utils/release/probes.py)."""
    return [{"completion": {**key, "url": url, "model": name, "timeout": timeout}} for name in models]


def completion_checks(models: list, url: str, bearer: str, timeout: float, label: str, unit: str) -> list:
    """Return one checklist row for each model, its answer to a prompt; see module_utils/release/checklist.py.

    ``label`` is the engine's name in the checklist, ``unit`` the name of its service.
    """
    options = {"url": url, "prompt": "Write one short sentence about a rented home:", "timeout": timeout}
    return [
        {
            "what": f"{label}: {name} answers",
            "kind": "completion",
            "bearer": bearer,
            "options": {**options, "model": name},
            "cure": f"Read journalctl -u {unit}, then run the playbook again.",
        }
        for name in models
    ]


def known_problems(version: str, table: dict, transformers: str, python: str, quirks: dict) -> dict:
    """Return ``{"refused": [...], "advised": [...]}`` for an engine version, from the table in data/vllm/versions.yml.

    ``transformers`` and ``python`` are the versions it will run with ("" if not known yet); ``quirks`` has the settings
    of the engine: ``{"enforce_eager": bool, "gpu": str, "model": str, "revision": str, "trust_remote_code": bool}``.
    """
    refused, advised = [], []
    row = table["engines"].get(version)
    wanted = _version(version)
    if row is None:
        known = ", ".join(table["engines"])
        refused.append(
            f"vllm_version {version} is not in data/vllm/versions.yml (known: {known}); take one of these or add a row."
        )
    else:
        if python and not _within(python, row["python"]):
            refused.append(f"vllm_version {version} runs on Python {row['python']}; this host has {python}.")
        if transformers and not _within(transformers, row["transformers"]):
            refused.append(f"vllm_version {version} needs transformers {row['transformers']}, not {transformers}.")
    for quirk in table["quirks"]:
        if _within(version, quirk["engines"]) and all(quirks.get(key) == value for key, value in quirk["when"].items()):
            (refused if quirk["refuse"] else advised).append(f"{quirk['says']} {quirk['cure']}")
    for advisory in table["advisories"]:
        applies = all(quirks.get(key) == value for key, value in advisory.get("when", {}).items())
        if applies and wanted and wanted < Version(advisory["fixed"]):
            advised.append(
                f"{advisory['id']} ({advisory['says']}) is fixed in {advisory['fixed']}; vllm_version is {version}."
            )
    return {"refused": refused, "advised": advised}


def runtime_needs(version: str, table: dict, asked: dict, environment: dict, python: str) -> dict:
    """Return what an engine needs on a GPU host while it runs, from ``compiled`` in data/vllm/versions.yml.

    ``asked`` are settings of the engine, such as ``{"enforce_eager": bool}``; ``environment`` are the inventory's
    variables of the engine; ``python`` is the interpreter's path. The result has ``compiles`` (ids of rows),
    ``packages`` (names), ``environment`` (variables set by default) and ``advised`` (sentences about these).
    """
    needs = {"compiles": [], "packages": [], "environment": {}, "advised": []}
    for row in table["compiled"]:
        if not _within(version, row["engines"]) or any(
            asked.get(key) != value for key, value in row.get("when", {}).items()
        ):
            continue
        switches = row.get("environment", {})
        needs["environment"].update(switches)
        if any(str(environment.get(name, off)) == off for name, off in switches.items()):
            needs["advised"] += [f"{row['says']} {row['instead']}"] * (not environment.keys() & switches.keys())
            continue
        needs["compiles"].append(row["id"])
        needs["packages"] += row["packages"] + _python_headers(python) * row.get("python_headers", False)
    return needs


def _python_headers(interpreter: str) -> list:
    """Return the package with the headers of a distribution's interpreter; others include their headers."""
    found = re.fullmatch(r"/usr/bin/(python3(?:\.\d+)?)", interpreter)
    return [f"lib{found[1]}-dev"] if found else []


def pinned_version(texts: list, name: str) -> str:
    """Return the version to which the first of these requirements texts pins ``name``, "" if none does."""
    pin = re.compile(rf"^{re.escape(name)}\s*==\s*([0-9][^\s;\\]*)", re.IGNORECASE | re.MULTILINE)
    return next((found[1] for text in texts if (found := pin.search(text))), "")


def exports_traces(texts: list, version: str, lock: str) -> bool:
    """Return whether the environment from these requirements texts has the exporter of traces.

    vLLM requires it since 0.16; with a ``lock`` it has to be in the texts.
    """
    return bool(pinned_version(texts, "opentelemetry-exporter-otlp")) or (not lock and _within(version, ">=0.16"))


def _version(text: str) -> Version | None:
    """Return a version, None for a text that is none; a pin such as ``4.57.*`` counts as its first version."""
    try:
        return Version(text.removesuffix(".*"))
    except InvalidVersion:
        return None


def _within(version: str, bounds: str) -> bool:
    """Return whether ``version`` meets ``bounds``, such as ``>=3.10,<3.13``; a pre-release counts as in PEP 440."""
    found = _version(version)
    return found is not None and SpecifierSet(bounds).contains(found, prereleases=True)


class FilterModule:
    def filters(self):
        return {
            "completion_checks": completion_checks,
            "completion_probes": completion_probes,
            "engine_config": engine_config,
            "exports_traces": exports_traces,
            "known_problems": known_problems,
            "length_told": length_told,
            "lora_modules": lora_modules,
            "lora_rank_problem": lora_rank_problem,
            "pinned_version": pinned_version,
            "runtime_needs": runtime_needs,
            "sleep_arguments": sleep_mode.arguments,
            "sleep_variables": sleep_mode.variables,
            "vllm_unpinned": adapters.without_commit,
        }
