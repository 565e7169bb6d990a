"""Run several modules in one process of a host, each as it would run alone in check mode.

A call of a module costs about 0.2 s before the module does anything, most of it for Python to compile what Ansible
sends. Here that is paid once. Each module runs in a fork of the process, so none sees what another changed in it, such
as environment variables.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable

from ansible.module_utils import basic

from .doors import (
    application_source,
    logrotate_file,
    model_files,
    python_environment,
    service_account,
    system_packages,
)

DOORS: dict[str, Callable[[], None]] = {
    door.__name__.rpartition(".")[2]: door.main
    for door in (
        application_source,
        logrotate_file,
        model_files,
        python_environment,
        service_account,
        system_packages,
    )
}


def options(step: dict, results: dict[str, dict]) -> dict:
    """Return the options of a step, those of ``options_from`` taken from the results of earlier steps.

    ``options_from`` is ``{option: "NAME.KEY"}``; NAME is the ``register`` of an earlier step, KEY a key of its result.
    """
    taken = {}
    for option, place in (step.get("options_from") or {}).items():
        name, _, key = place.partition(".")
        taken[option] = results[name][key]
    return {**step["options"], **taken}


def preview(steps: list[dict]) -> list[dict]:
    """Return the results of the steps, in order, up to the first that fails.

    ``steps`` are dicts with ``module``, ``options``, and if wanted ``options_from`` and ``register``.
    """
    found: list[dict] = []
    named: dict[str, dict] = {}
    for step in steps:
        result = call(DOORS[step["module"]], {**options(step, named), "_ansible_check_mode": True})
        found.append(result)
        if result.get("failed"):
            break
        if step.get("register"):
            named[step["register"]] = result
    return found


def call(main: Callable[[], None], arguments: dict) -> dict:
    """Return the result of a module's `main` with these arguments, and what Ansible gave this process besides."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if not child:
            _run(main, arguments, output.fileno())
        os.waitpid(child, 0)
        output.seek(0)
        return json.loads(output.read())


def _run(main: Callable[[], None], arguments: dict, output: int) -> None:
    """Run `main` and end this process. It must not return: the parent's clean-up would run twice."""
    try:
        os.dup2(output, 1)
        given = json.loads(basic._ANSIBLE_ARGS)
        own = {name: value for name, value in given["ANSIBLE_MODULE_ARGS"].items() if name.startswith("_ansible_")}
        given["ANSIBLE_MODULE_ARGS"] = {**own, **arguments}
        basic._ANSIBLE_ARGS = json.dumps(given).encode()
        main()
    except SystemExit:
        pass  # The result is written.
    except BaseException as error:
        failed = {"failed": True, "msg": f"{type(error).__name__}: {error}", "exception": traceback.format_exc()}
        os.write(1, json.dumps(failed).encode())
    finally:
        sys.stdout.flush()
        os._exit(0)
