"""The list of engines of a host: what is refused, what each entry sets, and which engine of a group serves."""

import re
from pathlib import Path

import pytest
import yaml

from plugins.module_utils.engines import engines

ROOT = Path(__file__).resolve().parents[3]
OPTIONS = {"vllm": ["vllm_name", "vllm_port", "vllm_model", "vllm_model_revision"], "llama_cpp": ["llama_cpp_context"]}
CHAT = {"name": "vllm", "kind": "vllm", "port": 8001}
FEEDBACK = {"name": "feedback", "kind": "vllm", "port": 8002, "group": "evaluation"}
JUDGE = {"name": "judge", "kind": "vllm", "port": 8003, "group": "evaluation"}


def problems(*entries, units=()):
    return engines.list_problems(list(entries), OPTIONS, units)


def test_a_list_that_is_right_has_no_problems():
    assert (
        problems(CHAT, {**FEEDBACK, "revision": "0" * 40}, {"name": "code", "kind": "llama_cpp", "context": 1024}) == []
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"kind": "vllm"}, "engines[0] needs a name"),
        ({"name": "Chat_1", "kind": "vllm"}, "engines: Chat_1 needs a name: a lowercase letter"),
        ({"name": "chat", "kind": "tgi"}, "engines: chat has no valid kind (tgi); set kind to one of vllm, llama_cpp"),
        ({"name": "chat"}, "engines: chat has no valid kind (None)"),
        ({"name": "ai-server", "kind": "vllm"}, "engines: ai-server has the name of another service of this host"),
        ({**CHAT, "take_out": []}, "engines: vllm has take_out, which is now called drain_command; rename it."),
        ({**CHAT, "prot": 1}, "engines: vllm has prot, which is not known; did you mean port?"),
        ({**CHAT, "vllm_port": 1}, "engines: vllm has vllm_port; in an entry it is port."),
        ({**CHAT, "zzzz": 1}, "engines: vllm has zzzz, which is not known; it takes the variables of the role vllm."),
        ({**CHAT, "group": "A group"}, "engines: vllm has the group A group; it must be a name like an engine's."),
    ],
)
def test_an_entry_that_is_wrong_is_named_with_its_cure(entry, message):
    (found,) = problems(entry, units=["ai-server"])
    assert found.startswith(message)


@pytest.mark.parametrize("listed", [{"vllm": {}}, ["vllm"], "vllm", None])
def test_only_a_list_of_mappings_is_accepted(listed):
    (found,) = engines.list_problems(listed, OPTIONS)
    assert found.startswith("engines is not a list of mappings")


def test_names_are_unique_and_all_problems_are_reported_at_once():
    found = problems(CHAT, {**CHAT, "port": 2}, {"name": "code", "kind": "x"})
    assert [text.split(";")[0] for text in found] == [
        "engines: vllm appears twice",
        "engines: code has no valid kind (x)",
    ]


def test_an_entry_sets_the_variables_of_its_role():
    assert engines.overlay({**FEEDBACK, "revision": "abc"}) == {
        "vllm_name": "feedback",
        "vllm_port": 8002,
        "vllm_model_revision": "abc",
    }
    assert engines.overlay({"name": "code", "kind": "llama_cpp", "context": 1024}) == {
        "llama_cpp_name": "code",
        "llama_cpp_context": 1024,
    }


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "engine_groups is not a mapping"),
        ({"evaluation": 1}, "engine_groups is not a mapping"),
        ({"other": {}}, "engine_groups names other, but no engine"),
        ({"evaluation": {"nap": 1}}, "engine_groups.evaluation has nap"),
        ({"evaluation": {"sleep": 3}}, "engine_groups.evaluation.sleep is 3"),
        ({"evaluation": {"sleep": True}}, "engine_groups.evaluation.sleep is True"),
        ({"mixed": {"sleep": 1}}, "engine_groups.mixed.sleep is 1, but only vLLM can sleep"),
    ],
)
def test_options_of_a_group_that_are_wrong_are_named(groups, message):
    entries = [FEEDBACK, JUDGE]
    entries += [{"name": "code", "kind": "llama_cpp", "group": "mixed"}] if "mixed" in groups else []
    (found,) = engines.group_problems(entries, groups)
    assert found.startswith(message)


def test_a_group_that_sleeps_sets_the_mode_of_its_engines_alone():
    groups = {"evaluation": {"sleep": 1}}
    assert engines.group_problems([CHAT, FEEDBACK], groups) == []
    assert engines.by_group(FEEDBACK, groups) == {"vllm_sleep_mode": True}
    assert engines.by_group(CHAT, groups) == {}
    assert engines.by_group(FEEDBACK, {"evaluation": {"sleep": 0}}) == {}


@pytest.mark.parametrize(
    ("noted", "rests"),
    [
        ([], ["judge"]),
        (["judge"], ["judge"]),
        (["feedback"], ["feedback"]),
        (["feedback", "judge"], ["judge"]),  # a switch that was interrupted between the two
        (["gone"], ["judge"]),
    ],
)
def test_of_a_group_one_serves(noted, rests):
    assert engines.resting([CHAT, FEEDBACK, JUDGE], noted) == rests


def test_what_left_the_list_is_found_with_its_kind():
    noted = [{"name": "vllm", "kind": "vllm"}, {"name": "code", "kind": "llama_cpp"}]
    assert engines.no_longer_listed(["vllm"], noted, served_before=True) == [{"name": "code", "kind": "llama_cpp"}]
    assert engines.no_longer_listed(["vllm", "code"], noted, served_before=True) == []


def test_the_only_engine_of_before_there_was_a_list_is_found_too():
    assert engines.no_longer_listed(["chat"], [], served_before=True) == [{"name": "vllm", "kind": "vllm"}]
    assert engines.no_longer_listed(["chat"], [], served_before=False) == []


def test_the_list_is_recorded_once_nothing_has_to_be_removed():
    chat, code = {"name": "chat", "kind": "vllm"}, {"name": "code", "kind": "llama_cpp"}
    assert engines.recorded([chat, code], [code, chat], [])
    assert not engines.recorded([chat], [chat, code], [code])
    # The engine of an earlier version is on the host, and no list.
    assert not engines.recorded([], [], engines.no_longer_listed([], [], served_before=True))


SETTINGS = {
    "vllm_host": "0.0.0.0",
    "vllm_port": 8002,
    "vllm_model": "owner/model",
    "vllm_model_path": "",
    "vllm_model_revision": "abc",
    "vllm_root": "/app/vllm-server",
    "vllm_version": "0.23.0",
    "vllm_quantization": "bitsandbytes",
    "vllm_gpu_memory_utilization": 0.35,
    "vllm_lora_adapters": [{"name": "easycontract", "source": "owner/adapter"}],
    "vllm_start_timeout": 300,
}


def test_the_planner_gets_the_engines_settings():
    planned = engines.planned("feedback", "vllm", SETTINGS)
    assert planned == {
        "name": "feedback",
        "unit": "feedback.service",
        "engine": "vllm",
        "version": "0.23.0",
        "quantization": "bitsandbytes",
        "gpu_memory_utilization": 0.35,
        "model": "owner/model",
        "revision": "abc",
        "hf_home": "/app/vllm-server/.cache/huggingface",
        "max_loras": 1,
        "adapters": SETTINGS["vllm_lora_adapters"],
    }
    assert engines.planned("x", "vllm", {**SETTINGS, "vllm_model_path": "/srv/model"})["model"] == "/srv/model"


def test_those_before_an_engine_are_waited_for_in_their_order():
    resolved = [engines.resolved(one, {**SETTINGS, "vllm_port": one["port"]}) for one in (CHAT, FEEDBACK, JUDGE)]
    assert engines.before(resolved, "vllm") == []
    assert engines.before(resolved, "judge") == [
        {"unit": "vllm.service", "url": "http://127.0.0.1:8001/health", "seconds": 300},
        {"unit": "feedback.service", "url": "http://127.0.0.1:8002/health", "seconds": 300},
    ]


def test_the_engine_of_the_application_is_found_by_its_port():
    resolved = [engines.resolved(one, {**SETTINGS, "vllm_port": one["port"]}) for one in (CHAT, FEEDBACK)]
    assert engines.asked(resolved, "http://localhost:8002/v1")["name"] == "feedback"
    assert engines.asked(resolved, "http://elsewhere:9000/v1")["name"] == "vllm"
    assert engines.asked(resolved, "")["name"] == "vllm"


def test_what_an_engine_needs_free_is_its_own_part_of_the_plan():
    plan = {
        "services": [{"name": "a", "free_at_start_mib": 1, "gpus": 1}, {"name": "b", "free_at_start_mib": 2, "gpus": 1}]
    }
    assert engines.free_at_start(plan, "b") == {"mib": 2, "gpus": 1}
    assert engines.free_at_start(plan, "c") == {}
    refused = {"services": [{"name": "b", "runs": False, "free_at_start_mib": 2, "gpus": 1}]}
    assert engines.free_at_start(refused, "b") == {}
    assert engines.free_at_start({}, "b") == {}


@pytest.mark.parametrize("kind", engines.ROLES)
def test_every_variable_of_a_role_reaches_each_engine(kind):
    """The tasks that run a role for one engine set each of its variables; otherwise the inventory's would apply."""
    role = engines.ROLES[kind]
    specs = yaml.safe_load((ROOT / f"roles/{role}/meta/argument_specs.yml").read_text())
    declared = set(specs["argument_specs"]["main"]["options"])
    (task,) = yaml.safe_load((ROOT / f"playbooks/tasks/engine_{kind}.yml").read_text())
    own = {name for name in task["vars"] if name.startswith(f"{role}_")}
    assert own == declared - {f"{role}_state", f"{role}_purge"}
    by_the_play = {f"{role}_{key}" for key in ("name", "memory_services", "earlier")}
    for name in own - by_the_play:
        assert task["vars"][name] == f"{{{{ __engines.by_name[engine_name].settings.{name} }}}}"


def test_no_engine_can_have_the_name_of_a_service_of_another_role():
    taken = yaml.safe_load((ROOT / "playbooks/vars/engines.yml").read_text())["engine_names_taken"]
    text = "\n".join(path.read_text() for path in ROOT.glob("roles/*/tasks/*.yml"))
    services = set(re.findall(r"service_release:\n\s+name: ([\w-]+)\n", text))
    assert services
    assert services <= set(taken)


def test_a_name_that_the_host_has_for_something_else_is_refused():
    noted = [{"name": "code", "kind": "vllm"}, {"name": "vllm", "kind": "vllm"}]
    wanted = [{"name": "code", "kind": "llama_cpp"}, {"name": "vllm", "kind": "vllm"}, {"name": "ssh", "kind": "vllm"}]
    assert [text.split(";")[0] for text in engines.taken(wanted, noted, ["ssh"])] == [
        "engines: ssh is the name of a service of this host",
        "engines: code is of the kind vllm on this host and llama_cpp in the list",
    ]
    assert engines.taken(wanted[1:2], noted, []) == []


def test_engines_without_a_gpu_or_a_plan_are_not_planned():
    def one(name, kind, **settings):
        return {"name": name, "kind": kind, "settings": settings, "plan": {"name": name, "model": "owner/model"}}

    requests = [one("a", "vllm"), one("b", "llama_cpp", llama_cpp_gpu=False), one("c", "vllm", vllm_memory_plan="off")]
    requests += [one("d", "llama_cpp", llama_cpp_gpu=True)]
    prepared = {"d": {"model": "/models/d.gguf", "fetched": []}}
    result = engines.planned_together(requests, prepared)
    assert result == [{"name": "a", "model": "owner/model"}, {"name": "d", "model": "/models/d.gguf"}]
    # In check mode the file does not exist yet.
    prepared["d"]["fetched"] = ["d.gguf"]
    assert engines.planned_together(requests, prepared)[1]["model"] == "owner/model"


def test_the_application_gets_a_table_where_there_are_several():
    resolved = [engines.resolved(one, {**SETTINGS, "vllm_api_key": "key"}) for one in (CHAT, FEEDBACK)]
    row = {"url": "http://127.0.0.1:8002/v1", "models": ["owner/model", "easycontract"], "api_key": "key"}
    assert engines.table(resolved) == [{**row, "name": "vllm"}, {**row, "name": "feedback", "group": "evaluation"}]
    assert engines.table(resolved[:1]) == []


@pytest.mark.parametrize("kind", engines.ROLES)
def test_an_engine_without_a_memory_plan_has_no_phase_for_it(kind):
    for plan in ("off", "refuse"):
        settings = {f"{engines.ROLES[kind]}_memory_plan": plan}
        assert engines.resolved({"name": "a", "kind": kind}, settings)["memory_plan"] == plan
    (play,) = yaml.safe_load((ROOT / "playbooks/engine.yml").read_text())
    (phase,) = (task for task in play["tasks"] if task.get("vars") == {"engine_tasks": "memory.yml"})
    assert phase["loop"] == "{{ engines_present | rejectattr('memory_plan', 'eq', 'off') | map(attribute='name') }}"
