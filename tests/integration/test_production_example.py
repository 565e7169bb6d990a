"""The production example: what it would install for an L4, and what it refuses before that."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from plugins.module_utils.release import systemd_unit

ROOT = Path(__file__).resolve().parents[2]
KEY = "canary-key-2718281828"
SECRETS = {
    "vault_vllm_api_key": KEY,
    "vault_huggingface_token": "",
    "vault_backend_internal_token": "internal-token",
    "vault_ocr_api": "ocr-key",
    "vault_ai_server_api_keys": ["caller-key-0123456789"],
    "vault_alertmanager_slack_webhook": "https://hooks.slack.com/services/T0/B0/x",
}


def playbook(name: str, *arguments: str) -> subprocess.CompletedProcess:
    program = Path(sys.executable).with_name("ansible-playbook")
    argv = [str(program), "-i", "inventories/production", name, *arguments]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def rendered(tmp_path_factory) -> dict:
    target = tmp_path_factory.mktemp("production") / "vllm.json"
    done = playbook("tests/integration/production.yml", "-e", json.dumps({**SECRETS, "target": str(target)}))
    assert done.returncode == 0, done.stdout
    return json.loads(target.read_text())


def test_the_engine_is_the_one_of_the_guide(rendered):
    config = rendered["config"]
    assert config["served-model-name"] == ["LGAI-EXAONE/EXAONE-3.5-2.4B-Instruct"]
    assert (config["port"], config["host"]) == (8001, "127.0.0.1")
    assert (config["gpu-memory-utilization"], config["max-model-len"]) == (0.85, 8192)
    assert (config["dtype"], config["max-lora-rank"]) == ("bfloat16", 16)
    assert config["trust-remote-code"] is True
    assert config["enforce-eager"] is True
    assert config["enable-lora"] is True
    assert [json.loads(each)["name"] for each in config["lora-modules"]] == ["easycontract", "checklist"]


def test_the_engine_fetches_no_media_that_a_request_names(rendered):
    assert rendered["config"]["allowed-media-domains"] == ["media.invalid"]
    assert "VLLM_MEDIA_URL_ALLOW_REDIRECTS=0" in systemd_unit.render(rendered["unit"])


def test_the_key_is_in_no_file_that_others_read(rendered):
    assert KEY not in json.dumps(rendered["config"]) + json.dumps(rendered["unit"])


def test_the_unit_has_the_limits_of_the_guide_and_sees_the_gpu(rendered):
    text = systemd_unit.render(rendered["unit"])
    for line in (
        "Restart=always", "RestartSec=10", "TimeoutStopSec=30", "LimitNOFILE=65536", "LimitNPROC=65536",
        "User=vllm", "PrivateDevices=no", "ProtectSystem=strict",
        'Environment="LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu"', 'Environment="HF_HUB_OFFLINE=1"',
        "ExecStart=/app/vllm-server/venv/bin/vllm serve --config /etc/vllm/config.yaml",
    ):  # fmt: skip
        assert line in text.splitlines(), f"{line} is not in\n{text}"
    assert "ProtectClock" not in text  # on Ubuntu 22.04 it would block the GPU's devices


def test_the_unit_waits_for_the_engines_before_it_and_no_timeout_of_the_inventory_is_in_it(rendered):
    """Type=simple has no start that could time out: a variable there would only restart the engine."""
    lines = systemd_unit.render(rendered["unit"]).splitlines()
    assert "ExecStartPre=-+/usr/bin/python3 -I -B /etc/vllm/await_turn.py /etc/vllm/turn.json" in lines
    assert [line for line in lines if line.startswith("TimeoutStartSec")] == ["TimeoutStartSec=3600"]


def test_the_probes_name_their_key_and_the_length_and_have_neither_key(rendered):
    _, models, *completions = rendered["probes"]
    assert models["models"]["max_model_len"] == 8192
    assert models["models"]["expected"] == ["LGAI-EXAONE/EXAONE-3.5-2.4B-Instruct", "easycontract", "checklist"]
    for probe in [models["models"], *(each["completion"] for each in completions)]:
        assert (probe["bearer_file"], probe["bearer_variable"]) == ("/etc/vllm/secrets.env", "VLLM_API_KEY")
    assert len(completions) == 3 and KEY not in json.dumps(rendered["probes"])


def test_the_gpus_memory_must_be_free_before_the_engine_starts(rendered):
    assert rendered["before"] == [{"gpu_free": {"mib": 19700, "gpus": 1}}]


def test_the_memory_plan_uses_the_engines_settings(rendered):
    (service,) = rendered["plan"]
    config = rendered["config"]
    assert service["model"] == "LGAI-EXAONE/EXAONE-3.5-2.4B-Instruct"
    assert service["revision"] == "e949c91dec92095908d34e6b560af77dd0c993f8"
    assert service["hf_home"] == "/app/vllm-server/.cache/huggingface"
    assert float(service["gpu_memory_utilization"]) == config["gpu-memory-utilization"]
    assert int(service["max_model_len"]) == config["max-model-len"]
    assert int(service["max_loras"]) == config["max-loras"] == 2
    assert (service["version"], service["unit"]) == ("0.23.0", "vllm.service")
    assert [adapter["name"] for adapter in service["adapters"]] == ["easycontract", "checklist"]


def test_all_missing_variables_are_reported_at_once(tmp_path):
    done = playbook("playbooks/validate.yml")
    assert done.returncode != 0
    names = re.findall(r"^    - '?(\w+)", done.stdout.partition("problems:")[2], re.MULTILINE)
    secrets = ["ai_server_api_keys", "ai_server_vllm_api_key", "ai_server_ocr_api"]
    assert names == ["vllm_api_key", "vllm_lora_adapters", *secrets, "alertmanager_receivers"], done.stdout
    assert "easycontract, checklist must have a revision" in done.stdout
    assert "changed=0" in done.stdout


def test_all_ports_are_checked_together():
    done = playbook("playbooks/validate.yml", "-e", json.dumps({**SECRETS, "vllm_port": 8000, "vmagent_port": 99999}))
    assert "vllm_port and ai_server_port are both 8000" in done.stdout + done.stderr, done.stdout
    assert "vmagent_port is 99999" in done.stdout + done.stderr


def test_a_version_without_quotes_is_a_version_all_the_same():
    done = playbook("playbooks/validate.yml", "-e", json.dumps({**SECRETS, "vllm_version": 0.23}))
    assert "vllm_version 0.23 is not in data/vllm/versions.yml" in done.stdout + done.stderr, done.stdout


def test_a_wrong_type_is_named():
    done = playbook("playbooks/validate.yml", "-e", json.dumps({**SECRETS, "vllm_port": "eight"}))
    assert done.returncode != 0
    assert "vllm_port" in done.stdout + done.stderr


def test_a_secret_that_cannot_be_decrypted_is_named(tmp_path):
    vault = Path(sys.executable).with_name("ansible-vault")
    (tmp_path / "right").write_text("right")
    (tmp_path / "wrong").write_text("wrong")
    argv = [str(vault), "encrypt_string", KEY, "--name", "vault_vllm_api_key"]
    argv += ["--vault-password-file", str(tmp_path / "right")]
    made = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT)
    extra = tmp_path / "extra.yml"
    rest = {name: value for name, value in SECRETS.items() if name != "vault_vllm_api_key"}
    extra.write_text(made.stdout + "\n" + yaml.safe_dump(rest))
    done = playbook("playbooks/validate.yml", "-e", f"@{extra}", "--vault-password-file", str(tmp_path / "wrong"))
    assert done.returncode != 0
    assert "cannot be decrypted" in done.stdout + done.stderr, done.stdout + done.stderr


def test_collections_named_twice_are_the_same():
    """requirements.yml is for users who install only ansible-core."""
    import ansible_collections

    for named in yaml.safe_load((ROOT / "requirements.yml").read_text())["collections"]:
        namespace, name = named["name"].split(".")
        manifest = Path(ansible_collections.__path__[0]) / namespace / name / "MANIFEST.json"
        assert json.loads(manifest.read_text())["collection_info"]["version"] == named["version"]


def test_a_lock_with_a_transformers_that_the_engine_does_not_take_is_refused():
    lock = str(ROOT / "data/vllm/locks/vllm-0.23.0.txt")
    done = playbook(
        "playbooks/validate.yml", "-e", json.dumps({**SECRETS, "vllm_version": "0.32.0", "vllm_lock": lock})
    )
    assert "vllm_version 0.32.0 needs transformers >=5.5.3, not 4.57.6" in done.stdout + done.stderr, done.stdout


def test_a_lock_that_is_not_there_is_named():
    done = playbook("playbooks/validate.yml", "-e", json.dumps({**SECRETS, "vllm_lock": "/srv/absent.txt"}))
    assert "vllm_lock: there is no /srv/absent.txt; make it with" in done.stdout + done.stderr, done.stdout
