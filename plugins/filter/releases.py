"""Filters that turn a version into a download."""

from __future__ import annotations

from urllib.parse import urlsplit

from ansible.errors import AnsibleFilterError

from ..module_utils.install import release_table


def mirrored(url: str, base: str | None) -> str:
    """Return ``url``, or its place below the mirror ``base``: ``<base>/<host>/<path>``.

    An address that is not HTTP, such as ``git@github.com:…``, has no place there and is returned unchanged.
    """
    parts = urlsplit(url)
    if not base or parts.scheme not in ("http", "https"):
        return url
    return f"{base.rstrip('/')}/{parts.netloc}{parts.path}"


def checksum_of(table: dict, version: str, architecture: str, variable: str) -> str:
    """Return the checksum of ``version`` for ``architecture``.

    ``table`` is ``{version: {architecture: "sha256:…"}}``. Raises an error for a version or architecture that is not in
    the table, with the known ones and the variable (``<role>_checksums``) that adds one.
    """
    cure = f"choose one of these or add the release's sha256 by {variable.removesuffix('_version')}_checksums"
    if version not in table:
        known = ", ".join(sorted(table)) or "none"
        raise AnsibleFilterError(f"{variable}: version {version} has no checksum (known: {known}); {cure}")
    if architecture not in table[version]:
        known = ", ".join(sorted(table[version]))
        raise AnsibleFilterError(
            f"{variable}: version {version} has no checksum for {architecture} (known: {known}); {cure}"
        )
    return table[version][architecture]


def newest_version(table: dict) -> str:
    """Return the newest version of a checksum table (see ``checksum_of``) that is not a pre-release.

    Raises an error for a table without a release, and for a key that is not a version.
    """
    try:
        return release_table.newest(table)
    except ValueError as error:
        raise AnsibleFilterError(str(error)) from error


class FilterModule:
    def filters(self):
        return {"mirrored": mirrored, "checksum_of": checksum_of, "newest_version": newest_version}
