"""The module checklist; its options and results are documented with it."""

from __future__ import annotations

from ..host_module import HostModule
from ..release.checklist import KINDS, rows


def main() -> None:
    module = HostModule(
        argument_spec={
            "roles": {"type": "list", "elements": "str", "default": []},
            "engines": {"type": "list", "elements": "dict", "default": [], "no_log": True},
            "checks": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "what": {"type": "str", "required": True},
                    "kind": {"type": "str", "required": True, "choices": list(KINDS)},
                    "options": {"type": "dict", "required": True},
                    "bearer": {"type": "str", "no_log": True},
                    "password": {"type": "str", "no_log": True},
                    "cure": {"type": "str", "default": ""},
                },
            },
        },
        supports_check_mode=True,
    )
    checks = module.params["checks"]
    for check in checks:
        check["options"] |= {name: check[name] for name in ("bearer", "password") if check[name]}
    module.exit_json(changed=False, rows=rows(checks))
