"""The files written for the user's own Prometheus and Alertmanager."""

from __future__ import annotations

import pytest

from plugins.module_utils.watch import watch_export

DEFAULTS = {
    "vllm": {"vllm_host": "127.0.0.1", "vllm_port": 8001},
    "ai_server": {"ai_server_host": "0.0.0.0", "ai_server_port": 8000},
    "node_exporter": {"node_exporter_listen_address": "127.0.0.1", "node_exporter_port": 9100},
}


def exported(**hosts):
    return watch_export.targets(hosts, lambda role: DEFAULTS.get(role, {}))


def host(**variables):
    return {"group_names": ["vllm", "ai_server", "monitoring"], "ansible_host": "10.0.0.7", **variables}


def test_what_can_be_reached_is_a_target_with_its_names():
    found = exported(gpu1=host(vllm_host="10.0.0.7"))
    assert found["targets"] == [
        {"targets": ["10.0.0.7:8001"], "labels": {"job": "vllm", "host": "gpu1", "service": "vllm"}},
        {"targets": ["10.0.0.7:8000"], "labels": {"job": "ai_server", "host": "gpu1", "service": "ai-server"}},
    ]
    assert found["expected"] == ["gpu1"]


def test_what_listens_on_loopback_is_reported_with_what_opens_it():
    result = exported(gpu1=host(vllm_host="10.0.0.7"))["told"]
    assert result == [
        "gpu1: node_exporter listens on 127.0.0.1 alone. Set node_exporter_listen_address to an internal address of "
        "the host and let the firewall take TCP port 9100 from your Prometheus; or set vmagent_url and open nothing."
    ]


def test_each_engine_of_a_list_is_a_target_of_its_own():
    listed = [
        {"name": "vllm", "kind": "vllm"},
        {"name": "feedback", "kind": "vllm", "port": 8002, "host": "127.0.0.1"},
        {"name": "code", "kind": "llama_cpp", "port": 8004},
    ]
    found = exported(gpu1=host(group_names=["engines"], vllm_host="10.0.0.7", engines=listed))
    assert found["targets"] == [
        {"targets": ["10.0.0.7:8001"], "labels": {"job": "vllm", "host": "gpu1", "service": "vllm"}},
    ]
    assert found["told"] == [
        "gpu1: feedback listens on 127.0.0.1 alone. Set host of feedback in engines to an internal address of the host "
        "and let the firewall take TCP port 8002 from your Prometheus; or set vmagent_url and open nothing.",
        "gpu1: the metrics of code ask for its key, which is not written into a file of targets. Give your Prometheus "
        "a job of its own for TCP port 8004, with authorization and the label job: llamacpp.",
    ]


def test_a_host_that_pushes_is_not_scraped_too():
    found = exported(gpu1=host(vmagent_url="http://prometheus:9090"))
    assert found["targets"] == [] and found["expected"] == ["gpu1"]
    assert found["told"] == ["gpu1: its vmagent pushes to http://prometheus:9090, so it is not scraped."]


def test_a_host_that_cannot_be_scraped_is_not_reported_as_missing():
    hidden = host(group_names=["vllm", "monitoring"])
    assert exported(gpu1=hidden)["expected"] == []


@pytest.mark.parametrize(
    "listens, target",
    [
        ("0.0.0.0", "10.0.0.7:8001"),
        ("::", "10.0.0.7:8001"),
        ("10.9.0.1", "10.9.0.1:8001"),
        ("ens4", "10.0.0.7:8001"),
        ("fd00::1", "[fd00::1]:8001"),
    ],
)
def test_it_is_queried_where_it_listens(listens, target):
    found = exported(gpu1=host(group_names=["vllm"], vllm_host=listens))
    assert [each["targets"] for each in found["targets"]] == [[target]]


def test_hosts_come_by_name_and_without_an_address_by_it():
    found = exported(b=host(group_names=["ai_server"]), a={"group_names": ["ai_server"]})
    assert [each["targets"] for each in found["targets"]] == [["a:8000"], ["10.0.0.7:8000"]]


def test_links_get_their_beginning_and_nothing_else_does():
    rules = "runbook: docs/operations/alerts/gpu.md#gpuhot\ndescription: see docs/operations.md\n"
    linked = watch_export.linked(rules, "https://git.example.com/llm/")
    assert linked.startswith("runbook: https://git.example.com/llm/docs/operations/alerts/gpu.md#gpuhot\n")
    assert linked.endswith("description: see docs/operations.md\n")
    assert watch_export.linked(rules, "") == rules
