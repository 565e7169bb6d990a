"""A released program is in every required place; see "A new released program" in CONTRIBUTING.md."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ansible.errors import AnsibleUndefinedVariable
from jinja2.nativetypes import NativeEnvironment

from plugins.action import incident_evidence
from plugins.module_utils import role_variables
from plugins.module_utils.watch.scrape_targets import ENGINES, PROGRAMS, SHIPPERS, WATCHING
from plugins.plugin_utils import roles

ROOT = Path(__file__).resolve().parents[3]


def read(name: str) -> dict:
    """Return a YAML file of the repository."""
    return yaml.safe_load((ROOT / name).read_text())


def rendered(template, **variables):
    """Return the value of a template in an inventory or in a playbook's variables."""
    environment = NativeEnvironment()
    environment.filters["community.general.dict_kv"] = lambda value, key: {key: value}
    return environment.from_string(template).render(variables) if isinstance(template, str) else template


RELEASED = sorted(
    path.parts[-3]
    for path in ROOT.glob("roles/*/tasks/main.yml")
    if "name: llm.server.released_service" in path.read_text()
)
DEFAULTS = {role: read(f"roles/{role}/defaults/main.yml") for role in RELEASED}
ON = {"vmagent_url": "http://here", "vmalert_logs_url": "http://here"}
# Units of all groups except the engines, which are named in the inventory.
GROUPS = read("playbooks/vars/groups.yml")["roles_of_groups"]
UNITS = {
    service["name"]
    for group in read("playbooks/vars/services.yml")["services_of_groups"]
    if group["group"] != "engines"
    for shipper in SHIPPERS
    for of_groups in [{name: rendered(each, log_shipper=shipper, **ON) for name, each in GROUPS.items()}]
    for service in rendered(group["services"], roles_of_groups=of_groups, **ON)
}


def secret_variables() -> dict[str, dict]:
    """Return the secret variables of all roles with their options: those marked with no_log in an argument spec."""

    specs = [yaml.safe_load(path.read_text()) for path in sorted(ROOT.glob("roles/*/meta/argument_specs.yml"))]
    options = {k: v for spec in specs for k, v in (spec["argument_specs"]["main"].get("options") or {}).items()}
    return {name: option for name, option in sorted(options.items()) if role_variables.marked(option)}


def example(option: dict, secret: bool = False):
    """Return a value of an option in which every secret is ``canary`` and every other text ``seen``."""
    inner = (option.get("options") or {}).values()
    secret = secret or bool(option.get("no_log"))
    # Of a marked option with marked suboptions, only these are secret.
    secret = secret and not any(map(role_variables.marked, inner))
    if option["type"] == "list":
        return [example({**option, "type": option.get("elements", "str")}, secret)]
    if option["type"] != "dict":
        return "canary" if secret else "seen"
    inner = option.get("options") or {"any": {"type": "str"}}
    return {name: example(one, secret) for name, one in inner.items()}


def excluded(alert: str, name: str) -> set[str]:
    """Return the jobs in the expression of an alert."""
    groups = read(f"data/alerts/{name}.yml")["groups"]
    (rule,) = [one for group in groups for one in group["rules"] if one.get("alert") == alert]
    return set(re.search(r'job[!=]~"([^"]+)"', rule["expr"])[1].split("|"))


def test_the_programs_are_found():
    assert {"promtail", "node_exporter", "victoria_logs"} <= set(RELEASED)
    assert {"vmalert_logs", "ai-server", "llm-watchdog", *SHIPPERS} <= UNITS
    assert {"vllm_api_key", "ai_server_engines", "backup_credentials"} <= secret_variables().keys()


@pytest.mark.parametrize("role", RELEASED)
def test_a_playbook_compares_its_program_and_runs_it_if_it_differs(role):
    plays = [play for name in ("monitoring", "watch") for play in read(f"playbooks/{name}.yml")]
    running = [
        (play, task)
        for play in plays
        for task in play["tasks"]
        if f"llm.server.{role}" == task.get("ansible.builtin.include_role", {}).get("name")
        and f"'{role}' not in roles_same" in task["when"]
    ]
    assert len(running) == 1, "add it to playbooks/monitoring.yml or watch.yml"
    play, task = running[0]
    assert "vars/compared.yml" in play["vars_files"]
    compare = play["pre_tasks"][0]
    assert (
        task["tags"] == [role] and role in compare["tags"] == compare["ansible.builtin.include_tasks"]["apply"]["tags"]
    )
    group = re.fullmatch(r"\{\{ roles_of_groups\.(\w+) \}\}", compare["vars"]["compared_roles"])[1]
    compared = [one for shipper in SHIPPERS for one in rendered(GROUPS[group], log_shipper=shipper, **ON)]
    assert group == play["hosts"] and role in compared
    # In site.yml it has been compared already.
    assert compare["when"] == "compared_roles | difference(roles_compared) | length > 0"


@pytest.mark.parametrize("role", RELEASED)
def test_its_steps_are_made_from_its_program(role):
    assert f"__{role}_program | llm.server.released_steps(" in read(f"roles/{role}/vars/main.yml")[f"__{role}_steps"]


@pytest.mark.parametrize("role", RELEASED)
def test_diagnosis_and_incident_know_its_unit(role):
    assert role in UNITS


def test_an_engine_cannot_have_the_name_of_a_unit():
    taken = set(read("playbooks/vars/engines.yml")["engine_names_taken"])
    assert UNITS - taken - set(RELEASED) == set(), "add them to engine_names_taken in playbooks/vars/engines.yml"
    assert RELEASED == roles.RELEASED and "promtail" in RELEASED


@pytest.mark.parametrize("name", ["diagnose", "backup", "load", "incident"])
def test_a_playbook_that_needs_the_services_has_the_groups(name):
    files = [
        play["vars_files"]
        for play in read(f"playbooks/{name}.yml")
        if "vars/services.yml" in play.get("vars_files", [])
    ]
    assert files and all(each.index("vars/groups.yml") < each.index("vars/services.yml") for each in files)


@pytest.mark.parametrize("name", secret_variables())
def test_an_archive_of_an_incident_has_no_secret(name):
    action = object.__new__(incident_evidence.ActionModule)
    action._templar = SimpleNamespace(template=lambda text: text)
    found = action._of_roles({name: example(secret_variables()[name]), "vllm_port": 8001})
    assert set(found) == {"canary"}


def test_a_secret_that_this_host_cannot_evaluate_is_none():
    def template(text):
        if text == "{{ vault_of_others }}":
            raise AnsibleUndefinedVariable("'vault_of_others' is undefined")
        return text

    action = object.__new__(incident_evidence.ActionModule)
    action._templar = SimpleNamespace(template=template)
    assert action._of_roles({"alertmanager_slack_webhook": "{{ vault_of_others }}", "vllm_api_key": "key"}) == ["key"]


@pytest.mark.parametrize("role", RELEASED)
def test_its_metrics_are_scraped(role):
    assert role in {program.role for program in (*PROGRAMS, *WATCHING)}, "add it to scrape_targets.py"


def test_alerts_name_the_jobs_of_the_monitoring_server():
    watching = {program.job for program in WATCHING}
    assert excluded("WatchServiceDown", "watch") == watching
    # Engines and the application have other alerts.
    assert excluded("ExporterDown", "services") == watching | {*ENGINES.values(), "ai_server"}


@pytest.mark.parametrize("unit", sorted(UNITS))
def test_the_example_observes_its_unit(unit):
    variables = read("inventories/production/group_vars/all/main.yml")
    pattern = rendered(variables["node_exporter_arguments"]["collector.systemd.unit-include"])
    assert re.fullmatch(pattern, f"{unit}.service"), (
        "add it to collector.systemd.unit-include of inventories/production"
    )


@pytest.mark.parametrize("role", sorted(set(RELEASED) - {"promtail"}))
def test_the_demo_has_its_checksums(role):
    assert f"{role}_checksums" in read("inventories/local/group_vars/all/main.yml")


@pytest.mark.parametrize("role", RELEASED)
def test_the_page_about_memory_has_its_limits(role):
    rows = re.findall(
        r"^\| ([^|]+) \| (\d+) \| (\w+) \|", (ROOT / "docs/operations/host-memory.md").read_text(), re.MULTILINE
    )
    written = {name: (int(score), limit) for names, score, limit in rows for name in names.split(", ")}
    assert written.get(role) == (DEFAULTS[role][f"{role}_oom_score_adjust"], DEFAULTS[role][f"{role}_memory_max"])


@pytest.mark.parametrize("role", RELEASED)
def test_the_page_about_monitoring_names_it(role):
    assert role in (ROOT / "docs/watching.md").read_text()
