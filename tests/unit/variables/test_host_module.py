"""File modes are set, never inherited: with a narrow umask, modules still create files that their users can read."""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from plugins.module_utils import unprivileged
from plugins.module_utils.install import python_environment

ROOT = Path(__file__).resolve().parents[3]
MODULES = sorted(ROOT.glob("plugins/modules/*.py"))
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask for another user")


@pytest.fixture
def place():
    """A directory that everyone can enter, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="umask-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def narrow():
    before = os.umask(0o077)
    yield
    os.umask(before)


def run(module: str, arguments: dict, umask: int = 0o077) -> dict:
    """Run a module as Ansible does, in a session with ``umask``; return its result."""
    program = (
        f"import os, sys, runpy; os.umask({umask}); sys.path.insert(0, {str(ROOT)!r})\n"
        "from ansible.module_utils.testing import patch_module_args\n"
        f"with patch_module_args({arguments!r}): runpy.run_module('plugins.modules.{module}', run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.stdout.strip(), done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_every_module_begins_with_its_own_umask(path):
    """A module that only documents an action plugin has no such call."""
    door = ROOT / "plugins/module_utils/doors" / path.name
    source = (door if door.exists() else path).read_text()
    calls = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    begun = {call.id for call in calls if isinstance(call, ast.Name) and call.id.endswith("Module")}
    assert begun <= {"HostModule", "QuietModule"}
    assert begun or path.stem == "validate_variables"


@needs_root
class TestReleasedProgram:
    @pytest.fixture
    def arguments(self, place, narrow):
        archive = place / "app.tar.gz"
        with tarfile.open(archive, "w:gz") as packed:
            entry = tarfile.TarInfo("app-1/app")
            entry.size, entry.mode = 10, 0o700
            packed.addfile(entry, io.BytesIO(b"#!/bin/sh\n"))
        checksum = f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"
        serve = functools.partial(SimpleHTTPRequestHandler, directory=str(place))
        with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
            url = f"http://127.0.0.1:{server.server_port}/app.tar.gz"
            yield {"name": "app", "version": "1", "root": str(place / "opt"), "checksum": checksum, "url": url}
            server.shutdown()

    def test_anyone_can_run_it(self, place, arguments):
        assert run("released_program", arguments)["changed"]
        assert unprivileged.barred(place / "opt/app/1/app") is None
        assert not run("released_program", arguments)["changed"]

    @pytest.mark.parametrize("closed", ["opt/app", "opt/app/1", "opt/app/1/app"])
    def test_one_that_nobody_can_run_is_not_whole_and_is_mended(self, place, arguments, closed):
        run("released_program", arguments)
        (place / closed).chmod(0o700)
        assert run("released_program", arguments)["changed"]
        assert unprivileged.barred(place / "opt/app/1/app") is None

    def test_a_directory_above_that_is_closed_is_named(self, place, arguments):
        (place / "opt").mkdir(mode=0o700)
        result = run("released_program", arguments)
        assert f"nobody cannot enter {place}/opt (mode 0700); chmod o+x lets him" in result["msg"]

    def test_one_that_its_installer_alone_runs_may_lie_in_a_closed_directory(self, place, arguments):
        (place / "opt").mkdir(mode=0o700)
        own = {**arguments, "runs_as": ""}
        assert run("released_program", own)["changed"]
        assert not run("released_program", own)["changed"]


@needs_root
class TestEnvironment:
    @pytest.fixture
    def arguments(self, place):
        uv = place / "uv"
        uv.write_text(f'#!/bin/sh\n[ "$1" = venv ] || exit 0\nfor last; do :; done\nmkdir -p "$last/bin"\n'
                      f'ln -s {shutil.which("python3", path="/usr/bin")} "$last/bin/python"\n')  # fmt: skip
        uv.chmod(0o755)
        return {"root": str(place / "home/environments"), "requirements": "a==1\n", "uv": str(uv), "runs_as": "nobody"}

    def test_its_user_can_run_it(self, place, arguments):
        made = Path(run("python_environment", arguments)["path"])
        assert python_environment.complete(made, "nobody")
        assert not run("python_environment", arguments)["changed"]

    def test_its_link_leads_to_it(self, place, arguments):
        link = place / "home/current"
        made = run("python_environment", arguments)["path"]
        linked = {**arguments, "link": str(link)}
        assert run("python_environment", {**linked, "_ansible_check_mode": True})["changed"] and not link.exists()
        assert run("python_environment", linked)["changed"] and str(link.readlink()) == made
        assert not run("python_environment", linked)["changed"]
        link.unlink()
        link.mkdir()
        refused = run("python_environment", linked)
        assert refused["failed"] and refused["msg"].startswith(f"{link} does not lead to {made}: ")

    @pytest.mark.parametrize("closed", [".", "..", "bin"])
    def test_one_that_its_user_cannot_run_is_not_complete_and_is_built_again(self, arguments, closed):
        made = Path(run("python_environment", arguments)["path"])
        (made / closed).chmod(0o700)
        assert not python_environment.complete(made, "nobody")
        assert run("python_environment", arguments)["changed"]
        assert python_environment.complete(made, "nobody")
        assert [path.name for path in made.parent.iterdir()] == [made.name]

    def test_one_whose_interpreter_is_gone_is_not_complete(self, arguments):
        made = Path(run("python_environment", arguments)["path"])
        (made / "bin/python").unlink()
        (made / "bin/python").symlink_to("/usr/bin/python3.3")
        assert run("python_environment", arguments)["changed"]

    def test_one_that_cannot_be_mended_stays_and_its_cause_is_named(self, place, arguments):
        made = Path(run("python_environment", arguments)["path"])
        (place / "home").chmod(0o700)
        assert f"nobody cannot enter {place}/home (mode 0700)" in run("python_environment", arguments)["msg"]
        assert (made / python_environment.MARKER).is_file()

    def test_what_fails_to_be_built_anew_leaves_what_was_there(self, place, arguments):
        made = Path(run("python_environment", arguments)["path"])
        made.chmod(0o700)
        (place / "uv").write_text("#!/bin/sh\nexit 1\n")
        assert run("python_environment", arguments)["failed"]
        assert (made / python_environment.MARKER).is_file()


@needs_root
def test_a_source_that_its_user_cannot_read_is_made_again(place):
    archive = place / "source.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        for name in ("app/main.py", "requirements.txt"):
            packed.addfile(tarfile.TarInfo(f"source/{name}"), io.BytesIO())
    archive.chmod(0o600)
    arguments = {"root": str(place / "releases"), "path": "/srv/x", "digest": "sha256:1", "file": str(archive)}
    arguments["runs_as"] = "nobody"
    made = Path(run("application_source", arguments)["path"])
    assert unprivileged.barred(made / "app/main.py", "nobody", "r") is None
    assert not run("application_source", arguments)["changed"]
    (made / "app").chmod(0o700)
    assert run("application_source", arguments)["changed"]
    assert unprivileged.barred(made / "app/main.py", "nobody", "r") is None
