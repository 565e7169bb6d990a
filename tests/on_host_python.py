"""Run the unit tests of the roles' Python on CPython 3.10, the Python of Ubuntu 22.04, as on a host.

Besides the project's files, the environment only has what Ansible sends with a module: its module_utils. Test files
that import controller-only modules are left out by `tests/unit/conftest.py`. Arguments are pytest's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import ansible.module_utils

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lab import cpython, host  # noqa: E402

LOCK = ROOT / "requirements" / "host.txt"
RECIPE = host.digest([LOCK.read_text(), cpython.recipe(), version("ansible-core")])
HOME = host.STATE / "python3.10"


def environment() -> Path:
    """Return the environment's folder; rebuild it if its inputs have changed."""
    folder = HOME / RECIPE
    if not (folder / ".complete").exists():
        interpreter = cpython.ensure() / "bin/python3.10"
        uv = str(Path(sys.executable).with_name("uv"))
        host.run([uv, "venv", "--quiet", "--clear", "--python", str(interpreter), str(folder)])
        sync = [uv, "pip", "sync", "--quiet", "--require-hashes", "--python", str(folder / "bin/python"), str(LOCK)]
        host.run(sync, cure="check the network and try again", tries=3)
        package = folder / "sent" / "ansible"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "module_utils").symlink_to(Path(ansible.module_utils.__file__).parent)
        (folder / ".complete").touch()
    return folder


def main() -> int:
    folder = environment()
    command = [str(folder / "bin/python"), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    variables = {**os.environ, "PYTHONPATH": str(folder / "sent"), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run([*command, *(sys.argv[1:] or ["tests/unit"])], cwd=ROOT, env=variables).returncode


if __name__ == "__main__":
    sys.exit(main())
