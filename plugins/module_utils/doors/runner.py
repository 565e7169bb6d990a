"""Run a module in this process, as it would run alone.

A call of a module costs about 0.2 s before the module does anything, most of it for Python to compile what Ansible
sends. For the modules of a batch that is paid once. Each runs in a fork of the process, so none sees what another
changed in it, such as environment variables.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from ansible.module_utils import basic

if TYPE_CHECKING:
    # Only for Ansible, which sends every module that a file imports, even here. A call imports only what it needs.
    from . import (  # noqa: F401
        application_source,
        checklist,
        engine_list,
        logrotate_file,
        model_files,
        python_environment,
        released_program,
        service_account,
        service_release,
        system_packages,
    )


def call(module: str, arguments: dict) -> dict:
    """Return the result of a module, run with these arguments and this process's settings of Ansible."""
    # Before the fork, so that the next module finds it imported.
    main = import_module(f".{module}", __package__).main
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if not child:
            _run(main, arguments, output.fileno())
        status = os.waitpid(child, 0)[1]
        output.seek(0)
        text = output.read()
    if not text:
        code = os.waitstatus_to_exitcode(status)
        return {"failed": True, "changed": False, "msg": f"{module} returned no result (exit code {code})"}
    return json.loads(text)


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
