"""Where the collection's own tables and files are, in an installed collection or in the repository."""

from __future__ import annotations

from pathlib import Path

from ansible.errors import AnsibleFilterError

# Not resolved: the link that makes the repository a collection stays in the path.
ROOT = Path(__file__).parents[2]


def own_path(name: str) -> str:
    """Return the absolute path of a file, folder or pattern of the collection, such as ``data/vllm/versions.yml``.

    Raises AnsibleFilterError if its folder is missing.
    """
    path = ROOT / name
    if not path.parent.is_dir():
        raise AnsibleFilterError(f"The collection has no {name}: it is not whole; install it again.")
    return str(path)


class FilterModule:
    def filters(self):
        return {"own_path": own_path}
