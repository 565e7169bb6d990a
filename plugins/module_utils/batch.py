"""The steps of a batch: where their options come from, and which of them a run must execute."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable

from .errors import UserError

# The modules that can be steps; their code is in `doors`.
MODULES = (
    "application_source",
    "checklist",
    "engine_list",
    "logrotate_file",
    "model_files",
    "python_environment",
    "released_program",
    "service_account",
    "service_release",
    "system_packages",
)
# A run of these also asks the probes and keeps its records if nothing differs.
WITH_COMPARE_ONLY = {"service_release"}
# Keys of a result between a module and its action plugin.
INTERNAL = {"pending", "await", "out", "may_roll_back", "new_secrets"}


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
                f"{step['name']}: options_from has {place}: {source}; there is no such option, or no earlier step "
                "registered that result. Correct the name."
            ) from None
    return taken


def differs(result: dict) -> bool:
    """Return whether a run of the step itself would do anything.

    It would fail, change or record something, wait for a service, or put the host back into rotation.
    """
    return bool(result.get("failed") or result["changed"] or any(map(result.get, ("pending", "await", "out"))))


def compare(
    steps: list[dict],
    check_mode: bool,
    call: Callable[[str, dict], dict],
    run_all: Callable[[list[Callable[[], list]]], list[list]],
) -> list[dict | None]:
    """Return the result of each step's comparison; None for a step that was left out.

    ``call`` runs a module with arguments and returns its result; ``run_all`` runs one function per group. ``steps`` are
    dicts with ``name``, ``module``, ``options`` and ``group``; ``options_from`` and ``register`` are optional and refer
    to steps of the same group. After a failure, the rest of the group is left out; after a difference too, unless
    ``check_mode``, because a run starts there. Unless ``check_mode``, a service is compared with ``compare_only``
    instead of check mode.
    """
    groups: dict[str, list[int]] = {}
    for number, step in enumerate(steps):
        groups.setdefault(step["group"], []).append(number)
    works = [
        functools.partial(_compare_group, [steps[number] for number in numbers], check_mode, call)
        for numbers in groups.values()
    ]
    found = {}
    for numbers, results in zip(groups.values(), run_all(works), strict=True):
        found.update(zip(numbers, results, strict=True))
    return [found[number] for number in range(len(steps))]


def _compare_group(steps: list[dict], check_mode: bool, call: Callable[[str, dict], dict]) -> list[dict | None]:
    found: list[dict | None] = []
    named: dict[str, dict] = {}
    for step in steps:
        as_a_run = step["module"] in WITH_COMPARE_ONLY and not check_mode
        mode = {"compare_only": True} if as_a_run else {"_ansible_check_mode": True}
        try:
            result = call(step["module"], {**options(step, named), **mode})
        except UserError as error:
            result = {"failed": True, "changed": False, "msg": str(error)}
        found.append(result)
        if result.get("failed") or (differs(result) and not check_mode):
            break
        if step.get("register"):
            named[step["register"]] = result
    return found + [None] * (len(steps) - len(found))
