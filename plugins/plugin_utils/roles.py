"""The collection's roles as files, for plugins that run on the controller.

Ansible runs each task in a fork of its main process, which has imported the action plugin. So what is read while this
module is imported is read once in a run, and not once in a task.
"""

from __future__ import annotations

import gc
import importlib
import pkgutil
import secrets
from pathlib import Path

import yaml
from ansible.parsing.dataloader import DataLoader

from .. import filter as filters

# A key of this run alone; all tasks of it inherit the same.
KEY = secrets.token_bytes(16)
ROLES = Path(__file__).resolve().parents[2] / "roles"


def _specs() -> dict[str, dict[str, dict]]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = {}
    for path in sorted(ROLES.glob("*/meta/argument_specs.yml")):
        specs = yaml.load(path.read_text(), loader)["argument_specs"]
        found[path.parts[-3]] = specs["main"].get("options") or {}
    return found


def _load(path: Path) -> dict:
    """Return a YAML file as a mapping. Templates in it are trusted; errors name its lines."""
    # Neither kept by the loader nor copied: nothing here changes it.
    return DataLoader().load_from_file(str(path), cache="none", unsafe=True, trusted_as_template=True) or {}


# The options of each role's argument spec: {role: {variable: option}}.
SPECS = _specs()
NAMES = ("defaults/main.yml", "vars/main.yml", "vars/checklist.yml")
FILES = {(path.parts[-3], name): _load(path) for name in NAMES for path in ROLES.glob(f"*/{name}")}
# Roles of released programs; their services have the same names.
RELEASED = sorted(role for role, name in FILES if "released_steps(" in str(FILES[role, name].get(f"__{role}_steps")))
# Filters, too, are imported once: Ansible looks for one in all files of the folder.
for _file in pkgutil.iter_modules(filters.__path__):
    importlib.import_module(f"{filters.__name__}.{_file.name}")
# Objects loaded so far live until the end; without this, garbage collection in each fork would scan and copy them.
gc.freeze()
# A fork lives for one task, so collecting its garbage seldom pays.
gc.set_threshold(50_000)


def read(role: str, name: str) -> dict:
    """Return a YAML file of a role, one of `NAMES`; an empty mapping if there is no such file. Do not change it."""
    return FILES.get((role, name), {})


def scope(role: str, task_vars: dict) -> dict:
    """Return the variables as tasks of the role see them: its defaults, those of the host, its own."""
    return {**read(role, "defaults/main.yml"), **task_vars, **read(role, "vars/main.yml")}
