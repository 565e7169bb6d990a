"""Run a module in this process, as it would run alone.

A call of a module costs about 0.2 s before the module does anything, most of it for Python to compile what Ansible
sends. For the modules of a batch that is paid once. Each runs in a fork of the process, so none sees what another
changed in it, such as environment variables.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable
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


def load(modules: Iterable[str]) -> None:
    """Import modules, so that forks of this process find them imported."""
    for module in modules:
        import_module(f".{module}", __package__)


def call(module: str, arguments: dict) -> dict:
    """Return the result of a module, run with these arguments and this process's settings of Ansible."""
    main = import_module(f".{module}", __package__).main
    ((text, code),) = _forked([functools.partial(_run, main, arguments)])
    if not text:
        return {"failed": True, "changed": False, "msg": f"{module} returned no result (exit code {code})"}
    return json.loads(text)


def at_once(works: list[Callable[[], list]]) -> list[list]:
    """Return what each function returns, which must fit into JSON.

    Several run at the same time, each in a process of its own. Raises RuntimeError if a process ends without a result.
    """
    if len(works) < 2:
        return [work() for work in works]
    ends = _forked([functools.partial(_write, work) for work in works])
    failed = [code for text, code in ends if not text]
    if failed:
        raise RuntimeError(f"a comparison returned no result (exit code {failed[0]})")
    return [json.loads(end[0]) for end in ends]


def _forked(works: list[Callable[[int], None]]) -> list[tuple[bytes, int]]:
    """Run each function in a child of this process, with a file's descriptor; return what it wrote and its exit code.

    The code is negative if a signal ended the child.
    """
    with contextlib.ExitStack() as stack:
        outputs = [stack.enter_context(tempfile.TemporaryFile()) for work in works]
        children = [_fork(work, output.fileno()) for work, output in zip(works, outputs, strict=True)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        for output in outputs:
            output.seek(0)
        return [(output.read(), code) for output, code in zip(outputs, codes, strict=True)]


def _fork(work: Callable[[int], None], output: int) -> int:
    """Start a child that runs a function; return its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        work(output)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # The child must not return: the parent's clean-up would run twice.
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        finally:
            os._exit(code)


def _write(work: Callable[[], list], output: int) -> None:
    with open(output, "w", closefd=False) as file:
        json.dump(work(), file)


def _run(main: Callable[[], None], arguments: dict, output: int) -> None:
    """Run a module's `main` with its output in a file."""
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
