#!/usr/bin/python
"""Thin module over module_utils.load.host; the action plugin of the same name calls it in phases."""

from __future__ import annotations

DOCUMENTATION = r"""
module: load_check
short_description: Put a host's engines under load, monitor the host, and report the results
description:
  - Runs N concurrent callers for M minutes with streaming requests and prompts and answers of given lengths. The tool
    is vLLM's own C(vllm bench serve), which is part of every engine's environment. Engines are loaded in parallel, the
    models of one engine one after the other.
  - First sends one request per caller, to check key and model and to find out how many requests fill the time.
  - The tool runs on the host as the engine's user in a transient unit. The unit has a time limit, even if the
    controller is gone, and is the first to be killed when memory runs out. The key is only in its environment.
  - Every second or two it samples the memory of host and GPUs, the engines' queue, KV cache and preemptions, restarts
    of units, and out-of-memory messages of the kernel and the engines.
  - The action plugin of the same name shows progress, writes a JSON file and a self-contained HTML page on the
    controller, and returns failures if a limit is exceeded, a unit restarted, or memory ran out.
author: The llm-server maintainers (@llm-server)
options:
  targets:
    description: The engines.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Name in tables., type: str, required: true}
      unit: {description: The engine's unit; program and settings are read from it., type: str, required: true}
      metrics: {description: Address of the engine's metrics., type: str, required: true}
      url:
        description: "Base URL of the requests, without C(/v1): the engine or a server in front of it."
        type: str
        required: true
      key: {description: API key of the requests., type: str, required: true}
      models: {description: Models to test., type: list, elements: str, required: true}
  through: {description: Name of the tested server in the table., type: str, default: engine}
  callers: {description: Concurrent callers per engine; at most 256. Upper bound of a search., type: int}
  minutes: {description: Minutes per model or search step; at most 120., type: float, default: 1}
  input_tokens: {description: Tokens per prompt., type: int, default: 256}
  output_tokens: {description: Tokens per answer., type: int, default: 64}
  limits:
    description: >-
      Limits above which the check fails: C(ttft_p95_ms), C(itl_p95_ms), C(error_share) (0 to 1).
    type: dict
    default: {}
  find:
    description: >-
      C(ttft_ms:500) finds the largest number of callers with a p95 time to first token of at most 500 ms and no failed
      request, for the first model of each engine.
    type: str
    default: ""
  units: {description: Units whose restart fails the check., type: list, elements: str, default: []}
  gpu: {description: Whether to sample GPU memory., type: bool, default: false}
  directory: {description: Directory on the controller for the HTML page and the JSON file., type: path, required: true}
  phase:
    description: Phase, set by the action plugin; not for playbooks.
    type: str
    choices: [begin, start, look, collect, end]
    default: begin
  state: {description: Data of earlier phases., type: dict, default: {}}
attributes:
  check_mode: {description: Shows the plan; sends nothing to the engines., support: full}
notes:
  - One load check at a time runs on a host.
"""

EXAMPLES = r"""
- name: Run ten callers for half an hour
  llm.server.load_check:
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
  description: The results as lines for a terminal.
  returned: always
  type: list
  elements: str
failures:
  description: Why the check failed, one sentence each; empty if it passed.
  returned: when load was applied
  type: list
  elements: str
runs:
  description: Requests, errors, tokens per second and percentiles of each model or step.
  returned: when load was applied
  type: list
  elements: dict
files:
  description: Paths of the HTML page and the JSON file on the controller.
  returned: when load was applied
  type: list
  elements: str
"""

import time

from ..module_utils.errors import UserError
from ..module_utils.host_module import HostModule
from ..module_utils.load import host, watch

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
            result = {
                "time": time.time(),
                "units": watch.state(wanted["units"]),
                "first": watch.sample(engines, wanted["gpu"]),
            }
        elif wanted["phase"] == "start":
            result = host.start(_jobs(wanted, state), state["plan"], state["seconds"], state["turn"])
        elif wanted["phase"] == "look":
            result = host.look(state["names"], engines, wanted["gpu"], state["seconds"])
            result["events"] = host.ended(state["began"])
        elif wanted["phase"] == "collect":
            result = host.collect(_jobs(wanted, state), state["plan"])
        else:
            host.stop()
            result = {}
    except (UserError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, told=result)


def _jobs(wanted: dict, state: dict) -> list[dict]:
    """Return the jobs merged with their targets."""
    targets = {each["name"]: each for each in wanted["targets"]}
    return [{**targets[job["name"]], **job} for job in state["jobs"]]


if __name__ == "__main__":
    main()
