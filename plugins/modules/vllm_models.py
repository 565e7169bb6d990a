#!/usr/bin/python
"""Reads the model list of a vLLM server and compares it with the wanted models."""

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_models
short_description: Read the models of a vLLM server and check base model and adapters
description:
  - Reads C(/v1/models) and returns id, root, parent and max_model_len of each model.
  - Fails if the base model or an adapter is missing or an unexpected one is served, and names it.
  - With O(wait_timeout) the request is repeated until the list is right; on failure the last list is reported.
  - Changes nothing, so check mode sends the request too, once.
options:
  url:
    description: Address of the server, with or without C(/v1) at its end.
    type: str
    required: true
  api_key:
    description: API key of the server. It never appears in a result or a log.
    type: str
  base:
    description: Name of the only base model that must be served. By default any is right.
    type: str
  adapters:
    description: Names of the only adapters that must be served. By default any are right.
    type: list
    elements: str
  max_model_len:
    description: Context length in tokens that the base model must have. By default any is right.
    type: int
  wait_timeout:
    description: Seconds to wait until the list is right. With 0 one request is sent. A refused key ends the wait.
    type: int
    default: 0
  wait_interval:
    description: Seconds between two requests.
    type: int
    default: 5
  timeout:
    description: Seconds to wait for one answer.
    type: int
    default: 10
  ca_path:
    description: File of certificates to trust instead of the system's.
    type: path
  validate_certs:
    description: Whether the server's certificate is checked.
    type: bool
    default: true
attributes:
  check_mode: {description: It changes nothing in any mode; in check mode it sends one request., support: full}
author: The llm-server maintainers (@llm-server)
"""

EXAMPLES = r"""
- name: Check that the server serves the base model and both adapters
  llm.server.vllm_models:
    url: http://127.0.0.1:8001
    api_key: "{{ vllm_api_key }}"
    base: LGAI-EXAONE/EXAONE-3.5-2.4B-Instruct
    adapters:
      - easycontract
      - checklist
    max_model_len: 8192
    wait_timeout: 120
"""

RETURN = r"""
models:
  description: The models in the server's list, each with id, root, parent and max_model_len. A base model has no
    parent; an adapter has no max_model_len.
  returned: when the server answered
  type: list
  elements: dict
  sample: [{id: base, root: /app/models/base, parent: null, max_model_len: 8192}]
missing:
  description: Models that are wanted but not served.
  returned: when the server answered
  type: list
  elements: str
unexpected:
  description: Models that are served but not wanted.
  returned: when the server answered
  type: list
  elements: str
attempts:
  description: Number of requests that were sent.
  returned: always
  type: int
kind:
  description: Why the list is missing or wrong (refused, timeout, unreachable, closed, tls, not_http, unauthorized,
    not_found, status, not_json, not_models, different).
  returned: on failure
  type: str
"""

import time

from ..module_utils.engines import vllm_api
from ..module_utils.host_module import HostModule

# Waiting does not help with these.
FINAL = ("unauthorized", "tls")


def main() -> None:
    module = HostModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "api_key": {"type": "str", "no_log": True},
            "base": {"type": "str"},
            "adapters": {"type": "list", "elements": "str"},
            "max_model_len": {"type": "int"},
            "wait_timeout": {"type": "int", "default": 0},
            "wait_interval": {"type": "int", "default": 5},
            "timeout": {"type": "int", "default": 10},
            "ca_path": {"type": "path"},
            "validate_certs": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    p = module.params
    if p["api_key"] is not None and not p["api_key"].strip():
        module.no_log_values.discard(p["api_key"])  # spaces are not a secret, and masking them would garble the text
        module.fail_json(msg="api_key is empty: give the server's key, or leave the option out.", attempts=0)
    patience = 0 if module.check_mode else p["wait_timeout"]
    start, attempts = time.monotonic(), 0
    while True:
        attempts += 1
        result: dict = {"attempts": attempts}
        try:
            models = vllm_api.fetch(p["url"], p["api_key"] or "", p["timeout"], p["ca_path"] or "", p["validate_certs"])
            diff = vllm_api.difference(models, p["base"] or "", p["adapters"], p["max_model_len"])
            result |= {"models": models, "missing": diff["missing"], "unexpected": diff["unexpected"]}
            text, kind = vllm_api.describe(models, diff), "different"
        except vllm_api.ApiError as error:
            text, kind = str(error), error.kind
        waited = time.monotonic() - start
        if not text:
            module.exit_json(changed=False, **result)
        if waited >= patience or kind in FINAL:
            tail = f" Asked {attempts} times in {waited:.0f} s." if attempts > 1 else ""
            module.fail_json(msg=f"{text}{'' if text.endswith('.') else '.'}{tail}", kind=kind, **result)
        time.sleep(min(p["wait_interval"], max(0.2, patience - waited)))


if __name__ == "__main__":
    main()
