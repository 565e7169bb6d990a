"""The module system_packages; its options and results are documented with it."""

from __future__ import annotations

from ..errors import UserError
from ..host_module import HostModule
from ..install.system_packages import Packages, Wanted, matching, plan


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
