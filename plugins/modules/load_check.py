#!/usr/bin/python
"""Door to ansible.module_utils.load.host; the action plugin of the same name calls it phase by phase."""

from __future__ import annotations

DOCUMENTATION = r"""
module: load_check
short_description: Put a host's engines under load for a time, watch it meanwhile, and tell what came of it
description:
  - Lets N callers ask at once for M minutes, streamed, with prompts and answers of given lengths, by vLLM's own tool
    C(vllm bench serve), which is in the environment of every engine. Engines are loaded side by side, the models of one
    engine one after the other.
  - A few first requests, as many as there are callers, show that the key and the model are right, and how many requests
    fill the time.
  - The tool runs on the host as the engine's user in a transient unit that is bounded in time, whatever becomes of the
    controller, and that is the first to die where memory ends. Its key is in its environment alone.
  - Watches every second or two the memory of host and GPUs, queue, KV cache and preemptions of the engines, restarts of
    units, and what the kernel and the engines say of memory that ran out.
  - The action plugin of the same name shows progress, and writes a JSON file and a self-contained HTML page on the
    controller. The result fails where a limit is passed, a unit restarted, or memory ran out.
author: The llm-server maintainers
options:
  targets:
    description: The engines.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Name in tables., type: str, required: true}
      unit: {description: The engine's unit; its program and settings are read from it., type: str, required: true}
      metrics: {description: Address of the engine's metrics., type: str, required: true}
      url:
        description: Address that is asked, without its C(/v1), of the engine or of what stands before it.
        type: str
        required: true
      key: {description: Key to ask with., type: str, required: true}
      models: {description: Models to ask., type: list, elements: str, required: true}
  through: {description: What is asked as the table names it., type: str, default: engine}
  callers: {description: Callers at once for each engine; at most 256. The most that a search tries., type: int}
  minutes: {description: Minutes for each model or step of a search; at most 120., type: float, default: 1}
  input_tokens: {description: Tokens of a prompt., type: int, default: 256}
  output_tokens: {description: Tokens of an answer., type: int, default: 64}
  limits:
    description: >-
      What makes the check red: C(ttft_p95_ms), C(itl_p95_ms), C(error_share) (0 to 1). Above the number is red.
    type: dict
    default: {}
  find:
    description: >-
      C(ttft_ms:500) finds the largest number of callers that keeps the p95 of the first token's time at 500 ms or below
      with no failed request, for the first model of each engine.
    type: str
    default: ""
  units: {description: Units whose restart makes the check red., type: list, elements: str, default: []}
  gpu: {description: Whether GPUs are watched., type: bool, default: false}
  directory: {description: Directory of the controller for page and JSON., type: path, required: true}
  phase:
    description: Step of the action plugin; not for playbooks.
    type: str
    choices: [begin, start, look, collect, end]
    default: begin
  state: {description: What an earlier phase handed on., type: dict, default: {}}
attributes:
  check_mode: {description: Says what it would do; asks nothing of the engines., support: full}
notes:
  - One load check at a time runs on a host.
"""

EXAMPLES = r"""
- name: Ten callers for half an hour
  load_check:
    targets:
      - name: vllm
        unit: vllm.service
        metrics: http://127.0.0.1:8001/metrics
        url: http://127.0.0.1:8000
        key: "{{ caller_key }}"
        models: [LGAI-EXAONE/EXAONE-3.5-2.4B-Instruct]
    callers: 10
    minutes: 30
    limits: {ttft_p95_ms: 800, error_share: 0}
    directory: /srv/loads
"""

RETURN = r"""
table:
  description: What came of it, as lines for a terminal.
  returned: always
  type: list
  elements: str
failures:
  description: Why it is red, one sentence each; empty where it is not.
  returned: when load was applied
  type: list
  elements: str
runs:
  description: Requests, errors, tokens a second and percentiles of each model or step.
  returned: when load was applied
  type: list
  elements: dict
files:
  description: JSON and page on the controller.
  returned: when load was applied
  type: list
  elements: str
"""

import time

from ansible.module_utils.host_module import HostModule
from ansible.module_utils.load import host, watch
from ansible.module_utils.systemd_unit import SystemdError

TARGET = {
    **{name: {"type": "str", "required": True} for name in ("name", "unit", "metrics", "url")},
    "key": {"type": "str", "required": True, "no_log": True},
    "models": {"type": "list", "elements": "str", "required": True},
}


def main() -> None:
    module = HostModule(
        argument_spec={
            "targets": {"type": "list", "elements": "dict", "required": True, "options": TARGET},
            "through": {"type": "str", "default": "engine"},
            "callers": {"type": "int"},
            "minutes": {"type": "float", "default": 1},
            "input_tokens": {"type": "int", "default": 256, "no_log": False},
            "output_tokens": {"type": "int", "default": 64, "no_log": False},
            "limits": {"type": "dict", "default": {}},
            "find": {"type": "str", "default": ""},
            "units": {"type": "list", "elements": "str", "default": []},
            "gpu": {"type": "bool", "default": False},
            "directory": {"type": "path", "required": True},
            "phase": {"type": "str", "choices": ["begin", "start", "look", "collect", "end"], "default": "begin"},
            "state": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    wanted, state = module.params, module.params["state"]
    engines = [{"name": each["name"], "metrics": each["metrics"]} for each in wanted["targets"]]
    try:
        if wanted["phase"] == "begin":
            host.begin([each["unit"] for each in wanted["targets"]])
            told = {
                "time": time.time(),
                "units": watch.state(wanted["units"]),
                "first": watch.sample(engines, wanted["gpu"]),
            }
        elif wanted["phase"] == "start":
            told = host.start(_jobs(wanted, state), state["plan"], state["seconds"], state["turn"])
        elif wanted["phase"] == "look":
            told = host.look(state["names"], engines, wanted["gpu"], state["seconds"])
            told["events"] = host.ended(state["began"])
        elif wanted["phase"] == "collect":
            told = host.collect(_jobs(wanted, state), state["plan"])
        else:
            host.stop()
            told = {}
    except (host.Refused, SystemdError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, told=told)


def _jobs(wanted: dict, state: dict) -> list[dict]:
    """Return the targets of this run with its model, and what an earlier phase found out."""
    targets = {each["name"]: each for each in wanted["targets"]}
    return [{**targets[job["name"]], **job} for job in state["jobs"]]


if __name__ == "__main__":
    main()
