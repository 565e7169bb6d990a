"""The services are validated before the first request that costs money, in the README's order."""

import pytest

from lab.compute_api import Cloud

GOOD = {
    "vault_vllm_api_key": "k" * 32,
    "vault_huggingface_token": "hf_" + "t" * 20,
    "vault_backend_internal_token": "b" * 32,
    "vault_ocr_api": "https://ocr.example.com/read",
    "vault_ai_server_api_keys": ["a" * 32],
    "vault_alertmanager_slack_webhook": "https://hooks.slack.com/services/T0/B0/x",
    "vllm_lora_adapters": [
        {"name": name, "source": f"someone/{name}", "revision": "0" * 40} for name in ("easycontract", "checklist")
    ],
}


@pytest.fixture
def cloud():
    return Cloud(address="127.0.0.1")


def test_an_empty_vault_is_refused_before_a_machine_is_made(cloud, playbook):
    for check in (True, False):
        done = playbook("gcp_provision", "../site", gcp_validate_services=True, check=check)
        assert done.returncode != 0
        assert "ai_server_api_keys" in done.said
        assert "vllm_lora_adapters" in done.said
        assert "costs about 0.97 USD an hour" in done.said
        assert "(data/gcp/prices.yml, as of skypilot-catalog 006059e)" in done.said
        assert cloud.writes() == []


def test_values_that_build_on_the_inventorys_folder(cloud, playbook):
    given = {**GOOD, "vmagent_url": "{{ lookup('file', inventory_dir ~ '/llm.gcp.yml') and 'http://l.example' }}"}
    done = playbook("gcp_provision", check=True, gcp_validate_services=True, **given)
    assert done.returncode == 0, done.stdout + done.stderr


def test_good_values_let_the_machine_be_made(cloud, playbook):
    done = playbook("gcp_provision", gcp_validate_services=True, gcp_ssh_timeout=1, **GOOD)
    assert "llm-server does not answer SSH" in done.said, done.stdout + done.stderr
    assert cloud.instance("llm-server")["status"] == "RUNNING"


def test_a_running_machine_is_not_queried(cloud, playbook):
    playbook("gcp_provision", gcp_ssh_timeout=1)
    done = playbook("gcp_provision", gcp_validate_services=True, gcp_ssh_timeout=1)
    assert "llm-server does not answer SSH" in done.said
    assert "TASK [Check the variables]" not in done.stdout
