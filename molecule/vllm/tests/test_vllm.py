"""The real engine in its real unit: what it serves, what it protects, and what cannot break it."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import yaml
from engine import ADAPTERS, BASE, KEY, LOAD_TARGET, URL, ask, pid, say

ROOT = Path(os.environ["MOLECULE_PROJECT_DIRECTORY"])
ENVIRON = """
import json, sys
entries = open(f"/proc/{sys.argv[1]}/environ", encoding="utf-8").read().split(chr(0))
print(json.dumps(dict(entry.split("=", 1) for entry in entries if entry)))
"""

REQUESTS = """
import json
from typing import get_args
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest
classes = {
    "/chat/completions": [ChatCompletionRequest],
    "/completions": [CompletionRequest],
    "/responses": [ResponsesRequest],
    "/embeddings": get_args(get_args(EmbeddingRequest)[0]),
}
print(json.dumps({path: [name for each in those for name in each.model_fields] for path, those in classes.items()}))
"""


def still_serves(host, before: str) -> None:
    """The same process as before exists, and answers."""
    assert pid(host) == before
    assert say(host, BASE)


def test_it_serves_the_base_and_both_adapters(host):
    status, answer = ask(host, "/v1/models")
    assert status == 200
    cards = {card["id"]: card for card in answer["data"]}
    assert set(cards) == {BASE, *ADAPTERS}
    assert {cards[name]["parent"] for name in ADAPTERS} == {BASE}
    result = {name: say(host, name) for name in [BASE, *ADAPTERS]}
    assert len(set(result.values())) == 3, result


def test_it_listens_on_loopback_and_requires_its_key(host):
    listening = host.check_output("ss -Hltn 'sport = :8001'")
    assert "127.0.0.1:8001" in listening and "0.0.0.0:8001" not in listening and "*:8001" not in listening
    assert ask(host, "/v1/models", key=None)[0] == 401


def test_the_policy_of_ai_server_knows_every_field_that_the_engine_reads(host):
    known = json.loads((ROOT / "ai_server/tests/engine_fields.json").read_text())
    output = host.check_output("cd / && HF_HUB_OFFLINE=1 /app/vllm-server/venv/bin/python -c %s", REQUESTS)
    fields = json.loads(output.splitlines()[-1])
    assert fields.keys() == known.keys()
    assert {path: sorted(set(names) - set(known[path])) for path, names in fields.items()} == {
        path: [] for path in known
    }


def test_it_fetches_no_media_that_a_request_names(host):
    config = yaml.safe_load(host.check_output("cat /etc/vllm/config.yaml"))
    assert config["allowed-media-domains"] == ["media.invalid"]
    assert "VLLM_MEDIA_URL_ALLOW_REDIRECTS=0" in host.check_output("systemctl show vllm --property Environment")


def test_its_key_is_only_in_its_environment(host):
    secrets = host.file("/etc/vllm/secrets.env")
    assert (secrets.mode, secrets.user, secrets.group) == (0o600, "root", "root")
    host.check_output("useradd --system prober 2>/dev/null; id prober")
    places = "ps axeww; cat /etc/vllm/* /etc/systemd/system/*.service; systemctl show vllm; cat /proc/[0-9]*/environ"
    seen = host.run("runuser -u prober -- sh -c %s 2>/dev/null", places).stdout
    assert "vllm.service" in seen and KEY not in seen
    assert KEY not in host.check_output("journalctl --no-pager --unit vllm")
    assert KEY not in host.check_output("systemctl show vllm")
    assert KEY in host.check_output("tr '\\0' '\\n' < /proc/%s/environ", pid(host))


def test_it_runs_hardened_and_as_itself(host):
    assert host.check_output("ps -o user= -p %s", pid(host)) == "vllm"
    verdict = host.check_output("systemd-analyze --no-pager security vllm.service").splitlines()[-1]
    assert float(verdict.split(":")[1].split()[0]) <= 3.0, verdict


def test_all_its_processes_have_its_place_when_memory_is_short(host):
    score = "cat /proc/%s/oom_score_adj"
    assert host.check_output(score, pid(host)) == "50"  # the scenario's score, not the default
    children = host.check_output("ps --ppid %s -o pid=", pid(host)).split()
    assert children and {host.check_output(score, child) for child in children} == {"50"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vllm_api_key": ""}, "vllm_api_key must be set"),
        ({"vllm_version": "0.20.0"}, "known: 0.15.1, 0.23.0, 0.32.0"),
        ({"vllm_model_path": "/srv/models/absent"}, "/srv/models/absent: there is no such directory"),
        ({"vllm_max_lora_rank": 9}, "the engine takes 1, 8, 16"),
        ({"vllm_port": 22}, "port 22 is taken by sshd"),
        ({"vllm_engine_arguments": {"port": 9000}}, "vllm_engine_arguments has port, whose place is vllm_port"),
        (
            {"vllm_engine_arguments": {"kv-cache-memory-bytes": 16777216, "no-such": 1}},
            "unrecognized arguments: --no-such",
        ),
        (
            {"vllm_lora_adapters": [{"name": "bad", "source": "/srv/models/misfits/shape"}]},
            "adapter bad:",
        ),
    ],
    ids=[
        "empty-key",
        "unknown-version",
        "no-model",
        "rank-choice",
        "port-taken",
        "other-place",
        "unknown-argument",
        "misfit-adapter",
    ],
)
def test_bad_input_is_refused_before_the_service_is_touched(host, converge, change, message):
    before = pid(host)
    outcome = converge(change)
    assert outcome.code != 0
    assert message in outcome.message, outcome.message
    still_serves(host, before)


def test_files_that_the_engine_cannot_read_are_refused_before_it_is_touched(host, converge):
    """They are readable for root, who converges; tensors are often saved with mode 0600."""
    before = pid(host)
    host.check_output("cp -r /srv/models/adapters/checklist /srv/own && chmod -R a+rX /srv/own")
    host.check_output("chmod 600 /srv/own/adapter_model.safetensors")
    outcome = converge({"vllm_lora_adapters": [{"name": "own", "source": "/srv/own"}]})
    assert outcome.code != 0
    assert "vllm cannot read /srv/own/adapter_model.safetensors: Permission denied" in outcome.message
    still_serves(host, before)


def test_a_model_that_was_cloned_without_its_large_files_is_refused_before_it_is_touched(host, converge):
    before = pid(host)
    host.check_output("cp -r /srv/models/tiny /srv/cloned")
    host.check_output("echo 'version https://git-lfs.github.com/spec/v1' > /srv/cloned/tokenizer.json")
    outcome = converge({"vllm_model_path": "/srv/cloned"})
    assert outcome.code != 0
    assert "tokenizer.json of /srv/cloned is a large-file pointer and not the file itself" in outcome.message
    still_serves(host, before)


def test_it_serves_by_ipv6_in_an_environment_that_is_what_was_written(host, converge):
    written = {
        "HTTPS_PROXY": "http://someone:p%40ss-canary@proxy.example:3128",
        "EXAMPLE_TOKEN": 'canary $HOME `x` "\\\\"',
        "EXAMPLE": '100% of "$HOME" \\%n\t\n it\'s #1',
        "OMP_NUM_THREADS": 2,
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    outcome = converge({"vllm_host": "::1", "vllm_service_environment": written})
    assert outcome.code == 0, outcome.message
    seen = json.loads(host.check_output("python3 -c %s %s", ENVIRON, pid(host)))
    assert {name: seen.get(name) for name in written} == {name: str(value) for name, value in written.items()}
    listening = host.check_output("ss -Hltn 'sport = :8001'")
    assert "[::1]:8001" in listening and "127.0.0.1" not in listening and "*:8001" not in listening
    assert "canary" not in outcome.text
    assert "canary" not in host.file("/etc/systemd/system/vllm.service").content_string
    assert "canary" not in host.check_output("systemctl show vllm; journalctl --no-pager --unit vllm")
    assert converge({}).code == 0
    assert say(host, BASE)


def test_a_start_that_fails_is_rolled_back(host, converge):
    """The engine's parser accepts this length; the model does not, which only shows when the engine starts."""
    outcome = converge({"vllm_max_model_len": 100000})
    assert outcome.code != 0
    assert "100000 is more than the model allows" in outcome.message, outcome.message
    assert "serves again" in outcome.message
    assert say(host, BASE)
    assert "max-model-len: 512" in host.file("/etc/vllm/config.yaml").content_string


def test_the_engine_comes_back_when_its_child_is_killed(host):
    before = pid(host)
    # The largest child: beside the engine itself there is a process that only cleans up.
    child = host.check_output("ps --ppid %s -o pid= --sort=-rss | head -1", before).strip()
    host.check_output("kill -KILL %s", child)
    deadline = time.monotonic() + 180
    health = "python3 -c 'import urllib.request as u; u.urlopen(\"%s/health\")'"
    while pid(host) in ("0", before) or host.run(health, URL).rc:
        assert time.monotonic() < deadline, "the engine did not come back"
        time.sleep(1)
    assert say(host, BASE)


@pytest.mark.full
def test_a_model_comes_from_the_hub_at_its_revision(host, converge, inventory):
    revision = inventory["lab_repositories"]["lab/tiny-llama"]["main"]
    change = {"vllm_model_path": "", "vllm_model_revision": revision, "vllm_hub_url": inventory["lab_hub"]}
    outcome = converge({**change, "vllm_model_revision": "main"})
    assert outcome.code != 0 and "40 hexadecimal digits" in outcome.message
    outcome = converge(change)
    assert outcome.code == 0, outcome.text
    assert say(host, BASE)
    assert converge(change).changed == []
    assert converge({}).code == 0


@pytest.mark.full
def test_rollback_on_demand_and_forward_again(host, converge):
    assert converge({"vllm_max_model_len": 256}).code == 0
    outcome = converge({"service": "vllm"}, playbook="../../playbooks/rollback.yml")
    assert outcome.code == 0, outcome.text
    assert "max-model-len: 512" in host.file("/etc/vllm/config.yaml").content_string
    assert say(host, BASE)
    assert converge({}).changed == []


@pytest.mark.full
def test_absent_removes_it(host, converge):
    assert host.file("/opt/uv/current").exists
    assert "Remove uv" in "".join(converge({"vllm_state": "absent"}, check=True).changed)
    assert converge({"vllm_state": "absent"}).code == 0
    for path in ("/opt/uv", "/var/lib/llm-server/packages"):
        assert not host.file(path).exists, path
    assert not host.package("python3-venv").is_installed
    assert not host.file("/etc/systemd/system/vllm.service").exists
    assert not host.file("/etc/vllm").exists
    assert not host.file("/app/vllm-server/environments").exists
    assert host.run("pgrep -u vllm").rc != 0
    assert converge({"vllm_state": "absent"}).changed == []
    assert converge({}).code == 0


@pytest.mark.full
def test_a_load_check_uses_the_engines_own_tool(host, converge, tmp_path):
    variables = {"load_host": "machine", "load_targets": [LOAD_TARGET], "load_callers": 2, "load_minutes": 0.1}
    variables |= {"load_input_tokens": 32, "load_output_tokens": 8, "load_directory": str(tmp_path)}
    outcome = converge(variables, playbook="../../playbooks/load.yml")
    assert outcome.code == 0, outcome.message
    report = json.loads(next(tmp_path.glob("*.json")).read_text())
    (run,) = report["runs"]
    assert run["failed"] == 0 and run["tokens"] == 8 * run["requests"]
    assert report["peaks"]["engines"]["vllm"]["tokens"] >= run["tokens"]
    assert KEY not in outcome.text + json.dumps(report)
    assert not host.file("/var/lib/llm-load").exists


def test_no_other_machine_reaches_what_the_engine_listens_on(host, converge, stray, reached):
    """Its libraries open further ports on every interface, without authentication."""
    assert reached(stray(""))
    stray("vllm")
    program = (
        "import subprocess, pathlib, re\n"
        "for line in subprocess.check_output(['ss', '-Hltnp'], text=True).splitlines():\n"
        "    pids = re.findall(r'pid=(\\d+)', line)\n"
        "    if any('/vllm.service' in pathlib.Path(f'/proc/{pid}/cgroup').read_text() for pid in pids):\n"
        "        print(line.split()[3])\n"
    )
    places = host.check_output("python3 -c %s", program).split()
    outward = {int(place.rsplit(":", 1)[1]) for place in places if not place.startswith(("127.", "[::1]"))}
    assert "127.0.0.1:8001" in places and outward
    assert not [port for port in {8001, *outward} if reached(port)]
    measured = converge(playbook="checklist.yml")
    assert measured.code == 0, measured.message
    assert "closed by the unit's filter" in measured.text
