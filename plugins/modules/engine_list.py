#!/usr/bin/python
"""Thin module over module_utils.engines.engines: the engines of a host, and those that are no longer in its list."""

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_list
short_description: Keep the list of a host's engines, and find those that were removed from it
description:
  - Compares the engines that a host should have with those that the last run recorded on it. It also reads which of
    them a switch stopped or put to sleep.
  - The list is C(/var/lib/llm-server/engine_list.json). It has names and kinds, but no settings.
options:
  engines:
    description: The engines that the host should have, in their start order.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Name of the engine and its service., type: str, required: true}
      kind: {description: Type of the engine., type: str, required: true}
      group: {description: Group of engines of which one serves at a time., type: str}
  state:
    description:
      - V(compared) only reads. V(begun) adds the engines to the list before a run changes the first one, so that
        engines that a failed run started are not forgotten. V(noted) writes the final list at the end of a successful
        run.
      - V(begun) refuses a name that the host uses for something else.
    type: str
    choices: [compared, begun, noted]
    default: compared
attributes:
  check_mode: {description: Reports whether the list would be written; writes nothing., support: full}
author: The llm-server maintainers (@llm-server)
"""

EXAMPLES = r"""
- name: Find the engines that are no longer in the list
  llm.server.engine_list:
    engines:
      - {name: vllm, kind: vllm}
      - {name: feedback, kind: vllm, group: evaluation}
"""

RETURN = r"""
gone:
  description: Engines that are on the host but no longer in the list.
  returned: always
  type: list
  elements: dict
  sample: [{"name": "code", "kind": "llama_cpp"}]
resting:
  description: Names of the engines that should not serve, because another engine of their group does.
  returned: always
  type: list
  elements: str
  sample: [feedback]
recorded:
  description: Whether the recorded list has exactly the engines that the host should have.
  returned: always
  type: bool
states:
  description: The engines that should not serve, as M(llm.server.engine_state) returns them.
  returned: with O(state=begun)
  type: dict
"""

import json
from pathlib import Path

from ..module_utils.engines import engine_states, engines
from ..module_utils.quiet_module import QuietModule
from ..module_utils.release.store import STORE, write

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
    module.exit_json(
        changed=changed and state == "noted",
        gone=removed,
        recorded=recorded,
        states=states,
        resting=engines.resting(wanted, engine_states.away()),
    )


if __name__ == "__main__":
    main()
