"""Nothing under a licence that is not permissive is built, or installed by the project's locks.

What this does not read: the locks of vLLM's environments (lab/vllm, data/vllm/locks), whose packages are not installed
here, and Debian's packages.
"""

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import Marker

from lab import builds

ROOT = Path(__file__).resolve().parents[2]
LOCKS = (
    "requirements/controller.txt",
    "requirements/dev.txt",
    "ai_server/requirements.txt",
    "data/profile/py-spy.txt",
    "roles/uv/files/requirements.txt",
)

# Go modules that may be built, by the LICENSE in the module itself. What node_exporter 1.9.0 links was looked through
# by `go version -m`: Apache-2.0, BSD, MIT and MPL-2.0; github.com/dennwc/ioctl alone carries no text of a licence.
GO_MODULES = {
    "github.com/prometheus/node_exporter": "Apache-2.0",
    # What the four programs link is under Apache-2.0, BSD and MIT, by `go version -m` and each module's LICENSE.
    "github.com/VictoriaMetrics/VictoriaMetrics": "Apache-2.0",
    "github.com/VictoriaMetrics/VictoriaLogs": "Apache-2.0",
    "gopkg.in/yaml.v3": "MIT AND Apache-2.0",
    "gopkg.in/check.v1": "BSD-2-Clause",  # yaml.v3's tests use it; nothing links it
}

# Programs that are run as they are, and shipped nowhere.
ONLY_RUN = {
    "ansible": "the collections that the playbooks call",
    "ansible-core": "runs the playbooks",
    "ansible-lint": "linter",
    "yamllint": "linter",
}

PERMISSIVE = re.compile(
    r"\b(MIT(-0)?|Apache|BSD|0BSD|ISC|MPL|Mozilla Public License|PSF|Zlib|CC0)\b|\A(Python Software Foundation)"
)


def permissive(licence):
    """Tell whether every part of a licence is permissive; of a choice too, to keep it simple."""
    return "GPL" not in licence and all(PERMISSIVE.search(part) for part in re.split(r"\b(?:AND|OR)\b", licence))


def licence_of(name):
    """Return what an installed distribution says of its licence: expression, first line of the text, or classifiers."""
    told = metadata.metadata(name)
    classified = [text.rpartition(" :: ")[2] for text in told.get_all("Classifier") or [] if text.startswith("License")]
    lines = (told.get("License") or "").splitlines()
    return told.get("License-Expression") or (lines[0] if lines else "") or " AND ".join(classified)


def locked(lock):
    """Return the names of a lock that are for this Python and system."""
    rows = re.findall(r"^([\w.-]+)==[^\s;]+(?: *; *([^\\\n]+))?", (ROOT / lock).read_text(), re.MULTILINE)
    return {name for name, marker in rows if not marker.strip() or Marker(marker.strip()).evaluate()}


@pytest.mark.parametrize(
    "licence, good",
    [
        ("MIT", True),
        ("BSD-3-Clause AND 0BSD AND MIT", True),
        ("Mozilla Public License 2.0 (MPL 2.0)", True),
        ("AGPL-3.0-only", False),
        ("MIT AND LGPL-2.1-or-later", False),
        ("MIT-like with parts under the AGPL", False),
        ("LicenseRef-Proprietary", False),
        ("GNU General Public License v3 or later (GPLv3+)", False),
        ("", False),
    ],
)
def test_licences_are_told_apart(licence, good):
    assert permissive(licence) is good


@pytest.mark.parametrize("lock", LOCKS)
def test_python_packages_are_permissive(lock):
    names = locked(lock)
    assert names
    wrong = {name: licence_of(name) for name in names - ONLY_RUN.keys() if not permissive(licence_of(name))}
    assert wrong == {}


def test_go_modules_are_permissive():
    assert all(map(permissive, GO_MODULES.values()))
    built = {program.module for program in builds.PROGRAMS.values() if program.module}
    for path in ROOT.glob("lab/**/go.*"):
        requirement = r"^(?:require)?\s*([\w.-]+\.[\w-]+/\S+) v\d"
        built |= set(re.findall(requirement, path.read_text(), re.MULTILINE))
    assert {"github.com/prometheus/node_exporter", "gopkg.in/yaml.v3"} <= built
    assert built <= GO_MODULES.keys()
