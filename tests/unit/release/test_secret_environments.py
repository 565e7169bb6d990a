"""A role's environment for a module may contain a password, which Ansible would write into the host's journal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from ansible.module_utils import basic

from plugins.module_utils.quiet_module import QuietModule, masked

ROOT = Path(__file__).resolve().parents[3]
OPTION = '"environment": {"type": "dict"'
# A module that can run in a batch has its source in the package of doors.
DOORS = ROOT / "plugins/module_utils/doors"
SOURCES = {path.stem: path for place in (ROOT / "plugins/modules", DOORS) for path in place.glob("*.py")}
MODULES = sorted(name for name, path in SOURCES.items() if OPTION in path.read_text())


def tasks(content: list):
    for task in content or []:
        yield task
        for part in ("block", "rescue", "always"):
            yield from tasks(task.get(part))


def steps(content):
    """Yield the steps of batches, in a file of tasks or of a role's variables."""
    for each in content.values() if isinstance(content, dict) else content or []:
        if isinstance(each, dict | list):
            yield from [each] if isinstance(each, dict) and {"module", "options"} <= each.keys() else steps(each)


CALLS = [
    (f"{path.parents[1].name}: {task['name']}", task)
    for path in sorted((ROOT / "roles").glob("*/tasks/*.yml"))
    for task in tasks(yaml.safe_load(path.read_text()))
    if any("environment" in task.get(f"llm.server.{name}", {}) for name in MODULES)
]
# The action plugin of a batch keeps all its calls out of the journal; see test_batch_action.py.
STEPS = [
    step["name"]
    for path in sorted((ROOT / "roles").glob("*/*/*.yml"))
    if path.parent.name in ("tasks", "vars")
    for step in steps(yaml.safe_load(path.read_text()))
    if step["module"] in MODULES and "environment" in step["options"]
]


def test_the_modules_that_take_an_environment_are_known():
    assert MODULES == [
        "application_source",
        "gguf_files",
        "go_program",
        "llama_cpp_build",
        "model_files",
        "python_environment",
    ]
    assert len(CALLS) + len(STEPS) >= 7


def test_no_task_has_an_environment_of_its_own():
    """Ansible would pass it on the command line, which sudo logs."""
    files = (ROOT / "roles").glob("*/tasks/*.yml")
    assert [path for path in files for task in tasks(yaml.safe_load(path.read_text())) if "environment" in task] == []


@pytest.mark.parametrize("task", [task for _, task in CALLS], ids=[name for name, _ in CALLS])
def test_the_call_stays_out_of_the_journal(task):
    assert task["vars"]["ansible_no_target_syslog"] is True


@pytest.mark.parametrize("name", [*MODULES, "gpu_memory_plan", "keyring_repository", "service_release", "service_step"])
def test_the_module_shows_no_value_of_it(name):
    assert "module = QuietModule(" in SOURCES[name].read_text()


@pytest.mark.parametrize(
    ("environment", "text", "told"),
    [
        ({}, "from https://user:canary@host/simple: 404", "from https://host/simple: 404"),
        (
            {"HTTPS_PROXY": "http://u:can%2Fary@p:3128"},
            "user u, can/ary and can%2Fary",
            "user u, ******** and ********",
        ),
        ({"PIP_INDEX_URL": "https://canary@host/simple"}, "no canary here", "no ******** here"),
        ({"PIP_EXTRA_INDEX_URL": "https://a/s https://u:canary@b/s"}, "canary", "********"),
        (
            {"UV_INDEX_URL": "https://host/simple?key=canary"},
            "https://host/simple?key=canary",
            "https://host/simple?********",
        ),
        ({"UV_INDEX_OWN_PASSWORD": "canary"}, "canary", "********"),
        ({"HF_TOKEN": "canary"}, "canary", "********"),
        ({"UV_LINK_MODE": "symlink", "PIP_NO_INPUT": "1"}, "1 symlink", "1 symlink"),
        ({"UV_KEYRING_PROVIDER": "subprocess"}, "subprocess", "subprocess"),
        ({"API_KEY": ""}, "nothing", "nothing"),
    ],
)
def test_what_a_person_is_shown(environment, text, told):
    assert masked(text, environment) == told


def test_messages_of_systemd_and_the_service_are_shown_without_passwords():
    module = QuietModule.__new__(QuietModule)
    module.no_log_values = set()
    module.params = {"name": "vllm"}
    said = "Failed to resolve specifiers in HTTPS_PROXY=http://user:p%canary@proxy.example:3128"
    told = said.replace("user:p%canary@", "")
    result = module._quiet({"msg": said, "why": said, "journal": [said], "diff": [{"after": said}]})
    assert (result["msg"], result["why"], result["journal"], result["diff"]) == (told, told, [told], [{"after": told}])


def test_a_secret_that_contains_an_address_is_masked_completely(monkeypatch, capsys):
    """If the password were first removed from the address, everyone could read the rest of the secret."""
    content = "VLLM_API_KEY=canary\nHTTPS_PROXY=http://user:canary@proxy:3128\n"
    arguments = {"secrets": [{"path": "/etc/x", "content": content}], "_ansible_check_mode": False}
    monkeypatch.setattr(basic, "_ANSIBLE_ARGS", json.dumps({"ANSIBLE_MODULE_ARGS": arguments}).encode())
    monkeypatch.setattr(basic, "_ANSIBLE_PROFILE", "legacy", raising=False)
    options = {"path": {"type": "path"}, "content": {"type": "str", "no_log": True}}
    module = QuietModule({"secrets": {"type": "list", "elements": "dict", "no_log": False, "options": options}})
    with pytest.raises(SystemExit):
        module.exit_json(changed=True)
    told = capsys.readouterr().out
    assert "canary" not in told
    assert json.loads(told)["invocation"]["module_args"]["secrets"][0]["path"] == "/etc/x"
