"""Test the newest controller of requirements/controller-newest.txt: ansible-core 2.21 on Python 3.14.

    python tests/newest_controller.py check              a part of the daily tests, without a machine
    python tests/newest_controller.py scenario NAME      a role of molecule/ on a booted machine, run twice
    python tests/newest_controller.py sanity             its ansible-test's sanity tests of the modules

It has its own interpreter and environment in the laboratory's cache. A deprecation warning counts as a failure, since a
later version of ansible-core removes the feature.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lab import cpython, host  # noqa: E402

LOCKS = ("requirements/controller-newest.txt", "requirements/dev-newest.txt")
LOCK = ROOT / LOCKS[-1]
HOME = host.CACHE / "controllers"
DEPRECATED = re.compile(r"\[DEPRECATION WARNING\].*")
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
# A selection, since each play of the daily tests takes seconds.
VALIDATION = "tests/integration/test_validation.py::"
CHECKS = (
    "tests/newest",
    "tests/unit/install/test_licences.py::test_python_packages_are_permissive",
    "tests/integration/test_collection.py",
    "tests/integration/test_production_example.py::test_the_engine_is_the_one_of_the_guide",
    "tests/integration/test_production_example.py::test_all_missing_variables_are_reported_at_once",
    f"{VALIDATION}test_good_input_passes",
    f"{VALIDATION}test_no_credentials_of_an_address_are_shown",
    f"{VALIDATION}test_each_bad_value_is_named_with_its_cure",
)
# tests/newest does it in one process: one process per playbook takes 40 seconds.
LEFT_OUT = "not test_every_playbook_is_found_by_its_full_name"
# Without verify, since its tests of the machine do not depend on the controller.
SEQUENCE = ("destroy", "converge", "idempotence", "destroy")
# Only the older version checks style. This one's pylint also requires the run_command of a module, which plain Python
# such as ours does not have.
SANITY = ("--skip-test", "pylint")


def environment() -> Path:
    """Return the environment's folder; rebuild it if its lock or its interpreter has changed."""
    folder = HOME / host.digest([LOCK.read_text(), cpython.recipe(cpython.NEWEST)])
    interpreter = cpython.ensure(cpython.NEWEST) / "bin" / cpython.NEWEST.name
    with host.lock("controllers"):
        if not (folder / ".complete").exists():
            host.ensure_room(HOME, 1, "the newest controller")
            uv = str(Path(sys.executable).with_name("uv"))
            host.run([uv, "venv", "--quiet", "--clear", "--python", str(interpreter), str(folder)])
            sync = [uv, "pip", "sync", "--quiet", "--require-hashes", "--python", str(folder / "bin/python"), str(LOCK)]
            host.run(sync, cure="check the network and try again", tries=3)
            # Without bytecode, every run of Ansible would compile its modules again, which takes a second.
            compiled = ["-m", "compileall", "-q", "-j", "0", "-x", "ansible_collections|ansible_test"]
            host.run([str(folder / "bin/python"), *compiled, str(folder / "lib")])
            (folder / ".complete").touch()
    return folder


def deprecations(log: Path) -> list[str]:
    """Return the distinct deprecation warnings in a log of Ansible."""
    return sorted(set(DEPRECATED.findall(log.read_text(errors="replace")))) if log.exists() else []


def run(folder: Path, argv: list[str], **variables: str) -> int:
    """Run a command with the controller first in PATH; return its exit code, or 1 for a deprecation warning."""
    with tempfile.TemporaryDirectory(prefix="newest-") as work:
        log = Path(work) / "ansible.log"
        settings = {"ANSIBLE_DEPRECATION_WARNINGS": "true", "ANSIBLE_LOG_PATH": str(log), "ANSIBLE_HOME": work}
        paths = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "LICENCE_LOCKS": " ".join(LOCKS)}
        code = subprocess.run(argv, cwd=ROOT, env={**os.environ, **settings, **paths, **variables}).returncode
        found = deprecations(log)
    print("".join(f"ERROR {each}\n" for each in found), end="")
    return code or int(bool(found))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["check", "scenario", "sanity"])
    parser.add_argument("name", nargs="?", default="node_exporter")
    options = parser.parse_args()
    try:
        folder = environment()
    except host.Problem as problem:
        host.say(f"error: {problem}")
        return 2
    python = str(folder / "bin/python")
    if options.part == "check":
        return run(folder, [python, *PYTEST, *CHECKS, "-k", LEFT_OUT])
    if options.part == "sanity":
        return run(folder, [python, "tests/sanity.py", *SANITY])
    place = ROOT / ".lab" / "molecule" / f"{options.name}-newest"
    for action in SEQUENCE:
        argv = [str(folder / "bin/molecule"), action, "--scenario-name", options.name]
        if code := run(folder, argv, MOLECULE_EPHEMERAL_DIRECTORY=str(place)):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
