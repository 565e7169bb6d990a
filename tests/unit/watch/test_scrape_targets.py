"""Which programs of a host are scraped, determined only by its groups and variables."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from plugins.filter import scrape_targets as door
from plugins.module_utils.watch import scrape_targets
from plugins.module_utils.watch.scrape_targets import PROGRAMS, WATCHING, configuration, problems

ROOT = Path(__file__).resolve().parents[3]

FACTS = {"eth0": {"ipv4": {"address": "10.0.0.4"}}, "eth_1": {"ipv4": {"address": "10.0.0.5"}}}


def scraped(groups, variables=None, part="served"):
    found = door.scraped(groups, variables or {}, FACTS, part)
    return {each["job"]: (each["target"], each["service"]) for each in found}


def test_a_host_has_the_targets_of_its_groups_at_the_roles_own_ports():
    assert scraped(["vllm", "ai_server", "monitoring", "all"]) == {
        "vllm": ("127.0.0.1:8001", "vllm"),
        "ai_server": ("127.0.0.1:8000", "ai-server"),
        "node_exporter": ("127.0.0.1:9100", "node_exporter"),
        "promtail": ("127.0.0.1:9080", "promtail"),
        "vmagent": ("127.0.0.1:8429", "vmagent"),
    }
    assert scraped(["gpu"]) == {"dcgm_exporter": ("127.0.0.1:9400", "dcgm-exporter")}
    assert scraped(["all"]) == {}


@pytest.mark.parametrize(
    "variables, target",
    [
        ({"vllm_port": "8101"}, "127.0.0.1:8101"),
        ({"vllm_host": "10.1.2.3"}, "10.1.2.3:8001"),
        ({"vllm_host": "0.0.0.0"}, "127.0.0.1:8001"),
        ({"vllm_host": "localhost"}, "127.0.0.1:8001"),
        ({"vllm_host": "::"}, "[::1]:8001"),
        ({"vllm_host": "eth0"}, "10.0.0.4:8001"),
        ({"vllm_host": "eth-1"}, "10.0.0.5:8001"),
        ({"vllm_host": None, "vllm_port": None}, "127.0.0.1:8001"),
    ],
)
def test_it_is_queried_where_the_inventory_has_it_listen(variables, target):
    assert scraped(["vllm"], variables)["vllm"][0] == target


def test_one_that_is_absent_is_not_scraped():
    assert "node_exporter" not in scraped(["monitoring"], {"node_exporter_state": "absent"})


@pytest.mark.parametrize("word, shipper", [({}, "promtail"), ({"log_shipper": "promtail"}, "promtail")])
def test_of_the_log_shippers_the_named_one_is_scraped(word, shipper):
    found = scraped(["monitoring"], word)
    assert {"promtail", "otel_collector"} & found.keys() == {shipper}


def test_another_log_shipper_takes_the_place_of_the_first():
    given = {"log_shipper": "otel_collector", "otel_collector_port": 8888}
    found = scraped(["monitoring"], given)
    assert "promtail" not in found and found["otel_collector"][0] == "127.0.0.1:8888"


def test_the_monitoring_server_has_its_own_targets():
    assert not {program.job for program in PROGRAMS} & {program.job for program in WATCHING}
    found = scraped(["watch"], {"victoria_metrics_listen_address": "eth0"}, "watching")
    assert found["victoria_metrics"] == ("10.0.0.4:8428", "victoria_metrics")
    # With TLS on the outside, it still answers on loopback.
    tls = {"victoria_metrics_listen_address": "eth0", "victoria_metrics_tls_certificate_path": "/srv/x.pem"}
    assert scraped(["watch"], tls, "watching")["victoria_metrics"][0] == "127.0.0.1:8428"


@pytest.mark.parametrize("program", [*PROGRAMS, *WATCHING], ids=lambda program: program.job)
def test_the_variables_are_those_of_the_role(program):
    specs = ROOT / "roles" / program.role / "meta/argument_specs.yml"
    options = yaml.safe_load(specs.read_text())["argument_specs"]["main"]["options"]
    named = {program.port, program.address, program.needs, f"{program.role}_state"} - {""}
    assert named <= options.keys()
    # It is read without Ansible, so it must not be a template.
    assert "{{" not in f"{options[program.port]['default']} {options[program.address]['default']}"


def test_the_second_vmalert_is_scraped_where_there_are_logs_to_ask():
    given = {
        "vmalert_port": 8880,
        "vmalert_logs_port": 8881,
        "vmalert_listen_address": "127.0.0.1",
        "vmalert_logs_url": "",
    }
    assert "vmalert_logs" not in scraped(["watch"], given, "watching")
    found = scraped(["watch"], {**given, "vmalert_logs_url": "http://127.0.0.1:9428"}, "watching")
    assert found["vmalert_logs"] == ("127.0.0.1:8881", "vmalert_logs")
    assert found["vmalert"] == ("127.0.0.1:8880", "vmalert")


FOUND = [{"job": "vllm", "service": "vllm", "target": "127.0.0.1:8001"}]


def test_every_series_has_host_job_and_service():
    made = configuration(FOUND, "gpu-1", "15s", [{"job_name": "own", "static_configs": []}])
    assert made == {
        "global": {"scrape_interval": "15s", "scrape_timeout": "10s", "external_labels": {"host": "gpu-1"}},
        "scrape_configs": [
            {
                "job_name": "vllm",
                "static_configs": [{"targets": ["127.0.0.1:8001"], "labels": {"service": "vllm"}}],
            },
            {"job_name": "own", "static_configs": []},
        ],
    }


@pytest.mark.parametrize("interval, timeout", [("1s", "1s"), ("9s", "9s"), ("10s", "10s"), ("1m", "10s")])
def test_a_scrape_takes_no_longer_than_the_interval(interval, timeout):
    assert configuration([], "gpu-1", interval, [])["global"]["scrape_timeout"] == timeout


def test_a_password_is_named_by_its_file():
    login = scrape_targets.login("llm", "/etc/x/password")
    (job,) = configuration(FOUND, "gpu-1", "15s", [], {"vllm": login, "other": {}})["scrape_configs"]
    assert job["basic_auth"] == {"username": "llm", "password_file": "/etc/x/password"}
    assert scrape_targets.login("", "/etc/x/password") == {}


@pytest.mark.parametrize(
    "extra, sentences",
    [
        ([{"job_name": "own", "basic_auth": {"username": "a", "password_file": "/etc/a"}}], []),
        ([{}], ["x[0] has no job_name; give it one."]),
        ([{"job_name": "vllm"}], ["x[0] has the job_name vllm, which another job has; choose another one."]),
        (
            [{"job_name": "a"}, {"job_name": "a"}],
            ["x[1] has the job_name a, which another job has; choose another one."],
        ),
        (
            [
                {
                    "job_name": "a",
                    "static_configs": [],
                    "http_sd_configs": [{"authorization": {"credentials": "geheim"}}],
                }
            ],
            [
                "x[0] has credentials in it, which everyone who reads the file would see; name a file of the host "
                "instead, by credentials_file."
            ],
        ),
    ],
)
def test_bad_input_is_reported_with_the_variable_and_without_the_secret(extra, sentences):
    assert problems(extra, FOUND, "x") == sentences


ENGINES = [
    {"name": "vllm", "kind": "vllm", "host": "127.0.0.1", "port": 8001},
    {"name": "feedback", "kind": "vllm", "host": "eth0", "port": 8002},
    {"name": "code", "kind": "llama_cpp", "host": "0.0.0.0", "port": 8004, "key": "geheim"},
    {"name": "chat", "kind": "llama_cpp", "host": "127.0.0.1", "port": 8005, "key": "geheim"},
]


def test_engines_of_a_list_take_the_place_of_the_one_without():
    found = door.scraped(["vllm", "monitoring"], {}, FACTS, "served")
    assert scrape_targets.with_engines(found, [], FACTS) == found
    result = scrape_targets.with_engines(found, ENGINES, FACTS)
    assert [(one["job"], one["service"], one["target"]) for one in result[:4]] == [
        ("vllm", "vllm", "127.0.0.1:8001"),
        ("vllm", "feedback", "10.0.0.4:8002"),
        ("llamacpp", "code", "127.0.0.1:8004"),
        ("llamacpp", "chat", "127.0.0.1:8005"),
    ]
    assert {one["job"] for one in result[4:]} == {"node_exporter", "promtail", "vmagent"}


def test_engines_of_one_kind_are_one_job_to_who_asks():
    """A job name may only occur once; rules and dashboards query the label."""
    jobs = configuration(scrape_targets.with_engines([], ENGINES, FACTS), "gpu-1", "15s", [])["scrape_configs"]
    assert [job["job_name"] for job in jobs] == ["vllm", "vllm-feedback", "llamacpp", "llamacpp-chat"]
    assert [job.get("relabel_configs", [{}])[0].get("replacement") for job in jobs] == [None, "vllm", None, "llamacpp"]
    assert jobs[2]["authorization"] == {"credentials_file": "/etc/vmagent/code.key"}
    assert "authorization" not in jobs[0]
    assert "geheim" not in str(jobs)
    assert [(one["path"], one["content"], one["mode"]) for one in door.engine_keys(ENGINES)] == [
        ("/etc/vmagent/code.key", "geheim", "0400"),
        ("/etc/vmagent/chat.key", "geheim", "0400"),
    ]
