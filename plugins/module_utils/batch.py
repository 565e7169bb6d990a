"""The steps of a batch: where their options come from, and which of them a run would have to do."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable

from .errors import UserError

# The modules that can be steps; `doors` has their files.
MODULES = (
    "application_source",
    "logrotate_file",
    "model_files",
    "python_environment",
    "released_program",
    "service_account",
    "service_release",
    "system_packages",
)
# A run of these has something to do even if nothing differs.
CONFIRMED = {"service_release"}


def options(step: dict, results: dict[str, dict]) -> dict:
    """Return the options of a step, those of ``options_from`` taken from the results of earlier steps.

    ``options_from`` is ``{PLACE: "NAME.KEY"}``. NAME is the ``register`` of an earlier step, and KEY is a key of its
    result. PLACE is an option, or a part of one, such as ``links.0.target``. Raises UserError if one is missing.
    """
    taken = copy.deepcopy(step["options"])
    for place, source in (step.get("options_from") or {}).items():
        name, _, key = source.partition(".")
        *path, last = (int(word) if word.isdigit() else word for word in place.split("."))
        try:
            functools.reduce(operator.getitem, path, taken)[last] = results[name][key]
        except (LookupError, TypeError):
            raise UserError(
                f"{step['name']}: options_from has {place}: {source}, and one of the two is missing."
            ) from None
    return taken


def differs(result: dict) -> bool:
    """Return whether a run of the step itself would have anything to do.

    It would fail, change or record something, wait for a service, or put the host back into rotation.
    """
    return bool(result.get("failed") or result["changed"] or any(map(result.get, ("pending", "await", "out"))))


def compare(steps: list[dict], check_mode: bool, call: Callable[[str, dict], dict]) -> list[dict | None]:
    """Return the result of each step in check mode; None if it was left out.

    ``call`` runs a module with arguments and returns its result. ``steps`` are dicts with ``module``, ``options`` and
    ``group``, and if wanted ``options_from`` and ``register``. What follows a failed step in its group is left out. So
    is what follows a change unless ``check_mode``, since a run begins there. A service without differences is
    confirmed, as a run would do it, unless ``check_mode``.
    """
    found: list[dict | None] = []
    named: dict[str, dict] = {}
    over: set[str] = set()
    for step in steps:
        if step["group"] in over:
            found.append(None)
            continue
        confirm = step["module"] in CONFIRMED and not check_mode
        mode = {"confirm": True} if confirm else {"_ansible_check_mode": True}
        try:
            result = call(step["module"], {**options(step, named), **mode})
        except UserError as error:
            result = {"failed": True, "changed": False, "msg": str(error)}
        found.append(result)
        if result.get("failed") or (differs(result) and not check_mode):
            over.add(step["group"])
        if step.get("register"):
            named[step["register"]] = result
    return found
