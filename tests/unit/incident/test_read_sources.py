"""promtail's sources are read as its user: unreadable and missing ones are reported with a cure."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[3] / "roles/released_service/files/read_sources.py"
SPEC = importlib.util.spec_from_file_location("read_sources", SCRIPT)
read_sources = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(read_sources)
NOBODY = 65534
ASK = "import sys; m = type(sys)('m'); exec(open(sys.argv[1]).read(), m.__dict__); m.HIDDEN = ()"


@pytest.fixture
def place():
    """A directory that everyone can enter."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def problem_of(pattern) -> str:
    """Return the program's message about a glob, for a user without rights."""
    user = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
    source = f"{ASK}; print(m.file_problem(sys.argv[2]) or '')"
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        program = Path(name, "program")
        program.write_text(SCRIPT.read_text())
        program.chmod(0o644)
        argv = ["/usr/bin/python3", "-I", "-c", source, str(program), str(pattern)]
        return subprocess.run(argv, capture_output=True, text=True, check=True, cwd="/", **user).stdout.strip()


def test_what_is_open_is_fine_also_where_no_file_is_yet(place):
    assert problem_of(place / "*.log") == ""
    (place / "sub").mkdir()
    (place / "a.log").write_text("a\n")
    assert (
        problem_of(place / "*.log")
        == problem_of(place / "**/*.log")
        == problem_of(place / "{a,b}.log")
        == problem_of(place / "a.log")
        == ""
    )


def test_a_closed_directory_is_named_with_its_rights(place):
    closed = place / "private/app"
    closed.mkdir(parents=True)
    (place / "private").chmod(0)
    result = problem_of(closed / "*.log")
    assert result.startswith(f"promtail_file_jobs: {closed}/*.log: promtail cannot access {place}/private (d--------- ")
    assert result.endswith("; let a group read it, and add that group to promtail_groups")
    (place / "private").chmod(0o755)
    closed.chmod(0o711)
    if os.geteuid() == 0:
        assert f"cannot access {closed} (drwx--x--x root" in problem_of(closed / "*.log")


def test_closed_files_are_named(place):
    for number in range(5):
        (place / f"{number}.log").write_text("a\n")
        (place / f"{number}.log").chmod(0o644 if number == 0 else 0)
    result = problem_of(place / "*.log")
    assert f"promtail cannot read {place}/1.log (---------- " in result
    assert " and 1 more; " in result and "0.log" not in result and result.endswith("or narrow the path")


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a file to another group")
def test_a_group_that_would_do_is_named(place):
    (place / "a.log").write_text("a\n")
    os.chown(place / "a.log", 0, 4)
    (place / "a.log").chmod(0o640)
    assert "a.log (-rw-r----- root adm); add adm to promtail_groups" in problem_of(place / "*.log")


def test_a_directory_that_is_not_there(place):
    assert f"there is no directory {place}/nowhere; correct the path" in problem_of(place / "nowhere/*.log")


@pytest.mark.parametrize("path", ["/home/a/*.log", "/root/x.log", "/tmp/x.log"])
def test_what_the_sandbox_hides_is_named_as_hidden(path):
    assert "which the service does not see; write the logs below /var/log" in read_sources.file_problem(path)


@pytest.mark.parametrize("written, volatile", [(True, True), (False, True), (False, False)])
def test_the_journal_is_where_its_new_lines_are(tmp_path, monkeypatch, written, volatile):
    monkeypatch.setattr(read_sources, "found_again", lambda directory, patience: written)
    monkeypatch.setattr(read_sources, "VOLATILE", str(tmp_path))
    if volatile:
        (tmp_path / "machine").mkdir()
        (tmp_path / "machine/system.journal").touch()
    result = read_sources.journal_problem("/var/tmp")
    if written:
        assert result is None
    else:
        assert result.startswith("promtail_journal_path: /var/tmp gets no new lines; ")
        assert (f"set promtail_journal_path to {tmp_path}" in result) == volatile


def test_a_journal_that_is_not_there():
    assert read_sources.journal_problem("/var/nowhere").startswith(
        "promtail_journal_path: /var/nowhere does not exist; "
    )
