"""The module logrotate_file; its options and results are documented with it."""

from __future__ import annotations

from pathlib import Path

from .. import atomic_file, host_text
from ..errors import UserError
from ..host_module import HostModule
from ..release.contents import attributes
from ..release.log_rotation import LOGROTATE, check

MODE = ("0644", "root", "root")


def main() -> None:
    module = HostModule(
        argument_spec={"path": {"type": "path", "required": True}, "content": {"type": "str", "required": True}},
        supports_check_mode=True,
    )
    path, content = Path(module.params["path"]), module.params["content"]
    before = host_text.read(path) if path.is_file() else ""
    changed = before != content or attributes(path) != MODE
    # In check mode on a new host the program and the user in the text do not exist yet.
    if not module.check_mode or (Path(LOGROTATE).exists() and path.exists()):
        try:
            check(path, content)
        except UserError as error:
            module.fail_json(msg=host_text.printable(str(error)))
    if changed and not module.check_mode:
        atomic_file.write(path, content, 0o644, "root", "root")
    header = {"before_header": str(path), "after_header": str(path)}
    module.exit_json(changed=changed, diff={**header, "before": host_text.printable(before), "after": content})
