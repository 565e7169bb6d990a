"""The services of this machine that have a release store, and what their records say. Plain Python."""

from __future__ import annotations

from pathlib import Path

from .store import STORE, Service

ENVIRONMENTS = "environments"  # the directory of a service's virtual environments, in its root


def listed() -> list[dict]:
    """Return each service with ``name``, ``unit``, ``current``, ``verified`` and ``environments``; sorted by name.

    ``current`` is the digest of the release that runs (None before the first one), ``verified`` the digests to which a
    rollback can go, newest last, and ``environments`` the directories in which its virtual environments are built.
    """
    return [_described(Service(path.name)) for path in sorted(STORE.glob("*")) if path.is_dir()]


def _described(service: Service) -> dict:
    state = service.state()
    created, needs = (state.get(part) or {} for part in ("created", "needs"))
    paths = [entry["path"] for entry in created.get("directories", [])] + needs.get("directories", [])
    return {
        "name": service.name,
        "unit": service.unit,
        "current": state["current"],
        "verified": state["verified"],
        "environments": sorted({path for path in paths if Path(path).name == ENVIRONMENTS}),
    }
