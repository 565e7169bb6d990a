"""What programs outside the roles read from a host's list of engines."""

from pathlib import Path

import yaml

from plugins.filter import engines, systemd
from plugins.module_utils.engines import engine_states

ROOT = Path(__file__).resolve().parents[3]
ADDRESSES = {"vllm": {"host": "127.0.0.1", "port": 8001}, "llama_cpp": {"host": "127.0.0.1", "port": 8004}}
LISTED = [
    {"name": "vllm", "kind": "vllm"},
    {"name": "feedback", "kind": "vllm", "port": 8002, "group": "evaluation", "api_key": "key-of-feedback"},
    {"name": "code", "kind": "llama_cpp", "host": "0.0.0.0", "api_key": "key-of-code"},
]


def test_each_engine_is_a_service_of_its_kind():
    assert engines.engine_services(LISTED, ADDRESSES) == [
        {"name": "vllm", "kind": "vllm", "unit": "vllm.service", "metrics": "http://127.0.0.1:8001/metrics"},
        {"name": "feedback", "kind": "vllm", "unit": "feedback.service", "metrics": "http://127.0.0.1:8002/metrics"},
        {"name": "code", "kind": "llama_cpp", "unit": "code.service"},
    ]
    assert engines.engine_units(LISTED) == ["vllm.service", "feedback.service", "code.service"]
    assert engines.engine_secrets(LISTED) == ["key-of-feedback", "key-of-code"]


def test_the_watchdog_queries_each_engine_by_its_own_series():
    first, second, third = engines.engine_watches(LISTED, ADDRESSES)
    assert first == {
        "unit": "vllm.service", "health": "http://127.0.0.1:8001/health", "metrics": "http://127.0.0.1:8001/metrics",
    }  # fmt: skip
    assert second["health"] == "http://127.0.0.1:8002/health"
    assert third["health"].endswith(":8004/health") and third["bearer_file"] == "/etc/code/secrets.env"
    assert third["pending"] == ["llamacpp:requests_processing", "llamacpp:requests_deferred"]


def test_a_machine_is_idle_only_when_every_engine_is():
    sources = engines.engine_sources(LISTED, ADDRESSES)
    assert [one["url"].rsplit(":", 1)[1] for one in sources] == ["8001/metrics", "8002/metrics", "8004/metrics"]
    assert "bearer_file" not in sources[0] and sources[2]["bearer_file"] == "/etc/code/secrets.env"
    targets = engines.engine_targets(LISTED, ADDRESSES, {})
    assert systemd.sources_astray(sources, targets) == []
    assert systemd.engines_unasked(targets, sources) == []
    assert systemd.engines_unasked(targets, sources[:1]) == ["feedback", "code"]
    wrong = {**sources[0], "url": "http://127.0.0.1:8009/metrics"}
    assert systemd.sources_astray([wrong, *sources], targets) == ["http://127.0.0.1:8009/metrics"]
    # The application's series do not belong to an engine; without engines on the host, nothing is known about theirs.
    assert systemd.sources_astray([{**wrong, "counters": ["http_requests_total"], "gauges": []}], targets) == []
    assert systemd.sources_astray([wrong], []) == []


def test_a_log_shipper_ships_each_engine_once():
    given = [{"job": "ai-server", "unit": "ai-server.service"}, {"job": "chat", "unit": "vllm.service"}]
    jobs = engines.engine_journal_jobs(given, LISTED)
    assert jobs[:2] == given
    assert jobs[2:] == [
        {"job": "feedback", "unit": "feedback.service"},
        {"job": "code", "unit": "code.service"},
    ]
    assert engines.engine_journal_jobs(given, []) == given


def test_the_key_of_an_engine_is_its_own_before_the_inventorys():
    keyless = [*LISTED[:2], {"name": "code", "kind": "llama_cpp"}]
    assert [one.get("key") for one in engines.engine_targets(LISTED, ADDRESSES, {"llama_cpp": "of-all"})] == [
        None, None, "key-of-code",
    ]  # fmt: skip
    assert engines.engine_targets(keyless, ADDRESSES, {"llama_cpp": "of-all"})[2]["key"] == "of-all"


RESOLVED = [
    {"name": "vllm", "kind": "vllm", "unit": "vllm.service", "url": "http://127.0.0.1:8001", "served": ["base", "a"],
     "settings": {"vllm_api_key": "key-1"}},
    {"name": "feedback", "kind": "vllm", "unit": "feedback.service", "url": "http://127.0.0.1:8002", "served": ["j"],
     "settings": {"vllm_api_key": "key-2"}},
    {"name": "code", "kind": "llama_cpp", "unit": "code.service", "url": "http://127.0.0.1:8004", "served": ["code"],
     "settings": {}},
]  # fmt: skip


def test_a_load_check_requests_the_models_of_each_vllm_engine():
    first, second = engines.engine_load_targets(RESOLVED, "", "", [])
    assert (first["url"], first["key"], first["models"]) == ("http://127.0.0.1:8001", "key-1", ["base", "a"])
    assert (second["unit"], second["metrics"]) == ("feedback.service", "http://127.0.0.1:8002/metrics")
    through = engines.engine_load_targets(RESOLVED, "http://127.0.0.1:8000", "caller", ["j"])
    assert [(one["name"], one["url"], one["key"], one["models"]) for one in through] == [
        ("feedback", "http://127.0.0.1:8000", "caller", ["j"])
    ]
    # A single engine may have names that are not in its list.
    assert engines.engine_load_targets(RESOLVED[:1], "", "", ["alias"])[0]["models"] == ["alias"]


def test_inactive_engines_are_read_from_the_host(tmp_path):
    host = engine_states.Host(tmp_path)
    assert engine_states.away(host) == []
    engine_states.write(host, {"feedback": {"state": "stopped", "instead": "judge", "since": "2026-01-01T00:00:00Z"}})
    assert engine_states.away(host) == ["feedback"]
    host.write(engine_states.NOTE, "{broken")
    assert engine_states.away(host) == []


def test_every_variable_filled_from_the_list_exists_and_the_inventory_overrides_it():
    filled = yaml.safe_load((ROOT / "playbooks/vars/engine_defaults.yml").read_text())
    specs = [yaml.safe_load(path.read_text()) for path in ROOT.glob("roles/*/meta/argument_specs.yml")]
    options = {name for spec in specs for name in spec["argument_specs"]["main"]["options"]}
    own = {name: text for name, text in filled.items() if not name.startswith("__") and name != "engines_watched"}
    assert own.keys() <= options
    # The agent's targets cannot be set in an inventory.
    assert {name for name, text in own.items() if f"__inventory.{name}" not in text} == {"vmagent_engines"}
