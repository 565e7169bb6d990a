"""Filters for released programs: downloads, checksums and the steps of a batch."""

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


# Keys of a program that are passed to service_release if they are set.
GIVEN = (
    "purge", "groups", "conflicts", "directories", "links", "files", "secrets", "inputs", "limits", "trials", "peers",
    "listens",
)  # fmt: skip
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
START_TIMEOUT = 30  # seconds


def goarch(machine: str) -> str:
    """Return the name that releases have for a machine type, as in Go's GOARCH: ``amd64`` for ``x86_64``.

    Raises an error for a type for which there are no releases.
    """
    if machine not in ARCHITECTURES:
        raise AnsibleFilterError(f"There are no releases for {machine}; use a host with {' or '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[machine]


def released_steps(program: dict, machine: str) -> list[dict]:
    """Return the steps of a batch that run a released program, or remove it; ``machine`` is the fact ``architecture``.

    ``program`` is described by the role released_service. Raises an error if its version has no checksum.
    """
    name, state = program["name"], program["state"]
    options = {
        "name": name,
        "state": state,
        "user": program.get("user") or name,
        "unit": program["unit"],
        "probes": program["probes"],
        "start_timeout": program.get("start_timeout") or START_TIMEOUT,
        **{key: program[key] for key in GIVEN if key in program},
    }
    service = {"name": f"Run {name}", "module": "service_release", "register": name, "options": options}
    if state == "absent":
        gone = {"name": name, "state": "absent"}
        service["name"] = f"Remove {name}"
        return [service, {"name": "Remove the program", "module": "released_program", "options": gone}]
    archive = {
        "version": program["version"],
        "url": mirrored(program["url"], program.get("mirror")),
        "checksum": checksum_of(program["checksums"], program["version"], goarch(machine), f"{name}_version"),
        "member": program.get("member"),
        "ca_path": program.get("ca_path") or None,
    }
    options["program"] = archive
    return [service]


class FilterModule:
    def filters(self):
        return {
            "mirrored": mirrored,
            "checksum_of": checksum_of,
            "newest_version": newest_version,
            "goarch": goarch,
            "released_steps": released_steps,
        }
