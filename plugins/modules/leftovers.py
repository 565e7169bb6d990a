#!/usr/bin/python
"""Thin module over module_utils.release.leftovers."""

from __future__ import annotations

DOCUMENTATION = r"""
module: leftovers
short_description: Remove files that no release of a service refers to any more
description:
  - Finds programs and environments, unfinished installations and downloads, compiled code and download caches that no
    kept release of M(llm.server.service_release) refers to and, on request, revisions of models.
  - Keeps files that a process has open or was started with, files that a unit names, and all files of a service that
    another run is changing now.
  - Writes nothing, so it works on a full disk.
author: The llm-server maintainers (@llm-server)
options:
  age_hours:
    description: Files that changed within this number of hours stay.
    type: int
    default: 24
  models:
    description: Whether to remove revisions of models that no release refers to. They would have to be fetched again.
    type: bool
    default: false
attributes:
  check_mode: {description: Reports what would be removed; removes nothing., support: full}
  diff_mode: {description: Shows what is removed with its size., support: full}
"""

EXAMPLES = r"""
- name: Remove files that no release refers to
  llm.server.leftovers:
"""

RETURN = r"""
removed:
  description: What was removed, or would be removed in check mode, each with path, why and mib.
  type: list
  elements: dict
  returned: always
  sample: [{path: /opt/vllm/environments/0123456789ab, why: built for no release that is kept, mib: 9100}]
mib:
  description: Total size in MiB.
  type: int
  returned: always
  sample: 9100
free:
  description: Free MiB of each disk of the services before and after.
  type: dict
  returned: always
  sample: {/: [120, 9220]}
remarks:
  description: What stays because it is in use, or because another run is changing the service.
  type: list
  elements: str
  returned: always
  sample: []
report:
  description: The result as lines for people.
  type: list
  elements: str
  returned: always
  sample:
    - "/opt/vllm/environments/0123456789ab: built for no release that is kept, 9100 MiB"
    - "/: 120 MiB free, then 9220"
"""

from ..module_utils import host_text
from ..module_utils.host_module import HostModule
from ..module_utils.release.leftovers import clean, mib


def main() -> None:
    module = HostModule(
        argument_spec={
            "age_hours": {"type": "int", "default": 24},
            "models": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    found = clean(module.params["age_hours"] * 3600, module.params["models"], module.check_mode)
    removed = [
        {"path": host_text.printable(str(each.paths[0])), "why": each.why, "mib": mib(each.size)}
        for each in found["removed"]
    ]
    result = {
        "changed": bool(removed),
        "removed": removed,
        "mib": sum(each["mib"] for each in removed),
        "free": found["free"],
        "remarks": [host_text.printable(sentence) for sentence in found["remarks"]],
    }
    result["report"] = [
        *[host_text.printable(str(each)) for each in found["removed"]],
        *result["remarks"],
        *[f"{disk}: {before} MiB free, then {after}" for disk, (before, after) in found["free"].items()],
    ]
    if removed:
        lines = "".join(f"{host_text.printable(str(each))}\n" for each in found["removed"])
        result["diff"] = {"before_header": "left over", "after_header": "left over", "before": lines, "after": ""}
    if found["failures"]:
        failures = host_text.printable("; ".join(found["failures"]))
        module.fail_json(msg=f"Could not remove {failures}.", **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
