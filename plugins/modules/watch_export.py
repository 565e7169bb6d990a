#!/usr/bin/python
"""Thin module that writes a folder of files together; see playbooks/export_watch.yml."""

from __future__ import annotations

DOCUMENTATION = r"""
module: watch_export
short_description: Write the configuration of a monitoring server into a folder
description:
  - Writes texts and copies files into one folder, each in one step, and only if the content differs. Other files in the
    folder stay unchanged.
options:
  directory: {description: "The folder; created with its parents if it is missing.", type: path, required: true}
  files: {description: "Texts by their paths below the folder.", type: dict, required: true}
  copies: {description: "Folders whose files are copied, by their paths below the folder.", type: dict, default: {}}
attributes:
  check_mode: {description: Reports which files would be written; writes nothing., support: full}
author: The llm-server maintainers (@llm-server)
"""

EXAMPLES = r"""
- name: Write targets and rules
  llm.server.watch_export:
    directory: /srv/watch
    files: {prometheus/targets.yml: "[]\n"}
    copies: {grafana: dashboards/grafana}
  delegate_to: localhost
"""

RETURN = r"""
written:
  description: Paths below the folder whose content differed.
  returned: always
  type: list
  elements: str
  sample: [prometheus/targets.yml]
"""

from pathlib import Path

from ..module_utils import atomic_file
from ..module_utils.quiet_module import QuietModule

ARGUMENTS = {
    "directory": {"type": "path", "required": True},
    "files": {"type": "dict", "required": True},
    "copies": {"type": "dict", "default": {}},
}


def wanted(files: dict, copies: dict) -> dict[str, bytes]:
    """Return the content of all files by their paths. Raises OSError if a file to copy cannot be read."""
    found = {path: str(text).encode() for path, text in files.items()}
    for place, source in copies.items():
        for file in sorted(Path(source).iterdir()):
            if file.is_file():
                found[f"{place}/{file.name}"] = file.read_bytes()
    return found


def main() -> None:
    module = QuietModule(argument_spec=ARGUMENTS, supports_check_mode=True)
    root, changed = Path(module.params["directory"]), []
    try:
        for name, data in wanted(module.params["files"], module.params["copies"]).items():
            path = root / name
            if not path.is_file() or path.read_bytes() != data:
                changed.append(name)
                if not module.check_mode:
                    atomic_file.write(path, data, 0o644)
    except OSError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=bool(changed), written=changed)


if __name__ == "__main__":
    main()
