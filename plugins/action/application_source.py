"""Name a tree on the controller by its digest, and send it only if the host does not have it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from ansible.plugins.action import ActionBase


class ActionModule(ActionBase):
    """Run the module; a tree is hashed first, and packed and sent if the module asks for it."""

    TRANSFERS_FILES = True

    def run(self, tmp=None, task_vars=None):
        from ..module_utils.install.application_source import EXCLUDED, pack, tree_digest

        super().run(tmp, task_vars)
        arguments = dict(self._task.args)
        if not arguments.get("path"):
            return self._module(arguments, task_vars)
        tree = Path(arguments["path"])
        if not tree.is_dir():
            return {"failed": True, "msg": f"the application's source {tree}: there is no such directory here"}
        excluded = arguments.get("excluded") or EXCLUDED
        arguments.update(path=str(tree.resolve()), excluded=excluded, digest=tree_digest(tree, excluded))
        result = self._module(arguments, task_vars)
        if not result.pop("send", False):
            return result
        remote = self._make_tmp_path()
        try:
            with tempfile.TemporaryDirectory() as stage:
                pack(tree, excluded, Path(stage) / "source.tar.gz")
                file = self._transfer_file(
                    f"{stage}/source.tar.gz", self._connection._shell.join_path(remote, "source")
                )
            self._fixup_perms2((remote, file))
            return self._module({**arguments, "file": file}, task_vars)
        finally:
            self._remove_tmp_path(remote)

    def _module(self, arguments, task_vars):
        return self._execute_module(
            module_name="llm.server.application_source", module_args=arguments, task_vars=task_vars
        )
