"""A batch on the controller: one call compares the steps, and those from the first that differs run one by one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from ansible.errors import AnsibleActionFail
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.action import ActionBase
from ansible.template import Templar

from plugins.action import batch
from plugins.plugin_utils import roles

SAME, OTHER = {"changed": False}, {"changed": True}
BATCH, ACCOUNT = "llm.server.batch", "llm.server.service_account"
PACKAGES, BUILD = "llm.server.system_packages", "llm.server.python_environment"
STEPS = [
    {"name": "Install", "module": "system_packages", "options": {"name": "app"}},
    {"name": "Create the user", "module": "service_account", "options": {"name": "app"}, "register": "account"},
    {"name": "Build", "module": "python_environment", "options": {"root": "/opt"}, "register": "environment"},
]


@pytest.fixture
def task(monkeypatch):
    """A task whose modules answer as the test sets; ``calls`` has the modules and their arguments in order."""
    there = SimpleNamespace(calls=[], shown=[], quiet=[], plugins={})

    def make(
        compared: list | dict, check_mode: bool = False, answers: dict | None = None, **args
    ) -> batch.ActionModule:
        action = batch.ActionModule.__new__(batch.ActionModule)
        arguments = args or {"steps": STEPS}
        action._task = SimpleNamespace(args=arguments, check_mode=check_mode, copy=lambda: SimpleNamespace(args={}))
        action._loader = DataLoader()
        action._templar = Templar(action._loader)
        action._connection = action._play_context = None
        action._shared_loader_obj = SimpleNamespace(
            action_loader=SimpleNamespace(
                has_plugin=lambda name: name in there.plugins,
                get=lambda name, *, task, **_: there.plugins[name](task.args),
            )
        )

        def execute(name, arguments, *, task_vars):
            there.calls.append((name, arguments))
            there.quiet.append(task_vars.get("ansible_no_target_syslog"))
            if name == BATCH:
                return compared if isinstance(compared, dict) else {"compared": compared}
            return (answers or {}).get(name, OTHER)

        action._execute_module = execute
        return action

    monkeypatch.setattr(ActionBase, "run", lambda *_: {})
    monkeypatch.setattr(batch.display, "display", lambda text, **_: there.shown.append(text))
    there.make = make
    there.names = lambda: [name for name, _ in there.calls]
    there.asked = lambda: there.calls[0][1]["steps"]
    return there


def run(action: batch.ActionModule, **variables) -> dict:
    return action.run(task_vars={"inventory_hostname": "gpu-1", **variables})


def test_without_a_difference_there_is_one_call(task):
    found = [{**SAME}, {**SAME, "uid": 999}, {**SAME, "path": "/opt/1"}]
    result = run(task.make(found))
    assert task.names() == [BATCH] and task.shown == []
    assert (result["changed"], result["changed_steps"]) == (False, [])
    assert result["steps"] == {"account": found[1], "environment": found[2]}
    assert not result.get("failed")


def test_warnings_are_shown_once(task):
    found = {"compared": [{**SAME, "warnings": ["an old drop-in"]}, SAME, SAME], "warnings": ["an old Python"]}
    assert run(task.make(found))["warnings"] == ["an old Python", "an old drop-in"]


def test_what_ansible_finds_out_is_passed_on(task):
    """So that it does not look for the host's Python again, and says what is deprecated."""
    python = {"discovered_interpreter_python": "/usr/bin/python3"}
    found = {"compared": [{**SAME, "deprecations": ["old"]}, SAME, SAME], "ansible_facts": python}
    result = run(task.make(found))
    assert (result["ansible_facts"], result["deprecations"]) == (python, ["old"])


def test_an_unknown_module_is_refused_before_the_call(task):
    """The module would show all its parameters, secrets too."""
    action = task.make([], steps=[{"name": "Do it", "module": "swap_file", "options": {"token": "canary"}}])
    with pytest.raises(
        AnsibleActionFail, match=r"^A batch cannot run swap_file; use one of application_source, "
    ) as it:
        run(action)
    assert "canary" not in str(it.value) and task.calls == []


def test_a_role_warns_once(task, role):
    """By the comparison if it is the same, otherwise by its own run."""
    role("one", "[{name: Run, module: service_account, options: {user: one}}]")
    role("two", "[{name: Run, module: service_account, options: {user: two}}]")
    found = {"compared": [{**SAME, "warnings": ["one"]}, {**OTHER, "warnings": ["two"]}], "warnings": ["an old Python"]}
    assert run(task.make(found, compare=["one", "two"]))["warnings"] == ["an old Python", "one"]


@pytest.mark.parametrize("given", [{"compare": ["promtial"]}, {"steps": [{"role": "promtial"}]}])
def test_an_unknown_role_is_refused(task, given):
    with pytest.raises(
        AnsibleActionFail, match=r"^There is no role promtial with steps; it would have __promtial_steps"
    ):
        run(task.make([], **given))


@pytest.mark.parametrize(
    "given", [{"compare": "promtail"}, {"steps": "uv"}, {"steps": [], "compare": []}, {"step": []}]
)
def test_a_batch_needs_one_list(task, given):
    with pytest.raises(AnsibleActionFail, match=r"^A batch needs a list of steps, or a list of roles to compare"):
        run(task.make([], **given))


def test_an_unknown_key_of_a_step_is_refused_before_the_call(task):
    """The module would show all its parameters, secrets too."""
    action = task.make([], steps=[{**STEPS[0], "option_from": {"token": "canary"}}])
    with pytest.raises(
        AnsibleActionFail, match=r"^Each entry of steps needs name, module and options, and may have"
    ) as it:
        run(action)
    assert "canary" not in str(it.value) and task.calls == []


def test_a_failed_comparison_shows_no_arguments(task):
    failed = {"failed": True, "msg": "no Python", "invocation": {"module_args": "canary"}}
    for given in ({"steps": STEPS}, {"compare": []}):
        assert run(task.make(dict(failed), **given)) == {"failed": True, "msg": "no Python"}


def test_results_have_no_arguments(task):
    """Callbacks hide the task's own arguments, but not arguments below ``steps``."""
    told = {
        "invocation": {"module_args": {"drain_command": ["canary"]}},
        "diff": {"before": "canary"},
        "path": "/opt/2",
    }
    result = run(task.make([SAME, {**SAME, **told}, {**OTHER, **told}], answers={BUILD: {**OTHER, **told}}))
    assert result["steps"] == {"account": {**SAME, "path": "/opt/2"}, "environment": {**OTHER, "path": "/opt/2"}}


def test_a_missing_result_fails_the_step_before_it_runs(task):
    asked = [STEPS[0], {**STEPS[2], "options_from": {"requirements": "source.requirements"}}]
    result = run(task.make([OTHER, None], steps=asked))
    assert result["failed"] and result["step"] == "Build" and task.names() == [BATCH, PACKAGES]
    assert result["msg"].startswith("Build: options_from has requirements: source.requirements; there is no")


def test_the_steps_from_the_first_that_differs_run_in_order(task):
    built = {**OTHER, "path": "/opt/2"}
    result = run(task.make([SAME, OTHER, None], answers={ACCOUNT: {**SAME, "uid": 9}, BUILD: built}))
    assert task.calls[1:] == [(ACCOUNT, {"name": "app"}), (BUILD, {"root": "/opt"})]
    assert task.shown == ["  gpu-1: Create the user", "  gpu-1: Build"]
    assert (result["changed"], result["changed_steps"]) == (True, ["Build"])
    assert result["steps"] == {"account": {**SAME, "uid": 9}, "environment": built}


def test_a_step_that_cannot_be_compared_runs(task):
    result = run(task.make([SAME, SAME, {"failed": True, "msg": "not yet"}]))
    assert task.names() == [BATCH, BUILD]
    assert not result.get("failed") and result["changed_steps"] == ["Build"]


def test_a_step_has_the_options_of_what_ran_before_it(task):
    taking = {**STEPS[2], "options_from": {"uid": "account.uid"}}
    action = task.make([SAME, OTHER, None], answers={ACCOUNT: {**OTHER, "uid": 9}}, steps=[*STEPS[:2], taking])
    run(action)
    assert task.calls[-1] == (BUILD, {"root": "/opt", "uid": 9})


def test_a_step_has_the_options_of_what_was_compared_before_it(task):
    taking = {**STEPS[2], "options_from": {"uid": "account.uid"}}
    run(task.make([SAME, {**SAME, "uid": 7}, OTHER], steps=[*STEPS[:2], taking]))
    assert task.calls[1:] == [(BUILD, {"root": "/opt", "uid": 7})]


def test_check_mode_runs_no_step(task):
    result = run(task.make([SAME, OTHER, OTHER], check_mode=True))
    assert task.names() == [BATCH]
    assert (result["changed"], result["changed_steps"]) == (True, ["Create the user", "Build"])


def test_a_failed_step_ends_the_task_with_its_own_message(task):
    refused = {"failed": True, "msg": "app: no user app"}
    result = run(task.make([OTHER, None, None], answers={ACCOUNT: refused}))
    assert task.names() == [BATCH, PACKAGES, ACCOUNT]
    assert (result["failed"], result["msg"], result["step"]) == (True, "app: no user app", "Create the user")
    assert result["changed_steps"] == ["Install"] and "environment" not in result["steps"]


def test_a_step_that_fails_in_check_mode_ends_the_task_with_its_own_message(task):
    result = run(task.make([OTHER, {"failed": True, "msg": "no"}, None], check_mode=True))
    assert (result["failed"], result["msg"], result["step"]) == (True, "no", "Create the user")


def test_a_call_that_fails_is_the_result(task):
    broken = {"failed": True, "msg": "MODULE FAILURE"}
    assert run(task.make(broken)) == broken and task.names() == [BATCH]


def test_a_step_whose_condition_is_false_is_dropped(task):
    conditions = [{**step, "when": step["name"] != "Create the user"} for step in STEPS]
    result = run(task.make([OTHER, None], steps=conditions))
    assert [(step["name"], "when" in step) for step in task.asked()] == [("Install", False), ("Build", False)]
    assert task.names() == [BATCH, PACKAGES, BUILD] and list(result["steps"]) == ["environment"]


@pytest.fixture
def role(tmp_path, monkeypatch):
    """A function that makes a role with steps."""
    files: dict = {}
    monkeypatch.setattr(roles, "FILES", files)

    def make(name: str, steps: str, defaults: str = "") -> None:
        for file, text in {"defaults": defaults, "vars": f"__{name}_steps: {steps}\n"}.items():
            path = tmp_path / f"{name}-{file}.yml"
            path.write_text(text)
            files[name, f"{file}/main.yml"] = roles._load(path)

    return make


def test_the_steps_of_a_role_see_its_variables_and_the_hosts(task, role):
    steps = (
        "[{name: Create, module: service_account, options: {user: '{{ app_user }}', home: '{{ app_home }}'}, "
        "when: '{{ app_wanted }}'}, {name: Drop, module: service_account, options: {}, when: '{{ not app_wanted }}'}]"
    )
    role("app", steps, "app_user: app\napp_home: /srv\n")
    run(task.make([SAME, SAME], steps=[{"role": "app"}, STEPS[2]]), app_home="/home/app", app_wanted=True)
    assert [step["name"] for step in task.asked()] == ["Create", "Build"]
    assert task.asked()[0]["options"] == {"user": "app", "home": "/home/app"}


@pytest.mark.parametrize("given", ["compare", "steps"])
def test_a_roles_steps_may_contain_those_of_another_role(task, role, given):
    role("tool", "[{name: Build, module: service_account, options: {home: '{{ tool_home }}'}}]", "tool_home: /tool\n")
    nested = "{role: tool, vars: {tool_home: '{{ app_home }}'}}"
    role("app", f"[{nested}, {{name: Run, module: service_account, options: {{}}}}]", "app_home: /srv\n")
    entry = "app" if given == "compare" else {"role": "app"}
    run(task.make([SAME, SAME], **{given: [entry]}))
    assert [(step["name"], step["options"]) for step in task.asked()] == [("Build", {"home": "/srv"}), ("Run", {})]
    assert {step.get("group") for step in task.asked()} == {"app" if given == "compare" else None}


@pytest.mark.parametrize("entry", [{"role": "app", "options": {}}, {"role": "app", "name": "Run"}, {"vars": {}}])
def test_an_entry_is_a_role_or_a_step(task, role, entry):
    role("app", "[]")
    with pytest.raises(AnsibleActionFail, match="or it is a role, with or without vars"):
        run(task.make([], steps=[entry]))


def test_roles_are_compared_in_one_call_and_those_without_differences_are_named(task, role):
    role(
        "one",
        "[{name: Run, module: service_account, options: {user: one}}, "
        "{name: Then, module: logrotate_file, options: {}}]",
    )
    role("two", "[{name: Run, module: service_account, options: {user: two}}]")
    role("three", "[{name: Run, module: service_account, options: {user: '{{ three_user }}'}}]")
    role("off", "[{name: Run, module: service_account, options: {}, when: false}]")
    result = run(task.make([OTHER, SAME, SAME, SAME], compare=["two", "three", "one", "off"]), three_user="x")
    assert [(step["group"], step["name"]) for step in task.asked()] == [
        ("two", "Run"), ("three", "Run"), ("one", "Run"), ("one", "Then"),
    ]  # fmt: skip
    assert task.names() == [BATCH] and result == {
        "changed": False,
        "compared": ["two", "three", "one", "off"],
        "same": ["three", "one", "off"],
    }
    task.calls.clear()
    result = run(task.make([SAME, SAME, SAME, {"failed": True}], compare=["two", "three", "one"]), three_user="x")
    assert result["same"] == ["two", "three"]


def test_a_role_whose_variables_are_wrong_differs(task, role):
    role("one", "[{name: Run, module: service_account, options: {user: '{{ one_user }}'}}]")
    role("two", "[{name: Run, module: service_account, options: {}}]")
    assert run(task.make([SAME], compare=["two", "one"]))["same"] == ["two"]


@pytest.mark.parametrize("key", ["name", "module", "options"])
def test_an_incomplete_step_is_refused_before_a_call(task, key):
    with pytest.raises(AnsibleActionFail, match="Each entry of steps needs name, module and options"):
        run(task.make([], steps=[{name: value for name, value in STEPS[0].items() if name != key}]))
    assert task.calls == []


class TestTree:
    """A tree of the controller, as the source of an application."""

    @pytest.fixture
    def step(self, tmp_path):
        (tmp_path / "app").mkdir()
        (tmp_path / "app/main.py").write_text("app = None\n")
        options = {"root": "/opt/releases", "path": str(tmp_path)}
        return {"name": "Stage", "module": "application_source", "options": options, "register": "source"}

    def test_it_is_compared_by_its_digest(self, task, step, tmp_path):
        run(task.make([SAME], steps=[step]))
        first = task.asked()[0]["options"]
        (tmp_path / "app/main.py").write_text("app = 1\n")
        task.calls.clear()
        run(task.make([SAME], steps=[step]))
        digests = {first["digest"], task.asked()[0]["options"]["digest"]}
        assert len(digests) == 2 and all(digest for digest in digests)

    def test_its_action_plugin_sends_it(self, task, step):
        sent = []

        def plugin(arguments):
            sent.append(arguments)
            return SimpleNamespace(run=lambda task_vars: {**OTHER, "path": "/opt/releases/1"})

        task.plugins["llm.server.application_source"] = plugin
        result = run(task.make([OTHER], steps=[step]))
        assert sent == [step["options"]] and task.names() == [BATCH]
        assert result["steps"]["source"]["path"] == "/opt/releases/1"

    def test_one_that_is_missing_is_refused_before_a_call(self, task, step):
        step["options"]["path"] += "/none"
        with pytest.raises(AnsibleActionFail, match="there is no such directory here"):
            run(task.make([SAME], steps=[step]))
        assert task.calls == []


def test_a_service_is_not_compared_a_second_time(task):
    service = {"name": "Run", "module": "service_release", "options": {"name": "app"}}
    action = SimpleNamespace(compared=False, run=lambda task_vars: OTHER)
    task.plugins["llm.server.service_release"] = lambda arguments: action
    assert run(task.make([OTHER], steps=[service]))["changed"] and action.compared is True


def test_no_call_writes_its_arguments_into_the_hosts_journal(task):
    run(task.make([OTHER, None, None]))
    assert task.quiet == [True] * 4


def test_differences_and_warnings_of_all_steps_are_shown(task):
    first = {**SAME, "warnings": ["old"], "diff": {"before": "a", "after": "b"}}
    last = {**OTHER, "warnings": ["new"], "diff": [{"before": "", "after": "c"}]}
    result = run(task.make([first, SAME, OTHER], answers={BUILD: last}))
    assert result["warnings"] == ["old", "new"]
    assert result["diff"] == [{"before": "a", "after": "b"}, {"before": "", "after": "c"}]
