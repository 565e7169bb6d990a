#!/usr/bin/python
"""Thin module over module_utils.install.application_source; the action plugin sends a tree to the host if needed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: application_source
short_description: Install one version of an application's source into a directory of its own
description:
  - Creates C(<root>/<digest>) from a tree on the controller, an archive or a git repository. The directory is complete
    or absent, belongs to root and is never changed in place. A link switches the service to it; see
    M(llm.server.service_release).
  - If the directory exists and its user can read it, it is left unchanged; nothing is sent and the network is not used.
  - The application has C(app/main.py), and its requirements with hashes in C(uv.lock) (with C(pyproject.toml)) or in
    C(requirements.txt).
author: The llm-server maintainers (@llm-server)
options:
  root: {description: Directory of the sources., type: path, required: true}
  path: {description: The tree on the controller., type: path}
  excluded:
    description: Patterns of names or paths that are left out of the tree.
    type: list
    elements: str
    default: [.git, .venv, .env, __pycache__, "*.pyc", .pytest_cache, .ruff_cache, .mypy_cache]
  url: {description: An archive (.tar.gz or .zip)., type: str}
  checksum: {description: "Its checksum, C(sha256:<64 hexadecimal digits>).", type: str}
  repository: {description: URL of a git repository., type: str}
  version: {description: A tag of the repository or the 40 digits of a commit., type: str}
  ca_path: {description: Certificate authorities to trust for the archive., type: path}
  uv: {description: The uv program., type: path, default: /opt/uv/current/bin/uv}
  user: {description: User who clones and reads uv.lock., type: str}
  runs_as: {description: User who must be able to read the source; O(user) by default., type: str}
  environment: {description: "Variables for downloads, git and uv: proxy, certificates.", type: dict, default: {}}
  digest: {description: Digest of the tree; set by the action plugin., type: str}
  file: {description: The packed tree on the target; set by the action plugin., type: path}
attributes:
  check_mode: {description: Reports whether it would create the directory; does not use the network., support: full}
"""

EXAMPLES = r"""
- name: Install the application's source
  llm.server.application_source:
    root: /app/ai-server/releases
    repository: https://git.example.com/ai-server.git
    version: v1.4.0
    user: ai-server
  register: __source
"""

RETURN = r"""
path: {description: Directory of the source., type: str, returned: always, sample: /app/ai-server/releases/3f2a9b01c4de}
requirements:
  description: Text of the requirements with hashes; in check mode a comment if the source is not installed yet.
  type: str
  returned: always
"""

from ..module_utils.doors.application_source import main

if __name__ == "__main__":
    main()
