"""The roles that site.yml compares with the host in one call, and the engines that are resolved once in a run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template
from jinja2.nativetypes import NativeEnvironment

from plugins.module_utils.watch.scrape_targets import SHIPPERS

ROOT = Path(__file__).resolve().parents[3]
ON = {"vmagent_url": "http://here", "vmalert_logs_url": "http://here"}


def read(name: str):
    """Return a YAML file of the repository."""
    return yaml.safe_load((ROOT / name).read_text())


def rendered(template, **variables):
    """Return the value of a template in a playbook's variables."""
    return NativeEnvironment().from_string(template).render(variables) if isinstance(template, str) else template


COMPARED = sorted(
    path.parts[-3]
    for path in ROOT.glob("roles/*/vars/main.yml")
    if f"__{path.parts[-3]}_steps" in yaml.safe_load(path.read_text())
)


def test_site_compares_in_one_call_all_roles_that_have_steps():
    variables = read("playbooks/vars/compared.yml")
    groups = yaml.safe_load(re.search(r"\[.*?\]", variables["roles_to_compare"])[0])
    services = [*variables["__own_services"]]
    of_groups = read("playbooks/vars/groups.yml")["roles_of_groups"]
    roles = [
        role
        for group in groups + services
        for shipper in SHIPPERS
        for role in rendered(of_groups[group], log_shipper=shipper, **ON)
    ]
    assert set(roles) == set(COMPARED) - {"uv"} and {"ai_server", "promtail", "victoria_logs"} <= set(roles)
    (play,) = read("playbooks/compare.yml")
    assert set(play["hosts"].split(":")) == {*groups, *services}
    assert play["tasks"][-1]["vars"]["compared_roles"] == "{{ roles_to_compare }}"
    # The same variables as where the roles run.
    names = [*groups, *services, "application"]
    plays = [one for name in names if name != "ai_server" for one in read(f"playbooks/{name}.yml")]
    running = [one for one in plays if one["hosts"] in {*groups, *services}]
    assert set(play["vars_files"]) == {file for one in running for file in one.get("vars_files", [])}
    order = [one["ansible.builtin.import_playbook"] for one in read("playbooks/site.yml")]
    assert (
        order.index("engine.yml")
        < order.index("compare.yml")
        < min(order.index(f"{name}.yml") for name in names if name != "ai_server")
    )


@pytest.mark.parametrize("role", ["ai_server", "watchdog", "idle_stop"])
def test_a_service_that_site_found_the_same_does_not_run(role):
    (play,) = read(f"playbooks/{'application' if role == 'ai_server' else role}.yml")
    (task,) = play["tasks"]
    assert task["when"] == f"'{role}' not in roles_same" and "vars/compared.yml" in play["vars_files"]
    assert task["ansible.builtin.include_role"]["name"] == f"llm.server.{role}"


@pytest.mark.parametrize(
    ("groups", "variables", "found"),
    [
        (["vllm"], {}, []),
        (["monitoring", "idle_stop", "ai_server"], {}, ["node_exporter", "promtail", "ai_server", "idle_stop"]),
        (["watchdog", "ai_server"], {"ai_server_state": "absent"}, ["watchdog"]),
        (["watchdog"], {"watchdog_state": "absent"}, []),
        (
            ["monitoring"],
            {"promtail_state": "absent", "log_shipper": "otel_collector"},
            ["node_exporter", "otel_collector"],
        ),
    ],
)
def test_a_service_that_is_to_be_absent_is_left_to_its_role(groups, variables, found):
    files = ("groups", "compared")
    scope = {name: value for file in files for name, value in read(f"playbooks/vars/{file}.yml").items()}
    trusted = {name: trust(value) for name, value in scope.items()}
    templar = Templar(DataLoader()).copy_with_new_env(
        available_variables={**trusted, **variables, "group_names": groups}
    )
    assert templar.template(trust("{{ roles_to_compare }}")) == found


def trust(value):
    """Return a value whose templates Ansible evaluates."""
    if isinstance(value, dict):
        return {key: trust(each) for key, each in value.items()}
    if isinstance(value, list):
        return [trust(each) for each in value]
    return trust_as_template(value) if isinstance(value, str) else value


@pytest.mark.parametrize("playbook", ["application", "compare"])
def test_the_engines_are_resolved_before_the_application_needs_their_table(playbook):
    """Without them the table would be empty, since the role has a default. One engine has no table."""
    (play,) = read(f"playbooks/{playbook}.yml")
    first = [*play.get("pre_tasks", []), *play["tasks"]][0]
    assert first["ansible.builtin.include_tasks"] == "tasks/resolve_engines.yml"
    assert first["when"] == "__engines is not defined and engines_here | length > 1"


@pytest.mark.parametrize("playbook", ["engine", "switch", "one_after_another"])
def test_the_engines_are_validated_before_a_role_relies_on_it(playbook):
    """With engine_tasks, a role does not validate its variables."""
    names = [name for play in read(f"playbooks/{playbook}.yml") for name in included(play.get("tasks", []))]
    running = [
        number
        for number, name in enumerate(names)
        if "engine_{{" in name or name.endswith(("/switch.yml", "/run_against_engine.yml"))
    ]
    assert running and names.index("tasks/resolve_engines.yml") < running[0]


def included(tasks: list) -> list[str]:
    """Return the files of tasks that tasks include, in order, also in blocks."""
    names = []
    for task in tasks:
        names += [name for key, name in task.items() if key.endswith(("include_tasks", "import_tasks"))]
        for part in ("block", "rescue", "always"):
            names += included(task.get(part, []))
    return [name["file"] if isinstance(name, dict) else name for name in names]


@pytest.mark.parametrize("kind", ["vllm", "llama_cpp"])
def test_a_role_alone_validates_its_variables(kind):
    (task,) = (each for each in read(f"roles/{kind}/tasks/preflight.yml") if "llm.server.validate_variables" in each)
    assert task["when"] == "engine_tasks is not defined"
    (play,) = read(f"playbooks/tasks/engine_{kind}.yml")
    assert play["ansible.builtin.include_role"]["tasks_from"] == "{{ engine_tasks }}"


def test_a_plan_leaves_no_engines_for_later_playbooks():
    """It validates only the variables that it reads."""
    registered = [task.get("register") for play in read("playbooks/plan.yml") for task in play["tasks"]]
    assert "__engines" not in registered and "__planned_engines" in registered
