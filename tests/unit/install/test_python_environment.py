"""Environments next to the running one: complete or absent, named by all their inputs."""

from __future__ import annotations

import concurrent.futures
import sys
from pathlib import Path

import pytest

from plugins.module_utils.errors import UserError
from plugins.module_utils.install import python_environment
from plugins.module_utils.install.python_environment import Builder, complete, digest, existing

INPUTS = {
    "requirements": "uvicorn==0.30.0\n",
    "overrides": None,
    "constraints": None,
    "hashes": False,
    "imports": [],
    "installer": "uv",
    "python": "/usr/bin/python3",
}


@pytest.fixture
def installer(tmp_path, monkeypatch):
    """A program in place of uv: it records its calls, creates a Python, and fails as the test sets."""
    monkeypatch.setattr(python_environment, "LOCKS", tmp_path)
    program, calls = tmp_path / "uv", tmp_path / "calls"
    program.write_text(
        f"#!{sys.executable}\n"
        "import os, pathlib, sys\n"
        f"calls = pathlib.Path({str(calls)!r})\n"
        "with calls.open('a') as handle: print(*sys.argv[1:], 'HOME=' + os.environ['HOME'], file=handle)\n"
        "if os.environ.get('FAIL') == sys.argv[1]: sys.exit('first line\\n  error: no such package  \\n')\n"
        "if sys.argv[1] == 'venv':\n"
        "    there = pathlib.Path(sys.argv[-1]) / 'bin'\n"
        "    there.mkdir(parents=True)\n"
        f"    (there / 'python').symlink_to({sys.executable!r})\n"
    )
    program.chmod(0o755)
    program_calls = SimpleCalls(calls)
    program_calls.path = str(program)
    return program_calls


class SimpleCalls:
    def __init__(self, path: Path):
        self.file = path

    def __iter__(self):
        return iter(self.file.read_text().splitlines())


def builder(installer, **environment):
    return Builder("uv", installer.path, "/usr/bin/python3", None, environment)


@pytest.mark.parametrize(
    "change",
    [
        {"requirements": "uvicorn==0.31.0\n"},
        {"overrides": "torch==2.13.0"},
        {"constraints": "x<1"},
        {"hashes": True},
        {"imports": ["app"]},
        {"installer": "pip"},
        {"python": "/usr/bin/python3.12"},
    ],
)
def test_another_input_is_another_environment(change):
    assert digest(INPUTS) != digest({**INPUTS, **change})
    assert digest(INPUTS) == digest(dict(reversed(INPUTS.items())))


def test_it_is_complete_when_it_was_built_to_its_end(tmp_path, installer):
    directory = tmp_path / "environments/abc"
    builder(installer).build(directory, {**INPUTS, "imports": ["json"]}, 1)
    assert complete(directory)
    made, installed = installer
    assert made.startswith(f"venv --no-project --allow-existing --python /usr/bin/python3 {directory} HOME=")
    assert f"--python {directory}/bin/python" in installed
    assert "--require-hashes" not in installed


def test_hashes_overrides_and_constraints_reach_the_installer(tmp_path, installer):
    inputs = {**INPUTS, "hashes": True, "overrides": "torch==2.13.0", "constraints": "numpy<3"}
    builder(installer).build(tmp_path / "abc", inputs, 1)
    _, installed = installer
    for option in ("--require-hashes", "--override ", "--constraint ", "--requirement "):
        assert option in installed


@pytest.mark.parametrize("step", ["venv", "pip"])
def test_a_failed_build_leaves_nothing_and_reports_its_last_line(tmp_path, installer, step):
    directory = tmp_path / "abc"
    with pytest.raises(UserError, match=rf"uv {step}: first line \| error: no such package") as failure:
        builder(installer, FAIL=step).build(directory, INPUTS, 1)
    assert "Traceback" not in str(failure.value)
    assert not directory.exists()


def test_a_module_that_cannot_be_imported_is_a_failed_build(tmp_path, installer):
    with pytest.raises(UserError, match="No module named 'prometheus_nowhere'"):
        builder(installer).build(tmp_path / "abc", {**INPUTS, "imports": ["prometheus_nowhere"]}, 1)
    assert not (tmp_path / "abc").exists()


def test_half_an_environment_is_built_anew(tmp_path, installer):
    (tmp_path / "abc/bin").mkdir(parents=True)
    (tmp_path / "abc/left over").touch()
    assert not complete(tmp_path / "abc")
    builder(installer).build(tmp_path / "abc", INPUTS, 1)
    assert complete(tmp_path / "abc")
    assert not (tmp_path / "abc/left over").exists()


def test_a_full_disk_is_reported_before_any_change(tmp_path, installer):
    with pytest.raises(UserError, match=r"has \d+ MiB free, 1099511627776 MiB are needed"):
        builder(installer).build(tmp_path / "abc/def", INPUTS, 1 << 40)
    assert not (tmp_path / "abc").exists()
    assert not installer.file.exists()


def test_the_installer_never_sees_this_users_home_or_python(tmp_path, installer, monkeypatch):
    monkeypatch.setenv("VIRTUAL_ENV", "/nowhere")
    builder(installer).build(tmp_path / "abc", INPUTS, 1)
    homes = {call.rpartition("HOME=")[2] for call in installer}
    assert str(Path.home()) not in homes
    assert not any(Path(home).exists() for home in homes)


def test_pip_knows_no_overrides(tmp_path):
    plain = Builder("pip", "/none", sys.executable, None, {})
    with pytest.raises(UserError, match="pip knows no overrides; choose uv"):
        plain.build(tmp_path / "abc", {**INPUTS, "overrides": "x==1"}, 1)


def test_the_nearest_parent_that_exists(tmp_path):
    assert existing(tmp_path / "a/b/c") == tmp_path
    assert python_environment.existing(tmp_path) == tmp_path


def test_two_runs_that_want_the_same_environment_build_it_once(tmp_path, installer):
    place = tmp_path / "environments" / digest(INPUTS)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: builder(installer).build(place, INPUTS, 1), range(2)))
    assert complete(place)
    assert len([call for call in installer if call.startswith("venv")]) == 1


def test_a_failed_build_names_the_proxy_it_was_given_and_not_its_password(tmp_path, installer):
    proxies = {"HTTPS_PROXY": "http://user:hidden@127.0.0.1:9", "no_proxy": "localhost", "UV_CACHE_DIR": "/c"}
    with pytest.raises(UserError) as failure:
        builder(installer, FAIL="pip", **proxies).build(tmp_path / "abc", INPUTS, 1)
    assert str(failure.value).endswith("no such package (it was to go through HTTPS_PROXY http://127.0.0.1:9)")
