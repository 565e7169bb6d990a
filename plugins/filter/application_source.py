"""Filter of the ai_server role for the source of the application."""

from __future__ import annotations


def application_origin(archive: dict, repository: dict, path: dict) -> dict:
    """Return the origin to use: the archive if its ``url`` is set, the repository if its own is, or else the path.

    The path comes last because it has a default.
    """
    return archive if archive["url"] else repository if repository["repository"] else path


class FilterModule:
    def filters(self):
        return {"application_origin": application_origin}
