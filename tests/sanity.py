"""Run ansible-test's sanity tests on the built and installed collection.

The environments of its linters are kept in the laboratory's cache, with their own home. The file in tests/sanity lists
the accepted findings of every version, each with its reason. Arguments are those of `ansible-test sanity`, such as
`--test pylint`.
"""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import yaml
from ansible.release import __version__
from ansible_test._internal.python_requirements import get_venv_packages
from ansible_test._util.target.common.constants import CONTROLLER_PYTHON_VERSIONS

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lab import host  # noqa: E402

BIN = Path(sys.executable).parent
HOME = host.CACHE / "sanity"
GALAXY = yaml.safe_load((ROOT / "galaxy.yml").read_text())
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
CORE = __version__.rpartition(".")[0]
ACCEPTED = ROOT / "tests" / "sanity" / "ignore-2.19.txt"

# Instead of downloading get-pip.py from the Internet, ansible-test uses the pip that comes with Python.
BOOTSTRAP = """\
import subprocess
import sys

subprocess.check_call([sys.executable, "-m", "ensurepip"])
words = [word for word in sys.argv[1:] if word not in ("--no-setuptools", "--no-wheel")]
sys.exit(subprocess.call([sys.executable, "-m", "pip", "install", *words]))
"""


def prepare_home() -> None:
    """Write the files that ansible-test would download, and the user's pip settings."""
    # After an interpreter was rebuilt at another path, ansible-test does not notice that its environments are broken.
    for environment in HOME.glob(".ansible/test/venv/*/*/*"):
        if not (environment / "bin" / "python").exists():
            shutil.rmtree(environment)
    cache = HOME / ".ansible" / "test" / "cache"
    cache.mkdir(parents=True, exist_ok=True)
    version = get_venv_packages(SimpleNamespace(version=PYTHON))["pip"]
    (cache / f"get_pip_{version.replace('.', '_')}.py").write_text(BOOTSTRAP)
    # ansible-test passes no environment variables on, so the user's pip settings, such as the index, go into a file.
    settings = configparser.RawConfigParser()
    settings.read(Path("~/.config/pip/pip.conf").expanduser())
    given = {name[4:].lower().replace("_", "-"): value for name, value in os.environ.items() if name.startswith("PIP_")}
    settings.read_dict({"global": {name: " ".join(value.split()) for name, value in given.items()}})
    folder = HOME / ".config" / "pip"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "pip.conf").open("w") as handle:
        settings.write(handle)


def install(folder: Path) -> Path:
    """Build the collection and install it below ``folder``; return its path, with the accepted findings in it."""
    galaxy = [str(BIN / "ansible-galaxy"), "collection"]
    own = {"HOME": str(HOME)}
    host.run([*galaxy, "build", str(ROOT), "--output-path", str(folder)], env=own, cwd=folder)
    archive = folder / f"{GALAXY['namespace']}-{GALAXY['name']}-{GALAXY['version']}.tar.gz"
    host.run([*galaxy, "install", str(archive), "--no-deps", "--collections-path", str(folder)], env=own, cwd=folder)
    place = folder / "ansible_collections" / GALAXY["namespace"] / GALAXY["name"]
    written = place / "tests" / "sanity" / f"ignore-{CORE}.txt"
    written.parent.mkdir(parents=True)
    written.write_text(accepted(ACCEPTED.read_text()))
    return place


def accepted(text: str) -> str:
    """Return the accepted findings for this Python; modules that cannot be imported are listed once per version.

    Plugins that run on the controller are only imported by the controller's versions of Python.
    """
    lines = [line for line in text.splitlines(keepends=True) if not _too_old(line)]
    last = max(re.findall(r" import-(3\.\d+) ", text), key=lambda version: int(version[2:]))
    if f" import-{PYTHON} " in text:
        return "".join(lines)
    return "".join([*lines, *(line.replace(last, PYTHON) for line in lines if f" import-{last} " in line)])


def _too_old(line: str) -> bool:
    version = re.match(r"plugins/(?:action|filter|plugin_utils)/\S+ import-(3\.\d+) ", line)
    return bool(version) and version[1] not in (*CONTROLLER_PYTHON_VERSIONS, PYTHON)


def main() -> int:
    with host.lock("sanity"), tempfile.TemporaryDirectory(prefix="sanity-") as folder:
        prepare_home()
        place = install(Path(folder))
        words = ["sanity", "--python", PYTHON, "--color", "no", *sys.argv[1:]]
        variables = {**os.environ, "HOME": str(HOME), "PATH": f"{BIN}:{os.environ['PATH']}"}
        return subprocess.run([str(BIN / "ansible-test"), *words], cwd=place, env=variables).returncode


if __name__ == "__main__":
    sys.exit(main())
