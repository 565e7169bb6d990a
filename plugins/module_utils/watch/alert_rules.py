"""Combine rule files for vmalert or Prometheus from those of the repository and of the inventory.

Several files become one, because a service that reloads one file needs no restart when a rule file is added or
removed. Plain Python. Raises UserError with one sentence that names the file and the cure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import yaml

from ..errors import UserError

LIMIT = "llm_limit_"  # rules compare with a series whose name is this plus the limit's name
INVENTORY = "inventory"  # the group of rules made from the inventory
EXPECTED = "expected_host"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
WILDCARD = re.compile(r"[*?\[]")


def found(patterns: Iterable[str], variable: str) -> list[Path]:
    """Return the files that match ``patterns``, sorted; a pattern without a wildcard must name one."""
    files: set[Path] = set()
    for pattern in patterns:
        # Resolved first: `..` after a wildcard's folder does not work in a pattern.
        path = Path(pattern).resolve()
        matches = set(path.parent.glob(path.name))
        if not matches and not WILDCARD.search(path.name):
            raise UserError(f"{variable}: there is no file {pattern} on the controller; correct the path.")
        files |= matches
    return sorted(files)


def groups(files: Iterable[Path], variable: str) -> list[dict]:
    """Return the groups of rules of all files, in order."""
    every: list[dict] = []
    owner: dict[str, Path] = {}
    for path in files:
        try:
            text = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
            raise UserError(f"{variable}: {path} cannot be read: {' '.join(str(error).split())}.") from None
        held = text.get("groups") if isinstance(text, Mapping) else None
        if not isinstance(held, list) or not all(isinstance(group, Mapping) and group.get("name") for group in held):
            raise UserError(f"{variable}: {path} must hold groups, each with a name and rules.")
        for group in held:
            name = str(group["name"])
            if name in owner or name == INVENTORY:
                other = owner.get(name, "the one that the inventory makes")
                raise UserError(f"{variable}: {path} has a group {name} and so has {other}; rename one of them.")
            owner[name] = path
            every.append(dict(group))
    return every


def limited(held: list[dict], limits: Mapping, variable: str) -> list[dict]:
    """Return ``held`` with its limits replaced by the values of ``limits``."""
    known: set[str] = set()

    def rule(one: Mapping) -> Mapping:
        record = str(one.get("record", ""))
        name = record.removeprefix(LIMIT)
        if name == record:
            return one
        known.add(name)
        return {**one, "expr": f"vector({limits[name]})"} if name in limits else one

    changed = [{**group, "rules": [rule(one) for one in group.get("rules") or []]} for group in held]
    for name, value in limits.items():
        if name not in known:
            raise UserError(f"{variable} has {name}, which no rule asks for; there are {', '.join(sorted(known))}.")
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UserError(f"{variable}.{name} is {value!r}; it must be a number.")
    return changed


def inventory(hosts: Iterable[str]) -> list[dict]:
    """Return the group that records one series for each host that must send metrics; none without hosts."""
    rules = [{"record": EXPECTED, "expr": "vector(1)", "labels": {"host": host}} for host in sorted(set(hosts))]
    return [{"name": INVENTORY, "rules": rules}] if rules else []


def pushing(names: Iterable[str], variables: Mapping, here: str) -> list[str]:
    """Return the label ``host`` of each host that pushes to the store on ``here``, from each host's variables.

    A host without `vmagent_url` is scraped by another server; one that pushes to loopback keeps its metrics itself.
    """
    found = []
    for name in names:
        known = variables[name]
        store = urlsplit(str(known.get("vmagent_url") or ""))
        elsewhere = name != here and store.hostname in LOOPBACK
        if store.hostname and not elsewhere and known.get("vmagent_state") != "absent":
            found.append(str(known.get("vmagent_host_label") or name))
    return found


def text(held: list[dict]) -> str:
    """Return a rule file of groups."""
    head = "# Written by Ansible; changes made here are undone by the next run.\n"
    # Ansible's values carry their origin, which YAML cannot write.
    plain = json.loads(json.dumps({"groups": held}))
    return head + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)
