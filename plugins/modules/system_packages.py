#!/usr/bin/python
"""Thin module over module_utils.install.system_packages."""

from __future__ import annotations

DOCUMENTATION = r"""
module: system_packages
short_description: Install distribution packages in given versions, hold them on request, remove them with their role
description:
  - Installs, upgrades and downgrades packages to the requested versions and removes conflicting packages, in one
    transaction, and holds the packages.
  - Refuses a transaction that would remove anything else.
  - If everything is in place, apt does not run and the network is not used.
  - "Sources: apt-get(8), apt-mark(8), deb-version(7)."
author: The llm-server maintainers (@llm-server)
options:
  name:
    description: Name under which the module records which packages it installed and which are wanted, so that
      O(state=absent) removes exactly what was installed and no other name needs.
    type: str
    required: true
  packages:
    description: The packages.
    type: list
    elements: dict
    default: []
    suboptions:
      name: {description: The package., type: str, required: true}
      version:
        description: Its version, with or without epoch and revision; any version if empty.
        type: str
        default: ""
      hold: {description: Whether apt must keep it at this version., type: bool, default: false}
  holds:
    description: Patterns of package names; installed packages that match are held at their current version.
    type: list
    elements: str
    default: []
  instead_of:
    description: Patterns of package names; installed packages that match are removed.
    type: list
    elements: str
    default: []
  lock_timeout:
    description: Seconds to wait while another process holds apt's lock.
    type: int
    default: 600
  state:
    description: V(absent) removes what was installed with these packages and no other role needs, and releases their
      holds; ca-certificates always stays.
    type: str
    choices: [present, absent]
    default: present
attributes:
  check_mode: {description: Reports what would be installed; does not use the network., support: full}
  diff_mode: {description: Shows versions and holds before and after., support: full}
"""

EXAMPLES = r"""
- name: Pin the 3.x package
  llm.server.system_packages:
    name: dcgm
    packages:
      - {name: datacenter-gpu-manager, version: 3.3.9, hold: true}
    instead_of: ["datacenter-gpu-manager-4-*"]
"""

RETURN = r"""
versions:
  description: Full version of each installed package, by name.
  type: dict
  returned: always
  sample: {datacenter-gpu-manager: "1:3.3.9"}
"""

from ..module_utils.errors import UserError
from ..module_utils.host_module import HostModule
from ..module_utils.install.system_packages import Packages, Wanted, matching, plan


def main() -> None:
    module = HostModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "packages": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "version": {"type": "str", "default": ""},
                    "hold": {"type": "bool", "default": False},
                },
            },
            "holds": {"type": "list", "elements": "str", "default": []},
            "instead_of": {"type": "list", "elements": "str", "default": []},
            "lock_timeout": {"type": "int", "default": 600},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    options = module.params
    wanted = [Wanted(**each) for each in options["packages"]]
    packages = Packages(options["name"], options["lock_timeout"])
    try:
        before = packages.installed()
        wanted += matching(options["holds"], before)
        if options["state"] == "absent":
            absent(module, packages, wanted)
        steps = plan(wanted, options["instead_of"], before)
        # Recorded even if nothing was installed: the record keeps another role's removal from taking the packages.
        unnoted = not packages.noted(wanted)
        if (steps or unnoted) and not module.check_mode:
            packages.apply(wanted, options["instead_of"])
        after = before if module.check_mode else packages.installed()
    except (UserError, OSError) as error:
        module.fail_json(msg=f"{options['name']}: {error}")
    module.exit_json(
        changed=bool(steps or unnoted),
        versions={each.name: after[each.name].version for each in wanted if each.name in after},
        diff=difference(wanted, steps, before) or noting(packages, wanted, unnoted),
    )


def absent(module: HostModule, packages: Packages, wanted: list[Wanted]) -> None:
    names, held = packages.removable(wanted)
    changed = packages.note_path.exists()
    if changed and not module.check_mode:
        stay = packages.remove(names, held)
        if stay:
            module.warn(f"Other packages need what came with {module.params['name']}, so it stays: {', '.join(stay)}")
    text = "".join(f"{name}\n" for name in names) + "".join(f"{name} (held)\n" for name in held)
    module.exit_json(changed=changed, versions={}, diff={"before": text, "after": ""})


def noting(packages: Packages, wanted: list[Wanted], unnoted: bool) -> dict:
    names = ", ".join(each.name for each in wanted)
    return {"before": "", "after": f"{packages.note_path}: wants {names}\n"} if unnoted else {}


def difference(wanted: list[Wanted], steps, before: dict) -> dict:
    if not steps:
        return {}
    names = [*(each.name for each in wanted), *steps.remove]
    old = [f"{name} {before[name].version}{' (held)' * before[name].held}\n" for name in names if name in before]
    new = [f"{each.name} {each.version or '(any version)'}{' (held)' * each.hold}\n" for each in wanted]
    return {"before": "".join(old), "after": "".join(new)}


if __name__ == "__main__":
    main()
