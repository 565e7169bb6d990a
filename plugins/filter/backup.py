"""Filters for the role backup."""

from __future__ import annotations

import posixpath
from pathlib import PurePosixPath


def backup_sets(data: list, paths: list) -> list:
    """Return all data directories with a name; a path of ``paths`` is its own name and is optional on the host."""
    named = [{**one, "optional": False} for one in data]
    further = [
        {"name": one["path"], "path": one["path"], "service": one.get("service") or "", "optional": True}
        for one in paths
    ]
    return named + further


def holding(sets: list, repository: str) -> list:
    """Return the data directories that contain the repository, which would back up itself."""
    place = PurePosixPath(posixpath.normpath(repository))
    return [one["path"] for one in sets if repository.startswith("/") and place.is_relative_to(one["path"])]


def nested(sets: list) -> list:
    """Return the directories inside another one; a restore could not replace the two independently."""
    paths = [PurePosixPath(one["path"]) for one in sets]
    return [str(inner) for inner in paths if any(outer in inner.parents for outer in paths)]


def variable_lines(variables: dict) -> str:
    """Return lines of ``NAME=value``, without quoting."""
    return "".join(f"{name}={value}\n" for name, value in variables.items() if value is not None)


class FilterModule:
    def filters(self):
        return {"backup_sets": backup_sets, "holding": holding, "nested": nested, "variable_lines": variable_lines}
