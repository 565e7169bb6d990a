#!/usr/bin/python
"""Thin module over module_utils.engines.model_files."""

from __future__ import annotations

DOCUMENTATION = r"""
module: model_files
short_description: Fetch a model and its LoRA adapters; check that they are complete and compatible
description:
  - Fetches models from a hub at their commit, with C(huggingface_hub) of the engine's environment. Absolute paths are
    used unchanged. An existing snapshot is not requested again, so a repeated run needs no network.
  - Reads the headers of all files. Refuses an incomplete model, an adapter that does not match it, and files that
    O(user) cannot read.
author: The llm-server maintainers (@llm-server)
options:
  model: {description: "Name on the hub, or absolute path.", type: str, required: true}
  revision: {description: Commit of the model (40 hexadecimal digits); not used for a path., type: str}
  adapters:
    description: LoRA adapters.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Name under which the engine serves it., type: str, required: true}
      source: {description: "Name on the hub, or absolute path.", type: str, required: true}
      revision: {description: Commit of the adapter; not used for a path., type: str}
  max_lora_rank: {description: Largest rank that the engine will allow., type: int, default: 16}
  trust_remote_code:
    description: >-
      Whether the engine runs code from the model's repository. If it does, the code must be in the repository; if not,
      the engine must know the model's type itself.
    type: bool
    default: true
  cache: {description: "The hub's cache, owned by O(user).", type: path, required: true}
  python: {description: Interpreter that has huggingface_hub., type: path, required: true}
  user: {description: "User who fetches, and who must be able to read files given by path.", type: str}
  endpoint: {description: Base URL of the hub or of a mirror of it., type: str}
  token: {description: Token for gated and private models., type: str}
  environment: {description: "Variables such as proxies and certificates.", type: dict, default: {}}
attributes:
  check_mode: {description: Reports what it would fetch; does not use the network., support: full}
"""

EXAMPLES = r"""
- name: Fetch the model and its adapters
  llm.server.model_files:
    model: LGAI-EXAONE/EXAONE-3.5-2.4B-Instruct
    revision: e949c91dec92095908d34e6b560af77dd0c993f8
    cache: /app/vllm-server/.cache/huggingface/hub
    python: /app/vllm-server/venv/bin/python
    user: vllm
  register: __files
"""

RETURN = r"""
model: {description: Directory of the model., type: str, returned: always}
adapters: {description: Directory of each adapter by its name., type: dict, returned: always}
fetched: {description: What was fetched., type: list, elements: str, returned: always}
fingerprint:
  description: Digest of the names, sizes and times of all files given by path; empty if there are none.
  type: str
  returned: always
  sample: 9f86d081884c7d65
"""

from ..module_utils.doors.model_files import main

if __name__ == "__main__":
    main()
