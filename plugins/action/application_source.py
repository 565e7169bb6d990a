"""Name a tree on the controller by its digest, and send it only if the host does not have it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ..module_utils.install.application_source import EXCLUDED, pack, tree_digest


def with_digest(arguments: dict) -> dict:
    """Return the module's arguments; if the source is a tree of the controller, with its digest.

    Raises AnsibleActionFail if there is no such tree.
    """
    if not arguments.get("path"):
        return dict(arguments)
    tree = Path(arguments["path"])
    if not tree.is_dir():
        raise AnsibleActionFail(f"the application's source {tree}: there is no such directory here")
    excluded = arguments.get("excluded") or EXCLUDED
    return {**arguments, "path": str(tree.resolve()), "excluded": excluded, "digest": tree_digest(tree, excluded)}


class ActionModule(ActionBase):
    """Run the module; a tree is hashed first, and packed and sent if the module asks for it."""

    def run(self, tmp=None, task_vars=None):
        super().run(tmp, task_vars)
        arguments = with_digest(self._task.args)
        result = self._module(arguments, task_vars)
        if not result.pop("send", False):
            return result
        shell = self._connection._shell
        # Ansible removes the task's own temporary directory at its end, so its name must stay known.
        before, remote = shell.tmpdir, self._make_tmp_path()
        try:
            with tempfile.TemporaryDirectory() as stage:
                pack(Path(arguments["path"]), arguments["excluded"], Path(stage) / "source.tar.gz")
                file = self._transfer_file(f"{stage}/source.tar.gz", shell.join_path(remote, "source"))
            self._fixup_perms2((remote, file))
            return self._module({**arguments, "file": file}, task_vars)
        finally:
            self._remove_tmp_path(remote)
            shell.tmpdir = before

    def _module(self, arguments, task_vars):
        return self._execute_module(
            module_name="llm.server.application_source", module_args=arguments, task_vars=task_vars
        )
