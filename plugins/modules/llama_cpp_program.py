#!/usr/bin/python
"""Thin module over module_utils.engines.llama_cpp_program."""

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_cpp_program
short_description: Ask an installed llama-server for its version and its arguments
description:
  - Runs C(llama-server --version) and C(--help), and refuses names of arguments that this version does not have.
  - Changes nothing.
author: The llm-server maintainers (@llm-server)
options:
  path: {description: The program., type: path, required: true}
  user: {description: User who runs it; the module's own by default., type: str}
  arguments: {description: Names of arguments that it must know., type: list, elements: str, default: []}
attributes:
  check_mode: {description: Returns nothing if the program is not installed yet., support: full}
"""

EXAMPLES = r"""
- name: Read the program's version and arguments
  llm.server.llama_cpp_program:
    path: /usr/bin/llama-server
    user: llama-cpp
    arguments: [cache-reuse]
"""

RETURN = r"""
version: {description: Version that the program reports., type: str, returned: always, sample: "0.7.0 (build 11669)"}
names:
  description: Long names of its arguments, without dashes; empty if the program is not installed yet.
  type: list
  elements: str
  returned: always
"""

from pathlib import Path

from ..module_utils.engines.llama_cpp_program import ask, names, unknown, version
from ..module_utils.errors import UserError
from ..module_utils.host_module import HostModule


def main() -> None:
    module = HostModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "user": {"type": "str"},
            "arguments": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    path = module.params["path"]
    if module.check_mode and not Path(path).exists():
        module.exit_json(changed=False, version="", names=[])
    try:
        version_text, page = (ask(path, argument, module.params["user"]) for argument in ("--version", "--help"))
    except (UserError, OSError) as error:
        module.fail_json(msg=str(error))
    known = names(page)
    problems = unknown(module.params["arguments"], known, "llama_cpp_arguments")
    if problems:
        module.fail_json(msg=" ".join(problems))
    module.exit_json(changed=False, version=version(version_text), names=sorted(known))


if __name__ == "__main__":
    main()
