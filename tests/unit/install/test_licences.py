"""Nothing with a licence that is not permissive is built, or installed by the project's locks.

Not checked here: the locks of vLLM's environments (lab/vllm, data/vllm/locks), whose packages are not installed here;
the lock of pyinfra (lab/pyinfra), which only the benchmark runs and which includes paramiko under the LGPL; and
Debian's packages. For a Go program, the licence text of every linked module is read during the build
(lab/licences.py), and the program is not kept if one is not permissive.
"""

import os
import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import Marker

from lab import builds, collector, host, licences

ROOT = Path(__file__).resolve().parents[3]
# A package's licence is read where it is installed: tests/newest_controller.py has other locks and runs this there.
LOCKS = os.environ.get("LICENCE_LOCKS", "").split() or (
    "requirements/controller.txt",
    "requirements/dev.txt",
    "ai_server/requirements.txt",
    "data/profile/py-spy.txt",
    "roles/uv/files/requirements.txt",
)

# Go modules that may be built, by the LICENSE in the module. The modules linked into node_exporter 1.9.0 were checked
# by `go version -m`: Apache-2.0, BSD, MIT and MPL-2.0; only github.com/dennwc/ioctl contains no licence text.
GO_MODULES = {
    "github.com/prometheus/node_exporter": "Apache-2.0",
    # The modules linked into the four programs are under Apache-2.0, BSD and MIT, by `go version -m` and their LICENSE.
    "github.com/VictoriaMetrics/VictoriaMetrics": "Apache-2.0",
    "github.com/VictoriaMetrics/VictoriaLogs": "Apache-2.0",
    "gopkg.in/yaml.v3": "MIT AND Apache-2.0",
    "gopkg.in/check.v1": "BSD-2-Clause",  # used by yaml.v3's tests; not linked
}

# Programs that are only run, unmodified, and not distributed.
ONLY_RUN = {
    "ansible": "the collections that the playbooks call",
    "ansible-core": "runs the playbooks",
    "ansible-lint": "linter",
    "antsibull-changelog": "writes CHANGELOG.md",
    "antsibull-docs-parser": "a part of antsibull-changelog",
    "antsibull-docutils": "a part of antsibull-changelog",
    "antsibull-fileutils": "a part of antsibull-changelog",
    "docutils": "a part of antsibull-changelog; public domain and BSD but for a mode of Emacs",
    "yamllint": "linter",
}

PERMISSIVE = re.compile(
    r"\b(MIT(-0)?|Apache|BSD|0BSD|ISC|MPL|Mozilla Public License|PSF|Zlib|CC0)\b|\A(Python Software Foundation)"
)


def permissive(licence):
    """Return whether every part of a licence is permissive, for simplicity also of alternatives."""
    return "GPL" not in licence and all(PERMISSIVE.search(part) for part in re.split(r"\b(?:AND|OR)\b", licence))


def licence_of(name):
    """Return an installed distribution's licence: its expression, the first line of its text, or its classifiers."""
    fields = metadata.metadata(name)
    classified = [
        text.rpartition(" :: ")[2] for text in fields.get_all("Classifier") or [] if text.startswith("License")
    ]
    lines = (fields.get("License") or "").replace("UNKNOWN", "").splitlines()
    return fields.get("License-Expression") or (lines[0] if lines else "") or " AND ".join(classified)


def locked(lock):
    """Return the names in a lock that apply to this Python and system."""
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
def test_licences_are_distinguished(licence, good):
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
    for path in set(ROOT.glob("lab/**/go.*")) - set(collector.HERE.iterdir()):
        requirement = r"^(?:require)?\s*([\w.-]+\.[\w-]+/\S+) v\d"
        built |= set(re.findall(requirement, path.read_text(), re.MULTILINE))
    assert {"github.com/prometheus/node_exporter", "gopkg.in/yaml.v3"} <= built
    assert built <= GO_MODULES.keys()


def test_every_module_of_the_collector_is_permissive():
    rows = [line.split(" ", 2) for line in (collector.HERE / "licences.txt").read_text().splitlines()]
    locked = re.findall(r"^\t(\S+) (v\S+)", (collector.HERE / "go.mod").read_text(), re.MULTILINE)
    assert sorted(tuple(row[:2]) for row in rows) == sorted(locked), "write it anew by lab.licences.table"
    assert [row for row in rows if not licences.permissive(row[2])] == []
    names = re.findall(r"gomod: (\S+) (v\S+)", (collector.HERE / "builder.yaml").read_text())
    assert names and set(names) <= set(locked)


APACHE = "  Apache License\n  Version 2.0, January 2004\n"
MIT = "The MIT License\n\nPermission is hereby granted, free of charge, to any person obtaining a copy"
AGPL = "                    GNU AFFERO GENERAL PUBLIC LICENSE\n Version 3, 19 November 2007\n"
MPL = "Mozilla Public License, version 2.0\n\n1.12. means the GNU General Public License, Version 2.0"


@pytest.mark.parametrize(
    "files, licence, good",
    [
        ({"LICENSE": APACHE}, "Apache-2.0", True),
        ({"LICENSE.txt": MIT, "NOTICE": "GNU"}, "MIT", True),
        ({"LICENSE": APACHE, "LICENSE.libyaml": MIT}, "Apache-2.0 AND MIT", True),
        ({"COPYING": "Redistribution and use in source and binary forms, with or without"}, "BSD", True),
        ({"LICENSE": MPL}, "MPL-2.0", True),
        ({"LICENSE": AGPL}, "GPL", False),
        ({"LICENSE": APACHE, "LICENSE.agpl": AGPL}, "Apache-2.0 AND GPL", False),
        ({"LICENSE": "GNU LESSER GENERAL PUBLIC LICENSE"}, "GPL", False),
        ({"LICENSE": MIT, "LICENSE.more": "All rights reserved."}, "", False),
        ({"README": MIT}, "", False),
    ],
)
def test_the_licence_of_a_go_module_is_read_from_its_text(tmp_path, files, licence, good):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert licences.of_folder(tmp_path) == licence
    assert licences.permissive(licence) is good


def test_a_program_is_not_kept_where_one_module_will_not_do(tmp_path, monkeypatch):
    program = "\tpath\tx.example/program\n\tmod\tx.example/program\t(devel)\t\n"
    dependency = "\tdep\tgithub.com/Own/{0}\tv1.0.0\th1:x=\n"
    monkeypatch.setattr(host, "run", lambda argv: program + dependency.format("good") + dependency.format("bad"))
    for name, text in {"good": MIT, "bad": AGPL}.items():
        folder = tmp_path / f"github.com/!own/{name}@v1.0.0"
        folder.mkdir(parents=True)
        (folder / "LICENSE").write_text(text)
    with pytest.raises(host.Problem, match=r"contains modules that must not be used: github\.com/Own/bad \(GPL\)"):
        licences.check("go", tmp_path / "program", tmp_path)
    (tmp_path / "github.com/!own/bad@v1.0.0/LICENSE").write_text(MIT)
    assert licences.check("go", tmp_path / "program", tmp_path) == dict.fromkeys(
        ("github.com/Own/good", "github.com/Own/bad"), "MIT"
    )
    monkeypatch.setattr(host, "run", lambda argv: program)
    with pytest.raises(host.Problem, match="does not list its linked modules"):
        licences.check("go", tmp_path / "program", tmp_path)
