"""A batch on the host: which steps are compared; each module runs in its own process."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import pkgutil
import select
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ansible.module_utils import basic

from plugins.module_utils import batch, doors
from plugins.module_utils.doors import runner
from plugins.module_utils.host_module import HostModule
from plugins.modules import batch as module

ROOT = Path(__file__).resolve().parents[3]
COMMIT = "0" * 40
SUM = f"sha256:{64 * '0'}"
SAME, OTHER, REFUSED = {"changed": False}, {"changed": True}, {"failed": True, "msg": "no"}
CHECK, AS_A_RUN = {"_ansible_check_mode": True}, {"compare_only": True}


@contextlib.contextmanager
def started(**arguments):
    """This process as Ansible starts a module in it: with ``arguments``, and with its output in file 1."""
    given = {"ANSIBLE_MODULE_ARGS": {"_ansible_check_mode": False, "_ansible_no_log": True, **arguments}}
    with pytest.MonkeyPatch.context() as patch, open(1, "w", closefd=False) as output:
        patch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
        patch.setattr(basic, "_ANSIBLE_ARGS", json.dumps(given).encode())
        patch.setattr(sys, "stdout", output)
        yield


def run(name: str, arguments: dict | None = None, **settings) -> dict:
    with started(**settings):
        return runner.call(name, arguments or {})


@pytest.fixture
def own(monkeypatch):
    """A function that makes ``work`` a module of batches; it has an `AnsibleModule` and returns the result."""

    def add(name: str, work, **options) -> None:
        def main() -> None:
            module = HostModule(argument_spec=options, supports_check_mode=True)
            module.exit_json(**{"changed": False, **work(module)})

        monkeypatch.setitem(sys.modules, f"{doors.__name__}.{name}", SimpleNamespace(main=main))

    return add


def steps(*modules: str, group: str = "") -> list[dict]:
    return [{"module": name, "options": {}, "group": group} for name in modules]


def one_by_one(works: list) -> list[list]:
    return [work() for work in works]


def compared(wanted: list[dict], *results: dict, check_mode: bool = False) -> tuple[list[dict | None], list]:
    """Compare steps whose modules return ``results`` in this order; return what was found, and the calls."""
    calls, left = [], list(results)

    def call(name: str, arguments: dict) -> dict:
        calls.append((name, arguments))
        return left.pop(0)

    return batch.compare(wanted, check_mode, call, one_by_one), calls


def test_options_are_taken_from_results_of_earlier_steps():
    wanted = {"options": {"a": 1, "b": 2}, "options_from": {"b": "source.requirements", "c": "environment.python"}}
    results = {"source": {"requirements": "httpx"}, "environment": {"python": "/venv/bin/python", "path": "/venv"}}
    assert batch.options(wanted, results) == {"a": 1, "b": "httpx", "c": "/venv/bin/python"}
    assert batch.options({"options": {"a": 1}}, results) == {"a": 1}


def test_a_part_of_an_option_is_taken_and_the_step_stays_as_it_is():
    wanted = {
        "options": {"links": [{"path": "/app"}, {"path": "/venv"}]},
        "options_from": {"links.1.target": "it.path"},
    }
    found = batch.options(wanted, {"it": {"path": "/opt"}})
    assert found == {"links": [{"path": "/app"}, {"path": "/venv", "target": "/opt"}]}
    assert wanted["options"] == {"links": [{"path": "/app"}, {"path": "/venv"}]}


def test_a_step_has_the_result_of_an_earlier_one():
    wanted = steps("one", "two", "three")
    wanted[0]["register"] = "first"
    wanted[2]["options_from"] = {"path": "first.path"}
    _, calls = compared(wanted, {**SAME, "path": "/venv"}, {**SAME, "path": "/other"}, SAME)
    assert calls[2] == ("three", {"path": "/venv", **CHECK})


@pytest.mark.parametrize(
    "wanted", [{"a": "it.other"}, {"a": "its.path"}, {"links.1.target": "it.path"}, {"a.b": "it.path"}]
)
def test_a_missing_result_or_place_fails_the_step_by_its_name(wanted):
    asked = [*steps("one", "two"), {"name": "Run it", **steps("three")[0], "options_from": wanted}]
    asked[0]["register"] = "it"
    asked[2]["options"] = {"a": 1, "links": [{}]}
    found, calls = compared(asked, {**SAME, "path": "/venv"}, SAME)
    place, source = next(iter(wanted.items()))
    told = f"Run it: options_from has {place}: {source}; there is no such option, or no earlier step registered"
    assert (found[2]["failed"], found[2]["changed"], len(calls)) == (True, False, 2)
    assert found[2]["msg"] == f"{told} that result. Correct the name."


@pytest.mark.parametrize(
    ("first", "check_mode", "ends"),
    [
        (SAME, False, False),
        (OTHER, False, True),
        (OTHER, True, False),
        ({**SAME, "await": True}, False, True),
        ({**SAME, "out": True}, False, True),
        ({**SAME, "pending": True}, False, True),
        ({**SAME, "pending": False, "await": False, "out": False}, False, False),
        (REFUSED, False, True),
        (REFUSED, True, True),
    ],
)
def test_a_difference_or_a_failure_ends_the_comparison(first, check_mode, ends):
    found, calls = compared(steps("one", "two", "three"), first, SAME, SAME, check_mode=check_mode)
    assert found == ([first, None, None] if ends else [first, SAME, SAME])
    assert len(calls) == (1 if ends else 3)


def test_a_difference_ends_the_comparison_of_its_group_only():
    wanted = [*steps("one", "two", group="a"), *steps("three", "four", group="b")]
    assert compared(wanted, OTHER, SAME, SAME)[0] == [OTHER, None, SAME, SAME]


def test_a_step_has_results_of_its_own_group_only():
    wanted = [*steps("one", group="a"), *steps("two", group="b")]
    wanted[0]["register"] = "it"
    wanted[1] |= {"name": "Run it", "options_from": {"path": "it.path"}}
    found, _ = compared(wanted, {**SAME, "path": "/venv"})
    assert found[1]["failed"] and found[1]["msg"].startswith("Run it: options_from has path: it.path")


def test_the_groups_are_compared_as_the_caller_wants_and_results_stay_in_order():
    wanted = [*steps("one", group="a"), *steps("two", group="b"), *steps("three", group="a")]

    def last_first(works):
        return [work() for work in reversed(works)][::-1]

    def call(name, _):
        return {**SAME, "name": name}

    found = batch.compare(wanted, False, call, last_first)
    assert [each["name"] for each in found] == ["one", "two", "three"]


def test_groups_run_at_the_same_time_each_in_its_own_process():
    """Each waits until the other has begun, so one after the other would end by the timeout."""
    read, write = os.pipe()
    other_read, other_write = os.pipe()

    def meet(own, other):
        os.write(own, b"x")
        ready, _, _ = select.select([other], [], [], 10)
        return [bool(ready), os.getpid()]

    (met, first), (met_too, second) = runner.at_once([lambda: meet(write, other_read), lambda: meet(other_write, read)])
    assert met and met_too and len({first, second, os.getpid()}) == 3


def test_one_group_needs_no_process():
    assert runner.at_once([lambda: [os.getpid()]]) == [[os.getpid()]]


def test_a_group_that_is_killed_ends_the_comparison():
    with pytest.raises(RuntimeError, match=r"^a comparison returned no result \(exit code -9\)$"):
        runner.at_once([lambda: [1], lambda: os.kill(os.getpid(), 9)])


def test_modules_are_imported_before_the_processes_that_run_them(monkeypatch, capfd):
    asked = []
    monkeypatch.setattr(module, "load", lambda names: asked.append(sorted(names)))
    monkeypatch.setattr(module, "compare", lambda *_: asked.append("compare") or [])
    steps = [{"name": "a", "module": name, "options": {}} for name in ("system_packages", "service_account")]
    with started(steps=steps), pytest.raises(SystemExit):
        module.main()
    assert asked == [["service_account", "system_packages"], "compare"]


def test_a_child_that_cannot_write_its_output_ends():
    """It must not go on as its parent."""
    program = (
        "import os, sys; from plugins.module_utils.doors import runner\n"
        "sys.stdout = open('/dev/full', 'w')\n"
        "found = runner._forked([lambda output: print('text')])\n"
        "os.write(2, repr((found, len(found))).encode())"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.count("[(b'', 0)], 1)") == 1


def test_load_imports_modules(monkeypatch):
    asked = []
    monkeypatch.setattr(runner, "import_module", lambda name, package: asked.append(name))
    runner.load(["service_account"])
    assert asked == [".service_account"]


@pytest.mark.parametrize("check_mode", [True, False])
def test_only_a_service_is_compared_as_by_a_run_and_not_in_check_mode(check_mode):
    _, calls = compared(steps("system_packages", "service_release"), SAME, SAME, check_mode=check_mode)
    assert calls == [("system_packages", CHECK), ("service_release", CHECK if check_mode else AS_A_RUN)]


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("application_source", {"root": "HERE/releases", "url": "http://127.0.0.1:9/a", "checksum": SUM}),
        ("logrotate_file", {"path": "HERE/app", "content": "HERE/*.log {}\n"}),
        ("model_files", {"model": "a/b", "revision": COMMIT, "cache": "HERE/hub", "python": "HERE/bin/python"}),
        ("python_environment", {"root": "HERE/environments", "requirements": "httpx", "link": "HERE/current"}),
        (
            "released_program",
            {"name": "x", "root": "HERE", "version": "1", "url": "http://127.0.0.1:9/a", "checksum": SUM},
        ),
        ("service_account", {"name": "x", "directories": [{"path": "HERE/x", "owner": "root", "group": "root"}]}),
    ],
)
def test_a_module_says_what_it_would_change_and_writes_nothing(tmp_path, name, options):
    here = json.loads(json.dumps(options).replace("HERE", str(tmp_path)))
    (result,) = batch.compare([{"module": name, "options": here, "group": ""}], True, run, one_by_one)
    assert (result.get("msg"), result["changed"]) == (None, True)
    assert list(tmp_path.iterdir()) == []


def test_a_module_has_the_settings_of_the_task_and_its_own_arguments(own):
    own("asks", lambda module: {"quiet": module.no_log, "diff": module._diff, **module.params}, user={"type": "str"})
    result = run("asks", {"user": "app"}, _ansible_diff=True, steps=[])
    assert (result["quiet"], result["diff"], result["user"]) == (True, True, "app")


def test_a_refusal_is_the_modules_own():
    result = run("logrotate_file")
    assert (result["failed"], result["msg"]) == (True, "missing required arguments: content, path")


def test_an_exception_is_a_failure_with_its_message(own):
    own("breaks", lambda _: {}["key"])
    result = run("breaks")
    assert (result["failed"], result["msg"]) == (True, "KeyError: 'key'")
    assert "test_batch.py" in result["exception"]


def test_no_module_sees_what_another_changed_in_its_process(own):
    def change(_):
        os.environ["BATCH_PROXY"] = "http://proxy"
        os.chdir("/")
        return {}

    own("changes", change)
    own("asks", lambda _: {"variable": os.environ.get("BATCH_PROXY"), "directory": str(Path.cwd())})
    run("changes")
    found = run("asks")
    assert (found["variable"], found["directory"]) == (None, str(Path.cwd()))
    assert "BATCH_PROXY" not in os.environ


def test_a_secret_of_one_module_is_masked_in_its_own_result_only(own):
    own("hides", lambda module: {"told": f"with {module.params['token']}"}, token={"type": "str", "no_log": True})
    own("shows", lambda _: {"told": "version 1234"})
    hidden, shown = run("hides", {"token": "1234"}), run("shows")
    assert "with" in hidden["told"] and "1234" not in json.dumps(hidden)
    assert shown["told"] == "version 1234"


def test_a_module_ends_its_own_process_only():
    program = (
        "from types import SimpleNamespace; from plugins.module_utils.doors import runner; "
        "runner.import_module = lambda *_: SimpleNamespace(main=lambda: None); runner.call('none', {}); print('end')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("end\n", "")


def test_a_module_that_is_killed_is_a_failed_step(monkeypatch):
    monkeypatch.setattr(runner, "_run", lambda *_: os.kill(os.getpid(), 9))
    told = "service_account returned no result (exit code -9)"
    assert runner.call("service_account", {}) == {"failed": True, "changed": False, "msg": told}


def test_the_result_of_the_batch_shows_no_options(capfd):
    fetch = {"model": "a/b", "revision": COMMIT, "cache": "/nowhere", "python": "/nowhere", "token": "canary"}
    build = {"root": "/nowhere", "requirements": "x", "environment": {"HTTPS_PROXY": "http://u:canary@proxy"}}
    asked = [
        {"name": "Fetch", "module": "model_files", "options": fetch},
        {"name": "Build", "module": "python_environment", "options": build},
    ]
    with started(_ansible_check_mode=True, steps=asked), pytest.raises(SystemExit):
        module.main()
    text = capfd.readouterr().out
    result = json.loads(text)
    assert "canary" not in text and [each["changed"] for each in result["compared"]] == [True, True]
    assert result["invocation"] == {"module_args": {"steps": ["Fetch", "Build"]}}


def test_each_module_of_a_batch_is_documented_and_is_the_module_itself():
    files = {each.name for each in pkgutil.iter_modules(doors.__path__)} - {"runner"}
    documented = yaml.safe_load(module.DOCUMENTATION)["options"]["steps"]["suboptions"]["module"]["choices"]
    assert documented == list(batch.MODULES) == sorted(files)
    for name in batch.MODULES:
        assert import_module(f"plugins.modules.{name}").main is import_module(f"{doors.__name__}.{name}").main


def test_each_module_of_a_batch_is_sent_to_the_host():
    """Ansible sends what a file imports, wherever the import is; a module that is imported by its name is not seen."""
    tree = ast.parse(Path(runner.__file__).read_text())
    found = [
        node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and (node.level, node.module) == (1, None)
    ]
    assert sorted(alias.name for node in found for alias in node.names) == sorted(batch.MODULES)
