"""What the long part of the tests runs first, leaves out, and counts."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
SPEC = importlib.util.spec_from_file_location("suite", ROOT / "tests/suite.py")
suite = sys.modules["suite"] = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(suite)


def names(steps):
    return [step.name for step in steps]


@pytest.fixture(autouse=True)
def logs(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "LOGS", tmp_path / "logs")
    monkeypatch.delenv("TEST_TALLY", raising=False)  # set by the run that these tests are a part of


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository in place of the project's; the returned function commits a file at an hour of one day."""
    monkeypatch.setattr(suite, "ROOT", tmp_path)

    def git(*words, **variables):
        words = ["git", "-c", "user.name=x", "-c", "user.email=x@localhost", *words]
        subprocess.run(words, cwd=tmp_path, check=True, capture_output=True, env=variables or None)

    def commit(path, hour):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(str(hour))
        git("add", ".")
        when = f"{1_700_000_000 + hour * 3600} +0000"
        git("commit", "--quiet", "--message", path, GIT_COMMITTER_DATE=when, GIT_AUTHOR_DATE=when, PATH="/usr/bin:/bin")

    git("init", "--quiet")
    return commit


def test_every_scenario_runs_on_both_other_systems_and_those_of_a_gpu_on_the_bare_one():
    found = set(names(suite.long_steps([])))
    every = {path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml")} - suite.ENGINE_ON_BARE.keys()
    placed = {**suite.PLACED, **suite.RARE}
    assert {f"{name}-{platform}" for name, platform in placed.items()} <= found
    every -= placed.keys()
    left_out = {f"{name}-{platform}" for platform, without in suite.NOT_ON.items() for name in without}
    assert {f"{name}-{platform}" for name in every for platform in ("debian13", "debian11")} - left_out <= found
    assert left_out == {"watch-debian11"} and not left_out & found
    asks = {
        name
        for name in every
        if (yaml.safe_load((ROOT / f"molecule/{name}/molecule.yml").read_text()).get("driver") or {})
        .get("lab", {})
        .get("nvidia")
    }
    assert asks and asks <= set(suite.ON_A_GPU) - suite.ENGINE_ON_BARE.keys() <= every
    assert {name for name in found if name.endswith("-bare")} == {f"{name}-bare" for name in suite.ON_A_GPU}


def test_only_the_newest_runs_in_full():
    assert {step.environment["FULL"] for step in suite.long_steps(["swap"]) if "debian13" in step.name} == {"1"}
    assert {step.environment["FULL"] for step in suite.long_steps(["swap"]) if "debian13" not in step.name} == {"0"}


def test_a_scenario_of_one_platform_ignores_the_requested_platform():
    for platform in ("debian12", "debian13"):
        daily = suite.daily_scenarios([], platform)
        assert ("llama_cpp", "forky") in daily and ("swap", platform) in daily
        assert "llama_cpp_build" not in dict(daily), "it takes too long for every day"
        assert suite.daily_scenarios(["llama_cpp"], platform) == [("llama_cpp", "forky")]
        assert suite.daily_scenarios(["llama_cpp_build"], platform) == [("llama_cpp_build", "debian13")]
    assert suite.daily_scenarios(["swap"], "debian12") == [("swap", "debian12")]


def test_a_scenario_has_a_folder_for_each_platform():
    folders = [step.environment["MOLECULE_EPHEMERAL_DIRECTORY"] for step in suite.long_steps(["swap", "dcgm"])]
    assert len(folders) == len(set(folders)) == 5


def test_what_a_change_is_about_comes_first_and_the_rest_keeps_its_order():
    steps = suite.long_steps([])
    ordered = suite.touched_first(steps, ["roles/idle_stop/tasks/main.yml", "docs/drill.md"])
    assert names(ordered)[:2] == ["idle_stop-debian13", "idle_stop-debian11"]
    assert names(ordered)[2:] == [name for name in names(steps) if not name.startswith("idle_stop")]
    assert names(suite.touched_first(steps, ["plugins/module_utils/host/swap_file.py"]))[2] == "unit-python3.10"


def test_the_newest_controller_runs_a_role_unless_one_scenario_is_requested():
    assert {"node_exporter-newest", "sanity-newest"} <= set(names(suite.long_steps([])))
    assert not [name for name in names(suite.long_steps(["swap"])) if "newest" in name]


def test_a_change_of_nothing_known_keeps_the_fixed_order():
    steps = suite.long_steps([])
    assert suite.touched_first(steps, []) == suite.touched_first(steps, ["README.md"]) == steps
    assert names(steps)[0] == "swap-debian13"


def test_the_commits_of_a_day_define_the_subject_of_a_change(repository):
    repository("roles/promtail/old.yml", 0)
    repository("roles/dcgm/one.yml", 48)
    repository("roles/swap/two.yml", 60)
    assert suite.changed_files() == ["roles/dcgm/one.yml", "roles/swap/two.yml"]


def test_without_history_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert suite.changed_files() == []


def test_after_the_deadline_only_what_must_run_begins(monkeypatch, capsys):
    monkeypatch.setattr(suite, "DEADLINE", 0.0)
    must, may = suite.Step("must", ["true"]), suite.Step("may", ["false"], optional=True)
    suite.perform([must, may], 1)
    assert (must.left_out, must.good, may.left_out) == ("", True, "the deadline has passed")
    assert "may  " not in capsys.readouterr().out


def test_a_step_that_takes_long_begins_earlier_or_not_at_all(monkeypatch):
    assert set(suite.EARLIER) <= set(names(suite.long_steps([])))
    monkeypatch.setattr(suite, "EARLIER", {"long": 600})
    for left, begins in ((700, True), (500, False)):
        monkeypatch.setattr(suite, "DEADLINE", time.time() + left)
        long, short = suite.Step("long", ["true"], optional=True), suite.Step("short", ["true"], optional=True)
        assert [step.obstacle() == "" for step in (long, short)] == [begins, True]


def test_scenarios_left_out_are_named_and_not_counted(monkeypatch, capsys):
    monkeypatch.setattr(suite, "DEADLINE", 0.0)
    monkeypatch.setattr(sys, "argv", ["suite.py", "long", "dcgm"])
    assert suite.main() == 0
    *_, left_out, last = capsys.readouterr().out.splitlines()
    assert left_out == "Not run, because the deadline has passed: dcgm-debian13, dcgm-debian11, dcgm-bare"
    assert last == "0 passed, 0 failed"


def test_parts_with_one_tally_count_together(tmp_path, monkeypatch):
    file = tmp_path / "tally"
    file.touch()
    monkeypatch.setenv("TEST_TALLY", str(file))
    assert suite.tally(3, 0) == (3, 0)
    assert suite.tally(2, 1) == (5, 1)
    assert file.read_text() == "5 passed, 1 failed\n"
    monkeypatch.delenv("TEST_TALLY")
    assert suite.tally(2, 1) == (2, 1)


def test_a_scenario_that_does_not_exist_is_refused():
    with pytest.raises(SystemExit, match="no scenario nothing; there are: ai_server, "):
        suite.chosen(["nothing"], "debian12")


def test_the_engine_on_a_bare_machine_is_not_for_other_platforms():
    assert suite.ENGINE_ON_BARE.keys().isdisjoint(suite.chosen([], "debian12"))
    assert suite.chosen(["gpu_host"], "debian12") == []
    assert suite.chosen(["gpu_host"], "bare") == ["gpu_host"]


def test_what_has_no_room_is_left_out_with_the_figures(monkeypatch):
    monkeypatch.setattr(suite.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 30))
    (step,) = [step for step in suite.long_steps(["production_engine"])]
    assert step.run().left_out == "it needs 14 GiB of disk, 5 GiB are free"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        (
            "  \x1b[2m│\x1b[0m FAILED tests/test_x.py::test_y[ssh://machine] - assert 1 == 2",
            "FAILED tests/test_x.py::test_y",
        ),
        ("  \x1b[2m│\x1b[0m E       assert 1 == 2", "E       assert"),
        ("\x1b[31m│\x1b[0m \x1b[31mfatal: [machine]: FAILED! => \x1b[0m", "fatal: [machine]"),
        ("E   ValueError", "E   ValueError"),
    ],
)
def test_failures_are_listed_again_at_the_end(monkeypatch, capsys, line, named):
    program = f"print('begun'); print({line!r}); print('1 passed'); raise SystemExit(1)"
    monkeypatch.setattr(suite, "CHECKS", {"broken": [sys.executable, "-c", program], "fine": ["echo", line]})
    monkeypatch.setattr(sys, "argv", ["suite.py", "check"])
    assert suite.main() == 1
    *_, named_again, count = capsys.readouterr().out.splitlines()
    assert named_again.startswith(f"broken: {named}") and count == "2 passed, 1 failed"
