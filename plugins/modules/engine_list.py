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

from ..module_utils.doors.engine_list import main

if __name__ == "__main__":
    main()
