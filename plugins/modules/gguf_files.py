#!/usr/bin/python
"""Thin module over module_utils.engines.gguf_files."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gguf_files
short_description: Fetch a GGUF model and its LoRA adapters; check that they are complete and compatible
description:
  - Fetches files from a hub at their commit, as O(user), and verifies their SHA-256. Absolute paths are used unchanged.
    A file that was verified before is not read or requested again, so a repeated run needs no network.
  - Reads the headers of all files. Refuses a truncated or damaged file, an adapter that does not match the model, and
    files that O(user) cannot read.
author: The llm-server maintainers (@llm-server)
options:
  model: {description: "Absolute path of a file, or a repository as owner/name.", type: str, required: true}
  file: {description: "The file in a repository.", type: str, default: ""}
  revision: {description: "Commit of the repository, 40 hexadecimal digits.", type: str, default: ""}
  sha256: {description: "SHA-256 of the file; required for a repository.", type: str, default: ""}
  adapters:
    description: LoRA adapters.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: Its name., type: str, required: true}
      source: {description: "Absolute path of a file, or a repository as owner/name.", type: str, required: true}
      file: {description: "The file in a repository.", type: str, default: ""}
      revision: {description: "Commit of the repository.", type: str, default: ""}
      sha256: {description: SHA-256 of the file., type: str, default: ""}
      scale: {description: Not used here., type: float}
  cache: {description: Directory for fetched files., type: path, required: true}
  user: {description: "User who fetches, and who must be able to read the files.", type: str}
  hub_url: {description: Base URL of the hub or of a mirror of it., type: str, default: https://huggingface.co}
  token: {description: Token for gated and private repositories., type: str, default: ""}
  environment: {description: "Variables such as proxies and certificates.", type: dict, default: {}}
attributes:
  check_mode: {description: Reports what it would fetch; does not use the network., support: full}
"""

EXAMPLES = r"""
- name: Fetch the model
  llm.server.gguf_files:
    model: Qwen/Qwen2.5-Coder-7B-Instruct-GGUF
    file: qwen2.5-coder-7b-instruct-q4_k_m.gguf
    revision: <40 hexadecimal digits>
    sha256: <64 hexadecimal digits>
    cache: /app/llama-cpp/models
    user: llama-cpp
"""

RETURN = r"""
model: {description: Path of the model., type: str, returned: always}
adapters: {description: Path of each adapter by its name., type: dict, returned: always}
fetched: {description: What was fetched., type: list, elements: str, returned: always}
fingerprint:
  description: Digest of the paths, sizes and times of all files; empty if one has still to be fetched.
  type: str
  returned: always
  sample: 9f86d081884c7d65
"""

from pathlib import Path

from ..module_utils.engines.gguf_files import (
    Store,
    Wanted,
    adapter_problem,
    fingerprint,
    header,
    model_problem,
)
from ..module_utils.errors import UserError
from ..module_utils.quiet_module import QuietModule

SOURCE = {
    "file": {"type": "str", "default": ""},
    "revision": {"type": "str", "default": ""},
    "sha256": {"type": "str", "default": ""},
}


def main() -> None:
    module = QuietModule(
        argument_spec={
            "model": {"type": "str", "required": True},
            **SOURCE,
            "adapters": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "source": {"type": "str", "required": True},
                    **SOURCE,
                    "scale": {"type": "float"},
                },
            },
            "cache": {"type": "path", "required": True},
            "user": {"type": "str"},
            "hub_url": {"type": "str", "default": "https://huggingface.co"},
            "token": {"type": "str", "default": "", "no_log": True},
            "environment": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    given = module.params
    variables = {key: str(value) for key, value in given["environment"].items()}
    store = Store(Path(given["cache"]), given["user"], given["hub_url"], given["token"], variables)
    model = Wanted("the model", given["model"], given["file"], given["revision"], given["sha256"])
    adapters = {
        one["name"]: Wanted(f"adapter {one['name']}", one["source"], one["file"], one["revision"], one["sha256"])
        for one in given["adapters"]
    }
    try:
        result = bring(store, model, adapters, module.check_mode)
    except (UserError, OSError) as error:
        module.fail_json(msg=f"{error}.")
    module.exit_json(**result)


def bring(store: Store, model: Wanted, adapters: dict[str, Wanted], check_mode: bool) -> dict:
    """Fetch missing files and check all of them; return the module's result."""
    every = {"": model, **adapters}
    paths, fetched = {}, []
    for name, wanted in every.items():
        paths[name], complete = store.place(wanted)
        if not complete:
            fetched.append(f"{wanted.source}/{wanted.file}@{wanted.revision}")
        if not check_mode:
            store.bring(wanted)
    here = {name: path for name, path in paths.items() if path.is_file()}
    headers = {name: header(every[name], path) for name, path in here.items()}
    for name, found in headers.items():
        problem = model_problem(found) if not name else adapter_problem(found, headers[""]) if "" in headers else ""
        problem = f"{paths[name]} {problem}" if problem else store.unreadable(paths[name])
        if problem:
            raise UserError(f"{every[name].what}: {problem}")
    return {
        "changed": bool(fetched),
        "model": str(paths.pop("")),
        "adapters": {name: str(path) for name, path in paths.items()},
        "fetched": fetched,
        "fingerprint": fingerprint(list(here.values())) if not fetched or not check_mode else "",
    }


if __name__ == "__main__":
    main()
