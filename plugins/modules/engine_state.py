#!/usr/bin/python
"""Thin module over module_utils.engines.engine_states."""

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_state
short_description: Stop an engine or put it to sleep in favour of another one of its group, or make it serve again
description:
  - Maintains C(/var/lib/llm-server/engines.json), which names the engines of the host that should not serve. The role
    ai_server and the watchdog read it. An engine that is not in it serves.
  - V(stopped) and V(asleep) write the record first, then stop the unit or put the engine to sleep, and wait until the
    engine's GPU memory is free. A process that still holds memory is named. Without a GPU there is nothing to wait for.
  - V(serving) wakes a sleeping engine and removes the record. It does not start a unit; the role of the engine does.
  - The unit of an engine that should not serve is disabled, so that it does not start at boot.
  - "Sources: vLLM 0.15.1 and 0.32.0, routes C(/sleep), C(/wake_up), C(/is_sleeping), C(/collective_rpc)."
author: The llm-server maintainers (@llm-server)
options:
  name: {description: Name of the engine; its unit is C(<name>.service). Not used with V(read)., type: str}
  state:
    description:
      - V(read) changes nothing and returns the record, the units and the memory of O(engines).
      - V(asleep) does not stop a unit. An engine that does not run is recorded as V(stopped).
    type: str
    choices: [read, serving, stopped, asleep]
    default: read
  engines: {description: Names of the engines to read with V(read)., type: list, elements: str, default: []}
  instead: {description: Name of the engine that serves instead., type: str, default: ""}
  url:
    description: Root URL of the engine, such as C(http://127.0.0.1:8002), to put it to sleep or wake it.
    type: str
    default: ""
  level:
    description: Level of vLLM's sleep. At 1 the weights stay in the host's memory, at 2 they are loaded again.
    type: int
    choices: [1, 2]
    default: 1
  key_file: {description: File with the engine's key; C(/etc/<name>/secrets.env) if empty., type: str, default: ""}
  key_variable: {description: Variable with the key in that file., type: str, default: VLLM_API_KEY}
  timeout: {description: Seconds that stopping the unit may take., type: int, default: 120}
attributes:
  check_mode: {description: Shows the steps; changes nothing., support: full}
  diff_mode: {description: Shows the record., support: full}
"""

EXAMPLES = r"""
- name: Make room for the other engine
  llm.server.engine_state:
    name: chat
    state: stopped
    instead: feedback

- name: Put an engine to sleep
  llm.server.engine_state:
    name: chat
    state: asleep
    instead: feedback
    url: http://127.0.0.1:8001

- name: Read which engines serve
  llm.server.engine_state:
    engines: [chat, feedback]
  register: __engine_states
"""

RETURN = r"""
steps:
  description: The steps that were done, in order. They are C(note), C(stop), C(sleep), C(disable) and C(wake).
  type: list
  elements: str
  returned: success
  sample: [note, stop]
states:
  description: The record. It has the engines that should not serve, with C(state), C(instead), C(since) and, for a
    sleeping engine, C(level).
  type: dict
  returned: success
  sample: {chat: {state: stopped, instead: feedback, since: "2026-11-27T02:00:00Z"}}
active:
  description: Whether the unit of each engine of O(engines) runs.
  type: dict
  returned: with O(state=read)
  sample: {chat: false, feedback: true}
memory_mib:
  description: MiB that each engine of O(engines) holds on all GPUs; empty on a host without a GPU.
  type: dict
  returned: with O(state=read)
  sample: {chat: 0, feedback: 7600}
"""

from contextlib import nullcontext

from ..module_utils import host_text
from ..module_utils.engines.engine_states import (
    Host,
    Wanted,
    carry_out,
    change,
    memory_of,
    noted,
    runs,
    text_of,
)  # fmt: skip
from ..module_utils.errors import UserError
from ..module_utils.host_module import HostModule
from ..module_utils.release.store import Service


def main() -> None:
    module = HostModule(
        argument_spec={
            "name": {"type": "str"},
            "state": {"type": "str", "choices": ["read", "serving", "stopped", "asleep"], "default": "read"},
            "engines": {"type": "list", "elements": "str", "default": []},
            "instead": {"type": "str", "default": ""},
            "url": {"type": "str", "default": ""},
            "level": {"type": "int", "choices": [1, 2], "default": 1},
            "key_file": {"type": "str", "default": "", "no_log": False},
            "key_variable": {"type": "str", "default": "VLLM_API_KEY", "no_log": False},
            "timeout": {"type": "int", "default": 120},
        },
        required_if=[
            ("state", "serving", ["name"]),
            ("state", "stopped", ["name", "instead"]),
            ("state", "asleep", ["name", "instead", "url"]),
        ],
        supports_check_mode=True,
    )
    options, host = dict(module.params), Host()
    names = options.pop("engines")
    try:
        if options["state"] == "read":
            active = {name: runs(host, f"{name}.service") for name in names}
            module.exit_json(
                changed=False, steps=[], states=noted(host), active=active, memory_mib=memory_of(host, names)
            )
        wanted = Wanted(**options)
        with nullcontext() if module.check_mode else Service(wanted.name).lock():
            planned = change(host, wanted)
            if not module.check_mode:
                warning = carry_out(host, wanted, planned)
                if warning:
                    module.warn(host_text.printable(warning))
    except (UserError, OSError) as error:
        module.fail_json(msg=host_text.printable(str(error)))
    before, after = text_of(planned.before), text_of(planned.after)
    headers = {"before_header": "engines.json", "after_header": "engines.json"}
    module.exit_json(
        changed=planned.needed,
        steps=list(planned.steps),
        states=planned.after,
        diff=[{**headers, "before": before, "after": after}],
    )


if __name__ == "__main__":
    main()
