"""The real llama-server in its real unit: what it serves, what it protects, and what cannot break it."""

from __future__ import annotations

import pytest
from server import KEY, LOG, NAME, ask, pid, say

ADAPTERS = ["easycontract", "checklist"]


def still_serves(host, before: str) -> None:
    """The same process as before exists, and answers."""
    assert pid(host) == before
    assert say(host)


def test_it_serves_the_model_and_each_adapter_by_name(host):
    status, answer = ask(host, "/v1/models")
    assert status == 200 and [card["id"] for card in answer["data"]] == ["tiny"]
    base = say(host)
    assert base == say(host, lora=[{"id": 0, "scale": 0.0}]), "an adapter that nobody asks for changes nothing"
    result = {base, *(say(host, lora=[{"id": number, "scale": 1.0}]) for number in range(len(ADAPTERS)))}
    assert len(result) == 3, result


def test_it_answers_in_the_models_own_chat_template(host):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4, "temperature": 0}
    status, answer = ask(host, "/v1/chat/completions", body)
    assert status == 200 and answer["usage"]["completion_tokens"]


def test_it_listens_on_loopback_and_requires_its_key(host):
    listening = host.check_output("ss -Hltn 'sport = :8004'")
    assert "127.0.0.1:8004" in listening and "0.0.0.0:8004" not in listening and "*:8004" not in listening
    for path in ("/v1/models", "/metrics", "/slots", "/props"):
        assert ask(host, path, key=None)[0] == 401, path
        assert ask(host, path, key=f"{KEY},{KEY}")[0] == 401, path
    assert ask(host, "/health", key=None)[0] == 200
    assert ask(host, "/metrics")[0] == 200
    assert ask(host, "/")[0] == 404, "there is no page"


def test_its_key_is_only_in_its_environment(host):
    secrets = host.file(f"/etc/{NAME}/secrets.env")
    assert (secrets.mode, secrets.user, secrets.group) == (0o600, "root", "root")
    host.check_output("useradd --system prober 2>/dev/null; id prober")
    places = (
        f"ps axeww; cat /etc/{NAME}/* /etc/systemd/system/*.service; systemctl show {NAME}; cat /proc/[0-9]*/environ"
    )
    seen = host.run("runuser -u prober -- sh -c %s 2>/dev/null", places).stdout
    assert f"{NAME}.service" in seen and KEY not in seen
    logged = host.check_output("journalctl --no-pager --unit %s", NAME)
    assert KEY not in logged and KEY[-4:] not in logged and "2 keys loaded" in logged
    assert KEY in host.check_output("tr '\\0' '\\n' < /proc/%s/environ", pid(host))


def test_it_runs_hardened_and_as_itself(host):
    assert host.check_output("ps -o user= -p %s", pid(host)) == "llama-cpp"
    verdict = host.check_output("systemd-analyze --no-pager security %s.service", NAME).splitlines()[-1]
    assert float(verdict.split(":")[1].split()[0]) <= 2.5, verdict
    assert host.check_output("cat /proc/%s/oom_score_adj", pid(host)) == "50"
    assert host.check_output("systemctl show %s --property MemoryMax --value", NAME) == str(2 << 30)


def test_its_log_shows_the_sizes_of_its_buffers(host):
    assert "compute buffer size" in host.check_output(LOG)


def test_the_checklist_is_all_good(converge):
    outcome = converge(playbook="checklist.yml")
    assert outcome.code == 0, outcome.message
    for row in ("unit", "sockets", "/health", "models listed", "refuses a request without its key", "/metrics"):
        assert f"llama.cpp: {row}" in outcome.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"llama_cpp_api_key": ""}, "llama_cpp_api_key must be set"),
        ({"llama_cpp_model": "/srv/models/absent.gguf"}, "there is no file /srv/models/absent.gguf"),
        ({"llama_cpp_model": "/srv/models/misfits/cut.gguf"}, "cut.gguf of /srv/models/misfits is truncated"),
        ({"llama_cpp_model": "/srv/models/misfits/page.gguf"}, "is not a GGUF file"),
        ({"llama_cpp_model": "/srv/models/gguf/checklist.gguf"}, "is of the type adapter, not a model"),
        ({"llama_cpp_sha256": "0" * 64}, "expected 0000"),
        (
            {"llama_cpp_lora_adapters": [{"name": "wide", "source": "/srv/models/misfits/shape.gguf"}]},
            "adapter wide: /srv/models/misfits/shape.gguf has blk.0.attn_",
        ),
        ({"llama_cpp_arguments": {"cache-rem": 0}}, "has no argument cache-rem; did you mean cache-ram?"),
        ({"llama_cpp_arguments": {"cache-ram": "much"}}, "refuses --cache-ram: it must be a whole number"),
        ({"llama_cpp_arguments": {"port": 9000}}, "llama_cpp_arguments has port, whose place is llama_cpp_port"),
        ({"llama_cpp_kv_cache_type": "q9"}, "refuses --cache-type-k: Unsupported cache type: q9"),
        ({"llama_cpp_port": 22}, "port 22 is taken by sshd"),
        ({"llama_cpp_package_version": "9.9"}, "9.9"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_bad_input_is_refused_before_anything_is_switched(host, converge, change, message):
    before = pid(host)
    outcome = converge(change)
    assert outcome.code and message in outcome.message, outcome.message
    still_serves(host, before)


def test_a_change_restarts_once_and_a_limit_does_not(host, converge):
    before = pid(host)
    assert converge({"llama_cpp_memory_max": "3G"}).code == 0
    still_serves(host, before)
    larger = {"llama_cpp_context": 512}
    assert converge(larger).code == 0
    changed = pid(host)
    assert changed != before and ask(host, "/props")[1]["default_generation_settings"]["n_ctx"] == 512
    outcome = converge(larger)
    assert not outcome.code and not outcome.changed, outcome.message or outcome.changed
    still_serves(host, changed)
    assert converge().code == 0


def test_an_own_chat_template_is_used(host, converge):
    own = {"llama_cpp_chat_template": "{{ lookup('ansible.builtin.file', 'chat.jinja') }}"}
    assert converge(own).code == 0
    assert "answer in one word" in ask(host, "/props")[1]["chat_template"]
    outcome = converge(own)
    assert not outcome.code and not outcome.changed, outcome.message or outcome.changed
    assert converge().code == 0
    assert not host.file(f"/etc/{NAME}/chat_template.jinja").exists


def test_a_release_that_does_not_serve_is_rolled_back(host, converge):
    result = say(host)
    outcome = converge({"llama_cpp_context": 1 << 30, "llama_cpp_start_timeout": 20})
    assert outcome.code and "serves again" in outcome.message, outcome.message
    assert say(host) == result
    assert converge().code == 0


def test_it_is_there_again_after_a_reboot(host, restart):
    restart()
    host.run_test("for _ in 1 2 3 4 5 6 7 8 9 10; do systemctl is-active -q %s && exit; sleep 1; done; exit 1", NAME)
    host.run_test("for _ in $(seq 20); do ss -Hltn 'sport = :8004' | grep -q . && exit; sleep 0.5; done; exit 1")
    assert say(host)


def test_a_model_of_the_hub_is_fetched_completely_once(host, converge, inventory, services, mirror_requests):
    model = {
        "llama_cpp_model": "lab/tiny-llama-GGUF",
        "llama_cpp_model_file": "tiny.gguf",
        "llama_cpp_revision": services["repositories"]["lab/tiny-llama-GGUF"]["main"],
        "llama_cpp_sha256": host.file("/srv/models/gguf/tiny.gguf").sha256sum,
        "llama_cpp_hub_url": inventory["lab_hub"],
        "llama_cpp_alias": "tiny",
    }
    outcome = converge({**model, "llama_cpp_sha256": "0" * 64})
    assert outcome.code and "expected 0000" in outcome.message, outcome.message
    outcome = converge(model)
    assert outcome.code == 0, outcome.message
    assert say(host)
    there = len(mirror_requests())
    assert there
    outcome = converge(model)
    assert not outcome.code and not outcome.changed and len(mirror_requests()) == there, (
        outcome.message or outcome.changed
    )
    assert converge().code == 0


@pytest.mark.full
def test_removal_takes_all_but_the_models(host, converge):
    assert converge({"llama_cpp_state": "absent"}).code == 0
    assert not host.file(f"/etc/systemd/system/{NAME}.service").exists
    assert not host.file(f"/etc/{NAME}").exists and not host.file("/usr/bin/llama-server").exists
    assert host.file("/app/llama-cpp/models").exists
    assert not converge({"llama_cpp_state": "absent"}).changed
    assert converge({"llama_cpp_state": "absent", "llama_cpp_purge": True}).code == 0
    assert not host.file("/app/llama-cpp").exists and not host.user("llama-cpp").exists
    assert converge().code == 0
