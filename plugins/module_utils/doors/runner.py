"""Run a module in this process, as it would run alone.

A call of a module costs about 0.2 s before the module does anything, most of it for Python to compile what Ansible
sends. For the modules of a batch that is paid once. Each runs in a fork of the process, so none sees what another
changed in it, such as environment variables.
"""

from __future__ import annotations

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
    text, code = _Fork(lambda output: _run(main, arguments, output)).end()
    if not text:
        return {"failed": True, "changed": False, "msg": f"{module} returned no result (exit code {code})"}
    return json.loads(text)


def at_once(works: list[Callable[[], list]]) -> list[list]:
    """Return what each function returns, which must fit into JSON; each runs in its own process, all at the same time.

    Raises RuntimeError if a process ends without a result.
    """
    if len(works) < 2:
        return [work() for work in works]
    forks = [_Fork(functools.partial(_write, work)) for work in works]
    ends = [fork.end() for fork in forks]
    failed = [code for text, code in ends if not text]
    if failed:
        raise RuntimeError(f"a comparison returned no result (exit code {failed[0]})")
    return [json.loads(text) for text, _ in ends]


class _Fork:
    """A child of this process that calls ``work`` with the number of a file for its result."""

    def __init__(self, work: Callable[[int], object]) -> None:
        self.output = tempfile.TemporaryFile()
        self.child = os.fork()
        if not self.child:
            # The child must not return: the parent's clean-up would run twice.
            code = 1
            try:
                work(self.output.fileno())
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def end(self) -> tuple[bytes, int]:
        """Wait for the child; return what it wrote, and its exit code."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])
        with self.output as output:
            output.seek(0)
            return output.read(), code


def _write(work: Callable[[], list], output: int) -> None:
    with open(output, "w", closefd=False) as file:
        json.dump(work(), file)


def _run(main: Callable[[], None], arguments: dict, output: int) -> None:
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
