"""The collection as another repository uses it: built, installed, and run from an otherwise empty folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
GALAXY = yaml.safe_load((ROOT / "galaxy.yml").read_text())
NAME = f"{GALAXY['namespace']}.{GALAXY['name']}"
L4 = {"name": "L4", "total_mib": 23034}


def run(program: str, *words: str, cwd: Path) -> subprocess.CompletedProcess:
    # Ignore the repository's ansible.cfg and the user's installed collections.
    own = {"ANSIBLE_HOME": str(cwd / "home"), "ANSIBLE_COLLECTIONS_PATH": str(cwd / "collections")}
    environment = {**{key: value for key, value in os.environ.items() if key != "ANSIBLE_CONFIG"}, **own}
    return subprocess.run([str(BIN / program), *words], cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    done = run("ansible-galaxy", "collection", "build", str(ROOT), "--output-path", str(folder), cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / f"{GALAXY['namespace']}-{GALAXY['name']}-{GALAXY['version']}.tar.gz"


@pytest.fixture(scope="module")
def elsewhere(archive, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere")
    words = ["collection", "install", str(archive), "--no-deps", "--collections-path", str(folder / "collections")]
    done = run("ansible-galaxy", *words, cwd=folder)
    assert done.returncode == 0, done.stderr
    host = {"ansible_connection": "local", "ansible_become": False, "ansible_python_interpreter": sys.executable}
    engine = {"vllm_model": "LGAI-EXAONE/EXAONE-3.5-2.4B-Instruct", "vllm_lora_adapters": []}
    inventory = {"vllm": {"hosts": {"gpu1": {**host, **engine}}}}
    (folder / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": inventory}}))
    return folder


def test_it_has_what_it_runs_with_and_nothing_else(archive):
    with tarfile.open(archive) as opened:
        tops = {Path(name).parts[0] for name in opened.getnames()}
    assert tops == {
        *(
            "FILES.json",
            "MANIFEST.json",
            "LICENSE",
            "README.md",
            "CHANGELOG.md",
            "CONTRIBUTING.md",
            "changelogs",
            "meta",
            "requirements.yml",
        ),
        *("ai_server", "dashboards", "data", "docs", "playbooks", "plugins", "roles"),
    }


def test_the_repository_links_to_each_part_that_is_asked_for_by_path():
    links = ROOT / "collections/ansible_collections" / NAME.replace(".", "/")
    assert {path.name for path in links.iterdir()} == {
        *("ai_server", "dashboards", "data", "meta", "playbooks", "plugins", "roles"),
    }
    assert all(path.resolve() == ROOT / path.name for path in links.iterdir())


def test_the_plan_is_made_from_an_empty_folder(elsewhere):
    given = {
        "gpu_memory_plan_gpu": L4,
        "gpu_memory_plan_config": str(ROOT / "data/gpu_memory/exaone-3.5-2.4b-instruct.json"),
        "gpu_memory_plan_output": str(elsewhere / "plan.json"),
    }
    done = run("ansible-playbook", "-i", "hosts.yml", f"{NAME}.plan", "-e", json.dumps(given), cwd=elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict: fits" in done.stdout


def test_site_validates_from_an_empty_folder_and_refuses_what_is_missing(elsewhere):
    done = run("ansible-playbook", "-i", "hosts.yml", f"{NAME}.site", "--check", cwd=elsewhere)
    assert done.returncode != 0
    assert "vllm_api_key must be set in the inventory." in done.stdout + done.stderr
    assert "could not be found" not in done.stdout + done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "playbooks").glob("*.yml")), ids=lambda path: path.stem)
def test_every_playbook_is_found_by_its_full_name(elsewhere, path):
    done = run("ansible-playbook", "-i", "hosts.yml", f"{NAME}.{path.stem}", "--syntax-check", cwd=elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_modules_are_documented_under_their_full_names(elsewhere):
    done = run("ansible-doc", "--json", "--type", "module", "--list", NAME, cwd=elsewhere)
    listed = json.loads(done.stdout)
    assert set(listed) == {f"{NAME}.{path.stem}" for path in (ROOT / "plugins/modules").glob("*.py")}
    assert all(listed.values())


def test_the_versions_of_galaxy_changelog_and_requirements_agree():
    changelog = yaml.safe_load((ROOT / "changelogs/changelog.yaml").read_text())
    assert GALAXY["version"] in changelog["releases"]
    required = {each["name"] for each in yaml.safe_load((ROOT / "requirements.yml").read_text())["collections"]}
    assert set(GALAXY["dependencies"]) == required
