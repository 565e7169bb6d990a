"""The module engine_list; its options and results are documented with it."""

from __future__ import annotations

import json
from pathlib import Path

from ..engines import engine_states, engines
from ..quiet_module import QuietModule
from ..release.store import STORE, write

DISTRIBUTION = (Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))
LIST = STORE.parent / "engine_list.json"


def read(path: Path) -> list[dict]:
    """Return the list that the last run wrote; [] if it is missing or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []


def foreign(name: str) -> bool:
    """Return whether a unit of that name belongs to the distribution, such as ssh."""
    return any((folder / f"{name}.service").exists() for folder in DISTRIBUTION)


def main() -> None:
    text = {"type": "str", "required": True}
    one = {"name": text, "kind": text, "group": {"type": "str"}}
    module = QuietModule(
        argument_spec={
            "engines": {"type": "list", "elements": "dict", "required": True, "options": one},
            "state": {"type": "str", "choices": ["compared", "begun", "noted"], "default": "compared"},
        },
        supports_check_mode=True,
    )
    wanted, noted, state = module.params["engines"], read(LIST), module.params["state"]
    names = [{"name": each["name"], "kind": each["kind"]} for each in wanted]
    served_before = (STORE / engines.SINGLE["name"] / "state.json").exists()
    removed = engines.no_longer_listed([each["name"] for each in wanted], noted, served_before)
    recorded = engines.recorded(names, noted, removed)
    states = {}
    if state == "begun":
        try:
            states = engine_states.noted(engine_states.Host())
        except engine_states.EngineStateError as error:
            module.fail_json(msg=str(error))
        taken = engines.taken(names, noted, [name for each in names if (name := each["name"]) and foreign(name)])
        if taken:
            module.fail_json(msg=" ".join(taken))
        names = removed + names
    # Write nothing if nothing is new. An engine that will be removed stays in the list until it is gone.
    changed = state != "compared" and sorted(noted, key=str) != sorted(names, key=str)
    if changed and not module.check_mode:
        write(LIST, json.dumps(names, indent=1) + "\n", 0o644)
    pending = {"pending": changed} if module.check_mode else {}
    module.exit_json(
        **pending,
        changed=changed and state == "noted",
        gone=removed,
        recorded=recorded,
        states=states,
        resting=engines.resting(wanted, engine_states.away()),
    )
