"""Rules, costs and quota of Google Cloud, without any request."""

from pathlib import Path

import pytest
import yaml

from lab.compute_api import schema
from plugins.module_utils.cloud import gcp_declared as declared
from plugins.module_utils.cloud import gcp_updates

RULE = {
    "name": "allow-ai-server-ports",
    "ports": [8000, 8001],
    "target_tags": ["ai-server"],
    "source_ranges": ["203.0.113.0/24"],
    "network": "default",
    "priority": 1000,
    "state": "present",
}

MACHINE = {
    "name": "llm",
    "zones": ["asia-northeast3-a"],
    "machine_type": "g2-standard-4",
    "accelerator": {"type": "nvidia-l4", "count": 1},
    "image": {"project": "ubuntu-os-accelerator-images", "family": "f"},
    "disk": {"type": "pd-ssd", "size_gb": 200, "auto_delete": True, "labels": None},
    "service_account": None,
    "deletion_protection": False,
    "shielded": {"secure_boot": False, "vtpm": True, "integrity_monitoring": True},
    "network": "default",
    "subnetwork": None,
    "external_address": True,
    "reserved_address": False,
    "nic_type": "auto",
    "snapshot": None,
    "max_run_hours": 0,
    "spot": False,
    "maintenance_policy": "TERMINATE",
    "automatic_restart": True,
    "tags": [],
    "labels": {},
    "metadata": {},
}


def effective(*ranges, open_to_world=False, world_ports=(8000,), **changed):
    return declared.effective_rules([{**RULE, "source_ranges": list(ranges), **changed}], open_to_world, world_ports)


@pytest.mark.parametrize(
    ("allowed", "view"),
    [
        ([{"IPProtocol": "tcp", "ports": ["8000", "8001"]}], ["tcp:8000-8001"]),
        ([{"IPProtocol": "tcp", "ports": ["8001"]}, {"IPProtocol": "6", "ports": ["8000"]}], ["tcp:8000-8001"]),
        ([{"IPProtocol": "tcp", "ports": ["8000-8001"]}], ["tcp:8000-8001"]),
        ([{"IPProtocol": "tcp", "ports": ["8000", "8002"]}], ["tcp:8000", "tcp:8002"]),
        ([{"IPProtocol": "tcp"}, {"IPProtocol": "tcp", "ports": ["8000"]}], ["tcp"]),
        ([{"IPProtocol": "all"}], ["all"]),
        (None, []),
    ],
)
def test_ports_are_compared_by_what_they_open(allowed, view):
    assert declared.protocols(allowed) == view


@pytest.mark.parametrize(
    "ranges",
    [["0.0.0.0/0"], ["0.0.0.0/1", "128.0.0.0/1"], [f"{number}.0.0.0/8" for number in range(16)]],
)
def test_open_to_the_world_must_be_explicit_in_any_notation(ranges):
    have, _, problems, _ = effective(*ranges)
    assert have == []
    assert "gcp_open_to_world: true" in problems[0]
    (rule,), without, problems, remarks = effective(*ranges, open_to_world=True)
    assert (rule["ports"], problems) == ([8000], [])
    assert without == {f"allow-ai-server-ports{end}" for end in ("-ipv6", "-restricted", "-restricted-ipv6")}
    assert "8001 stays closed" in remarks[0]


def test_a_rule_of_which_the_world_gets_nothing_is_not_made():
    have, without, problems, _ = effective("0.0.0.0/0", open_to_world=True, ports=[9100, 9400])
    assert (have, problems) == ([], [])
    assert "allow-ai-server-ports" in without


def test_narrow_ranges_beside_the_world_keep_their_ports():
    first, second = effective("0.0.0.0/0", "203.0.113.0/24", open_to_world=True)[0]
    assert (first["ports"], first["source_ranges"]) == ([8000], ["0.0.0.0/0", "203.0.113.0/24"])
    assert (second["name"], second["ports"]) == ("allow-ai-server-ports-restricted", [8001])
    assert second["source_ranges"] == ["203.0.113.0/24"]


def test_each_family_of_addresses_gets_a_rule():
    (four, six, *rest), _, problems, _ = effective("203.0.113.0/24", "2001:db8::/32")
    assert (rest, problems) == ([], [])
    assert (four["name"], four["source_ranges"]) == ("allow-ai-server-ports", ["203.0.113.0/24"])
    assert (six["name"], six["source_ranges"]) == ("allow-ai-server-ports-ipv6", ["2001:db8::/32"])
    assert four["ports"] == six["ports"] == [8000, 8001]


@pytest.mark.parametrize("ranges", [["2001:db8::/32"], ["::/0"]])
def test_ipv6_alone_is_refused_as_no_machine_has_it(ranges):
    have, _, (problem,), _ = effective(*ranges, open_to_world=True)
    assert have == []
    assert "IPv6 only" in problem


def test_a_name_that_is_too_long_once_it_is_split():
    assert effective("203.0.113.0/24", "2001:db8::/32", name="a" * 58)[2] == []
    assert "longer than 63" in effective("203.0.113.0/24", "2001:db8::/32", name="a" * 59)[2][0]


def test_a_declared_rule_with_the_name_of_a_part():
    other = {**RULE, "name": "allow-ai-server-ports-ipv6"}
    rules = [{**RULE, "source_ranges": ["203.0.113.0/24", "2001:db8::/32"]}, other]
    assert "taken" in declared.effective_rules(rules, False, [8000])[2][0]


@pytest.mark.parametrize(
    ("ranges", "message"),
    [([], "set gcp_source_ranges"), (["203.0.113.7/24"], "203.0.113.7/24"), (["office"], "'office'")],
)
def test_ranges_that_cannot_be_used_are_named(ranges, message):
    assert message in effective(*ranges)[2][0]


def test_a_rule_may_be_absent_without_ranges():
    assert effective(state="absent")[2] == []


def test_duplicates_count_once():
    twice = {"ports": [8000, 8000], "target_tags": ["ai-server", "ai-server"]}
    (rule,), _, problems, _ = effective("203.0.113.7", " 203.0.113.7/32", **twice)
    body = declared.rule_body("p", rule, "llm-server")
    assert problems == []
    assert body["allowed"] == [{"IPProtocol": "tcp", "ports": ["8000"]}]
    assert (body["sourceRanges"], body["targetTags"]) == (["203.0.113.7/32"], ["ai-server"])
    assert declared.declared_view({**MACHINE, "tags": ["b", "a", "b"]})["tags"] == ["a", "b"]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "Allow"}, "gcp_firewall_rules: Allow: the name must be"),
        ({"ports": []}, "opens no port"),
        ({"ports": [0]}, "0 is no port"),
        ({"ports": [99999]}, "99999 is no port"),
        ({"target_tags": []}, "every machine of the network"),
        ({"target_tags": ["AI"]}, "the tag 'AI'"),
        ({"network": "global/networks/default"}, "must be the name alone"),
        ({"priority": 65536}, "priority 65536"),
    ],
)
def test_an_invalid_rule(changed, message):
    assert declared.rule_problems([RULE]) == []
    assert message in declared.rule_problems([{**RULE, **changed}])[0]
    assert "gcp_firewall_rules names 'allow-ai-server-ports' more than once" in declared.rule_problems([RULE, RULE])[0]


def test_open_ports_follow_the_tags():
    rules = [RULE, {**RULE, "ports": [9100], "target_tags": ["monitoring"]}]
    assert declared.open_ports(rules, ["monitoring"]) == [9100]
    assert declared.open_ports(rules, []) == []


@pytest.mark.parametrize(
    "url",
    [
        "global/networks/default",
        "projects/p/global/networks/default",
        "https://www.googleapis.com/compute/v1/projects/p/global/networks/default",
        "https://compute.googleapis.com/compute/beta/projects/p/global/networks/default",
    ],
)
def test_every_form_of_a_url_is_the_same(url):
    assert declared.tail(url, "p") == "projects/p/global/networks/default"


def test_a_spot_machine_counts_against_the_ordinary_quota_where_it_has_none_of_its_own():
    assert declared.gpu_metric("nvidia-l4", True, {}) == "NVIDIA_L4_GPUS"
    own = {"PREEMPTIBLE_NVIDIA_L4_GPUS": {"limit": 1, "usage": 0}}
    assert declared.gpu_metric("nvidia-l4", True, own) == "PREEMPTIBLE_NVIDIA_L4_GPUS"
    assert declared.gpu_metric("nvidia-l4", False, own) == "NVIDIA_L4_GPUS"


@pytest.mark.parametrize(
    ("accelerator", "metric"),
    [
        ("nvidia-l4", "NVIDIA_L4_GPUS"),
        ("nvidia-tesla-t4", "NVIDIA_T4_GPUS"),
        ("nvidia-tesla-t4-vws", "NVIDIA_T4_VWS_GPUS"),
        ("nvidia-tesla-p4", "NVIDIA_P4_GPUS"),
        ("nvidia-tesla-p100", "NVIDIA_P100_GPUS"),
        ("nvidia-tesla-v100", "NVIDIA_V100_GPUS"),
        ("nvidia-tesla-a100", "NVIDIA_A100_GPUS"),
        ("nvidia-a100-80gb", "NVIDIA_A100_80GB_GPUS"),
        ("nvidia-h100-80gb", "NVIDIA_H100_GPUS"),
    ],
)
def test_the_quota_of_an_accelerator_has_googles_name(accelerator, metric):
    known = schema().schemas["Quota"]["properties"]["metric"]["enum"]
    assert metric in known or f"PREEMPTIBLE_{metric}" in known
    quotas = {name: {"limit": 8, "usage": 0} for name in known}
    assert declared.gpu_metric(accelerator, False, quotas) == metric
    assert declared.gpu_metric(accelerator, True, quotas) == f"PREEMPTIBLE_{metric}"


def test_the_vcpus_of_a_series_count_against_its_own_quota():
    quotas = {"CPUS": {"limit": 8}, "A2_CPUS": {"limit": 0}, "PREEMPTIBLE_CPUS": {"limit": 8}}
    assert declared.cpu_metric("a2-highgpu-1g", False, quotas) == "A2_CPUS"
    assert declared.cpu_metric("n1-standard-4", False, quotas) == "CPUS"
    assert declared.cpu_metric("n1-standard-4", True, quotas) == "PREEMPTIBLE_CPUS"


def test_quota_that_just_fits_is_enough():
    quotas = {"SSD_TOTAL_GB": {"limit": 250, "usage": 50}}
    assert declared.quota_problem("region r", quotas, "SSD_TOTAL_GB", 200, ["llm"], "") is None
    result = declared.quota_problem("region r", quotas, "SSD_TOTAL_GB", 201, ["llm"], "take {left:g}")
    assert "ask Google for 251" in result
    assert "take 200" in result


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "Llm"}, "gcp_machines: Llm: the name must be"),
        ({"zones": []}, "zones is empty"),
        ({"zones": ["asia-northeast3"]}, "is no zone"),
        ({"service_account": {"email": "default", "scopes": ["x"]}}, "service_account.email 'default'"),
        ({"service_account": {"email": "a@b.c", "scopes": []}}, "scopes is empty"),
        ({"service_account": {"email": "a@b.c", "scopes": ["logging"]}}, "the scope 'logging'"),
        ({"tags": ["AI"]}, "the tag 'AI'"),
        ({"labels": {"a": "B"}}, "the label a=B"),
        ({"maintenance_policy": "MIGRATE"}, "cannot migrate"),
        ({"machine_type": "G2-Standard-4"}, "machine_type 'G2-Standard-4' must be the name alone"),
        ({"accelerator": {"type": "nvidia-L4", "count": 1}}, "accelerator.type 'nvidia-L4'"),
        ({"disk": {"type": "zones/a/diskTypes/pd-ssd", "size_gb": 200}}, "disk.type"),
        ({"network": ""}, "network ''"),
        ({"subnetwork": "Default"}, "subnetwork 'Default'"),
    ],
)
def test_an_invalid_machine(changed, message):
    assert declared.machine_problems([MACHINE]) == []
    assert message in declared.machine_problems([{**MACHINE, **changed}])[0]
    assert "more than once" in declared.machine_problems([MACHINE, MACHINE])[0]
    assert declared.machine_problems([]) == ["gcp_machines is empty: name at least one machine."]


ACCELERATORS = yaml.safe_load((Path(__file__).parents[3] / "data/gcp/accelerators.yml").read_text())["gcp_accelerators"]


@pytest.mark.parametrize(
    ("machine_type", "kind", "count", "message"),
    [
        ("g2-standard-4", "nvidia-l4", 1, None),
        ("n1-standard-4", "nvidia-tesla-t4", 4, None),
        ("n1-standard-4", "nvidia-tesla-t4", 3, "a machine can have 1, 2, 4"),
        ("n1-standard-4", "nvidia-l4", 1, "it goes with machine types of the series g2"),
        ("g2-standard-4", "nvidia-tesla-t4", 1, "it goes with machine types of the series n1"),
        ("e2-small", "nvidia-l4", 1, "e2-small cannot have nvidia-l4"),
        ("e2-small", "nvidia-l4", 0, None),
        ("e2-small", "nvidia-next", 1, None),
        ("g2-standard-4", "nvidia-l4", -1, "must be 0 for none"),
    ],
)
def test_an_accelerator_that_the_series_cannot_have(machine_type, kind, count, message):
    machine = {**MACHINE, "machine_type": machine_type, "accelerator": {"type": kind, "count": count}}
    problems = declared.machine_problems([machine], ACCELERATORS)
    assert len(problems) == (message is not None)
    assert not message or message in problems[0]


@pytest.mark.parametrize(
    ("patterns", "matched", "left"),
    [
        (None, [], ["llm-1", "llm-2", "gpu-1"]),
        ("localhost", ["localhost"], ["llm-1", "llm-2", "gpu-1"]),
        ("llm-1", ["llm-1"], ["llm-1"]),
        ("llm-1,llm-2", ["llm-1"], ["llm-1", "llm-2"]),
        ("llm-1:localhost", ["llm-1"], ["llm-1"]),
        ("llm-*", [], ["llm-1", "llm-2"]),
        ("all:!llm-2", ["llm-1"], ["llm-1", "gpu-1"]),
        ("!llm-2", ["llm-1"], ["llm-1", "gpu-1"]),
        ("vllm", ["gpu-1"], ["gpu-1"]),
        ("vllm:&llm-*", ["llm-1"], ["llm-1"]),
        ("nobody", [], []),
    ],
)
def test_limit_names_machines(patterns, matched, left):
    assert declared.limited(["llm-1", "llm-2", "gpu-1"], patterns, matched) == left


@pytest.mark.parametrize(
    ("description", "ours"),
    [
        (declared.MARK, True),
        (declared.mark("llm"), True),
        (declared.mark("llm-2"), False),
        (f"{declared.mark('llm')} by hand", False),
        ("", False),
        (None, False),
    ],
)
def test_the_mark_names_the_fleet(description, ours):
    assert declared.made_by({"description": description}, "llm") is ours


def test_the_cost_of_a_month_and_of_the_fleet():
    costs = [
        {"name": "a", "running": 1.0, "stopped": 0.1, "currency": "USD", "missing": ""},
        {"name": "b", "running": 2.0, "stopped": 0.2, "currency": "USD", "missing": ""},
    ]
    one, _, fleet = declared.cost_sentences(costs, 730)
    assert "costs about 1.00 USD an hour (730 a month) while it runs, 0.10 USD an hour (73 a month) while" in one
    assert fleet.startswith("The fleet of 2 costs about 3.00 USD an hour (2190 a month) while all run, 0.30 USD")
    missing = {"name": "c", "running": None, "stopped": None, "currency": "USD", "missing": "no price"}
    assert "The fleet of 3, without 1 of which no price" in declared.cost_sentences([*costs, missing], 730)[-1]
    assert declared.cost_sentences([missing], 730) == ["c: no estimate: no price."]


def test_a_disk_without_a_price_is_reported_and_left_out_of_the_estimate():
    prices = {"regions": {"us-east4": {"machines": {"g2-standard-4": {"on_demand": 0.7, "spot": 0.3}}}}}
    cost = {"name": "a", **declared.estimate({**MACHINE, "zones": ["us-east4-a"]}, "us-east4-a", prices)}
    assert (cost["running"], cost["stopped"]) == (0.7, None)
    (message,) = declared.cost_sentences([cost], 730, "May 2026")
    assert message == (
        "a costs about 0.70 USD an hour (511 a month) while it runs (data/gcp/prices.yml, as of May 2026), without its "
        "disk: data/gcp/prices.yml has no price of pd-ssd there."
    )


def test_every_field_that_can_change_has_requests():
    machine = {**MACHINE, "subnetwork": "inner", "nic_type": "GVNIC", "disk": {**MACHINE["disk"], "labels": {"a": "b"}}}
    fixed = {field for field, cure in declared.CURES.items() if cure == declared.NEW}
    assert set(gcp_updates.FIELDS) == set(declared.declared_view(machine)) - fixed
