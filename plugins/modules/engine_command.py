#!/usr/bin/python
"""Runs one command with an engine's address and key in its environment; the action plugin calls this module."""

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_command
short_description: Run a command against an engine, on the controller or on the host, and keep its output
description:
  - The command is a list of words; no shell reads it. It finds the engine by C(ENGINE_NAME), C(ENGINE_URL),
    C(ENGINE_MODEL) and C(ENGINE_API_KEY) in its environment. The key is never an argument.
  - On the controller the command reaches an engine on the host's loopback address through an SSH tunnel, which is
    closed when the command ends.
  - A failed command does not fail the task; see RV(rc). If its output contains the key, the key is removed.
author: The llm-server maintainers (@llm-server)
options:
  argv: {description: Program and arguments., type: list, elements: str, required: true}
  engine: {description: Name of the engine., type: str, required: true}
  url: {description: Root URL of the engine on the host., type: str, required: true}
  model: {description: Name of its model., type: str, required: true}
  api_key: {description: Its key., type: str, required: true}
  run_on: {description: Where the command runs., type: str, choices: [controller, host], default: controller}
  timeout: {description: Seconds after which the command is terminated., type: int, default: 86400}
  log:
    description: File on the controller for its output. Only the controller's user can read it.
    type: path
    required: true
attributes:
  check_mode: {description: Runs nothing., support: full}
"""

EXAMPLES = r"""
- name: Run the evaluation
  llm.server.engine_command:
    argv: [python3, evaluate.py, --all]
    engine: chat
    url: http://127.0.0.1:8001
    model: LGAI-EXAONE/EXAONE-3.5-2.4B-Instruct
    api_key: "{{ vllm_api_key }}"
    log: runs/gpu1/chat.log
"""

RETURN = r"""
rc:
  description: Exit status. 124 if the command ran out of time, 127 if it could not be started.
  returned: always
  type: int
seconds:
  description: How long the command ran.
  returned: always
  type: float
says:
  description: The outcome as a sentence.
  returned: always
  type: str
log:
  description: The file with the command's output.
  returned: always
  type: str
"""

from ..module_utils.engines.engine_runs import run
from ..module_utils.host_module import HostModule


def main() -> None:
    text = {"type": "str", "required": True}
    module = HostModule(
        argument_spec={
            "argv": {"type": "list", "elements": "str", "required": True},
            "engine": text,
            "url": text,
            "model": text,
            "api_key": {**text, "no_log": True},
            "run_on": {"type": "str", "choices": ["controller", "host"], "default": "controller"},
            "timeout": {"type": "int", "default": 86400},
            "log": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    if module.check_mode:
        module.exit_json(changed=False, skipped=True)
    result = run(given["argv"], given["engine"], given["url"], given["model"], given["api_key"], given["timeout"])
    module.exit_json(changed=True, **result)


if __name__ == "__main__":
    main()
