"""The validation play's errors for bad variables: one sentence each, all at once; nothing is changed."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
GOOD = {
    "vault_vllm_api_key": "canary-key-2718281828",
    "vault_huggingface_token": "",
    "vault_backend_internal_token": "internal-token",
    "vault_ocr_api": "ocr-key",
    "vault_ai_server_api_keys": ["caller-key-0123456789"],
    "vault_alertmanager_slack_webhook": "https://hooks.slack.com/services/T0/B0/x",
    "log_shipper": "promtail",
    "promtail_loki_url": "http://loki.example:3100",
    "vllm_lora_adapters": [{"name": "easycontract", "source": "/srv/a"}, {"name": "checklist", "source": "/srv/b"}],
}
# No host is contacted: the controller takes the host's place.
HERE = {"ansible_connection": "local", "ansible_become": False, "ansible_python_interpreter": sys.executable}


def playbook(name: str, variables: dict, *arguments: str, inventory: str = "inventories/production"):
    argv = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", inventory, name]
    argv += ["-e", json.dumps(variables), *arguments]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120)


def validate(variables: dict) -> tuple[int, list[str]]:
    """Return the exit code and the problems that the play lists."""
    done = playbook("playbooks/validate.yml", {**GOOD, **HERE, **variables})
    listed = [block.partition("\nPLAY")[0] for block in done.stdout.split("    problems:\n")[1:]]
    return done.returncode, yaml.safe_load(listed[0]) if listed else [done.stdout + done.stderr]


def test_no_credentials_of_an_address_are_shown():
    addresses = {
        "promtail_loki_url": "https://user:canary@logs.example",
        "ai_server_vllm_base_url": "http://user:canary@vllm.example:8001",
        "ai_server_backend_callback_base_url": "https://canary@backend.example/v1",
        "ai_server_mirror": "https://user:canary@mirror example",
        "node_exporter_mirror": "ftp://user:can/ary@mirror.example",
        "vllm_hub_url": "https://hub.example:x/?token=canary",
    }
    code, problems = validate({**addresses, "promtail_loki_user": "shipper"})
    assert code != 0
    for name in addresses:
        assert any(text.startswith(name) for text in problems), (name, problems)
    assert "canary" not in str(problems) and "ary@" not in str(problems)
    assert "promtail_loki_user and promtail_loki_password belong together; give both, or neither." in problems
    assert any(
        "give promtail_loki_user and promtail_loki_password, or promtail_loki_token" in text for text in problems
    )


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        (
            {"download_mirror": "mirror.example/files"},
            'download_mirror is "mirror.example/files"; it must be an http(s) address, such as http://host.example:3100.',
        ),
        ({"download_mirror": None}, "download_mirror has no value (null); give it one, or take it out."),
        (
            {"download_miror": "http://mirror.example"},
            "Unknown variable download_miror; did you mean download_mirror? Correct the name or take it out.",
        ),
    ],
)
def test_the_mirror_of_all_roles_is_one_sentence(variables, problem, tmp_path):
    code, problems = validate(variables)
    assert (code != 0, problems) == (True, [problem])
    # The same for a role on its own.
    role = [{"hosts": "localhost", "gather_facts": False, "roles": ["llm.server.node_exporter"]}]
    (tmp_path / "role.yml").write_text(yaml.safe_dump(role))
    done = playbook(str(tmp_path / "role.yml"), {**HERE, **variables}, "--tags", "preflight", inventory="localhost,")
    assert done.returncode != 0
    assert done.stdout.count(problem.replace('"', '\\"')) + done.stdout.count(problem) >= 1, done.stdout + done.stderr
    assert "node_exporter_mirror" not in done.stdout


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, ""),
        ({"download_mirror": "http://all.example"}, "http://all.example"),
        ({"download_mirror": "http://all.example", "node_exporter_mirror": "http://own.example"}, "http://own.example"),
        ({"download_mirror": "http://all.example", "node_exporter_mirror": ""}, ""),
    ],
)
def test_a_roles_own_mirror_wins(variables, expected, tmp_path):
    show = {"ansible.builtin.debug": {"msg": "mirror: <{{ node_exporter_mirror }}>"}}
    own = "{{ 'roles/node_exporter/defaults/main.yml' | llm.server.own_path }}"
    play = [{"hosts": "localhost", "gather_facts": False, "vars_files": [own], "tasks": [show]}]
    (tmp_path / "show.yml").write_text(yaml.safe_dump(play))
    done = playbook(str(tmp_path / "show.yml"), {**HERE, **variables}, inventory="localhost,")
    assert f"mirror: <{expected}>" in done.stdout, done.stdout + done.stderr


def test_the_receiver_of_traces_is_checked():
    secret = {
        "ai_server_otlp_headers": "authorization=Bearer canary",
        "vllm_otlp_endpoint": "http://collector.example:4318",
    }
    rest = {"ai_server_otlp_endpoint": "collector:4318", "ai_server_otlp_sample_ratio": 2.0, "vllm_version": "0.15.1"}
    code, problems = validate({**secret, **rest})
    assert code != 0
    for name in (*secret, "ai_server_otlp_endpoint", "ai_server_otlp_sample_ratio"):
        assert any(text.startswith(name) for text in problems), (name, problems)
    assert any("the environment of vLLM 0.15.1 has no opentelemetry-exporter-otlp" in text for text in problems)
    assert any("give the receiver's IP address" in text for text in problems)
    assert "canary" not in str(problems)
    here = {f"{role}_otlp_endpoint": "http://127.0.0.1:4318" for role in ("vllm", "ai_server")}
    code, output = validate({**here, "ai_server_otlp_headers": "authorization=Bearer%20canary"})
    assert code == 0, output


def test_good_input_passes():
    done = playbook("playbooks/validate.yml", {**GOOD, **HERE})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "changed=0" in done.stdout


def test_each_bad_value_is_named_with_its_cure():
    bad = {
        "swap_size_mib": ("-5", "it must be 1 to 1048576 (MiB)"),
        "swap_path": ("swap/file", "must be an absolute path"),
        "host_tuning_open_files": (1, "it must be 65536 to"),
        "housekeeping_age_hours": (0, "more than 0"),
        "vllm_model": ("a b; rm", "it must be a name of"),
        "vllm_root": ("vllm", "must be an absolute path"),
        "vllm_user": ("root", "and not root"),
        "vllm_host": ("banana", "an IP address of the host or localhost"),
        "vllm_hub_url": ("hub", "an http(s) address"),
        "vllm_huggingface_token": ("hf_canary\n", "a line break"),
        "vllm_api_key": ("canary-key-2718281828\n", "at least 8 characters of"),
        "vllm_start_timeout": (0, "more than 0"),
        "vllm_completion_timeout": (-1, "more than 0"),
        "ai_server_root": ("./ai", "must be an absolute path"),
        "ai_server_log_directory": ("logs", "must be an absolute path"),
        "ai_server_user": ("ai server", "a system user of its own"),
        "ai_server_host": ("localhost", "an IP address"),
        "ai_server_vllm_base_url": ("localhost:8001/v1", "an http(s) address"),
        "ai_server_ocr_api": ("ocr canary", "has a blank"),
        "ai_server_backend_internal_token": ("canary\n", "a line break"),
        "ai_server_api_keys": (["caller-key-0123456789\n"], "a line break"),
        "ai_server_lora_adapter_checklist": ("", "it must be a name of"),
        "ai_server_environment": ({"OCR_URL": {"a": "b"}}, "OCR_URL, which must be a text"),
        "ai_server_http_timeout_sec": (0, "more than 0"),
        "node_exporter_listen_address": ("10.0.0", "an IP address or the name of an interface"),
        "promtail_listen_address": ("eth0 ", "an IP address or the name of an interface"),
        "promtail_loki_url": ("loki.example:3100", "an http(s) address"),
        "promtail_file_jobs": ([{"job": "app", "path": "log/*.log"}], "must be an absolute path"),
        "dcgm_exporter_listen_address": ("1.2.3.4.5", "an IP address or the name of an interface"),
        "dcgm_exporter_port": (0, "a TCP port is 1 to 65535"),
        "dcgm_start_timeout": (-3, "more than 0"),
    }
    code, problems = validate({name: value for name, (value, _) in bad.items()})
    assert code != 0
    for name, (_, cure) in bad.items():
        assert any(text.startswith(name) and cure in text for text in problems), (name, problems)
    assert not [text for text in problems if not text.endswith(".") or text.endswith("..")]
    assert len(problems) <= len(bad) + 3  # three more get their values from these: a user, the model, the key
    assert "canary" not in str(problems)


@pytest.mark.parametrize(
    "variables, expected",
    [
        (
            {"ai_server_environment": {"RATE_LIMIT_PER_MIN": 5, "MAX_PDF_PAGES": 0, "max_pdf_pages": 1}},
            [
                "ai_server_environment has RATE_LIMIT_PER_MIN, which is not a setting of the application; did you",
                "ai_server_environment has MAX_PDF_PAGES, which must be a whole number above 0.",
                "has max_pdf_pages, which is not a setting of the application; did you mean MAX_PDF_PAGES.",
            ],
        ),
        (
            {
                "vllm_lora_adapters": "x",
                "vllm_model": None,
                "vllm_dtype": "fp4",
                "vllm_root": "{{ nowhere }}/x",
                "vllm_service_environment": {"A": "{{ vault_a }}"},
                "vllm_max_model_length": 4096,
                "vllm_take_out": ["drain"],
                "rotation_put_back": ["restore"],
            },
            [
                "vllm_lora_adapters is text; it must be a list of mappings",
                "vllm_model has no value (null)",
                "it must be one of auto, half, float16, bfloat16, float, float32.",
                "vllm_root uses nowhere, which is undefined; define nowhere",
                "vllm_service_environment uses vault_a, which is undefined",
                "Unknown variable vllm_max_model_length; did you mean vllm_max_model_len? Correct the name",
                "vllm_take_out is now called vllm_drain_command; rename it.",
                "rotation_put_back is now called rotation_restore_command; rename it.",
            ],
        ),
        (
            {"vllm_lora_adapters": [None], "vllm_root": "{{ 'x' | nothing }}"},
            [
                "vllm_lora_adapters[0] has no value (null)",
                "vllm_root cannot be read: No filter named 'nothing'.",
            ],
        ),
        # Rules about combinations.
        (
            {
                "vllm_model": "gpt2",
                "vllm_lora_adapters": [{"name": "../x", "source": "/srv/a"}, {"name": "a b", "source": "a b"}],
            },
            [
                "vllm_model is gpt2; it must be owner/name on the hub",
                "vllm_lora_adapters[1].source",
            ],
        ),
        ({"promtail_listen_address": "wlan7"}, ["promtail_listen_address: 'wlan7' is neither an IP address nor"]),
        (
            {
                "ai_server_lora_adapter_checklist": "check",
                "ai_server_vllm_model": "a/other",
                "ai_server_vllm_api_key": "another-key",
            },
            [
                "ai_server_lora_adapter_checklist is check, which the engine on this host does not serve (",
                "the engine on this host serves LGAI-EXAONE/EXAONE-3.5-2.4B-Instruct",
                "ai_server_vllm_api_key is not the vllm_api_key of the engine",
            ],
        ),
    ],
    ids=["settings", "types", "elements and templates", "models", "interfaces", "between roles"],
)
def test_each_error_is_one_sentence_and_all_are_reported_at_once(variables, expected):
    code, problems = validate(variables)
    assert code != 0
    for message in expected:
        assert any(message in text for text in problems), (message, problems)
    assert not [text for text in problems if text.endswith("..") or "Traceback" in text]


CODE = {"name": "code", "kind": "llama_cpp", "model": "/srv/code.gguf", "gpu": False, "source": "package"}
VLLM = {"name": "vllm", "kind": "vllm"}


def test_engines_of_two_kinds_pass_and_their_keys_are_not_shown():
    variables = {"engines": [VLLM, CODE], "llama_cpp_api_key": "canary-llama-27182818"}
    done = playbook("playbooks/validate.yml", {**GOOD, **HERE, **variables}, "-vvv")
    assert done.returncode == 0, done.stdout
    shown = [line for line in done.stdout.splitlines() if "canary-llama" in line and "extra" not in line.lower()]
    assert not shown, shown


@pytest.mark.parametrize(
    ("engines", "message"),
    [
        ([{"name": "vmagent", "kind": "vllm"}], "engines: vmagent has the name of another service of this host"),
        ([VLLM, {**VLLM, "name": "b"}], "engines: b: vllm_port and engines: vllm: vllm_port are both 8001"),
        ([{**VLLM, "max_model_len": 0}], "engines: vllm: vllm_max_model_len is 0; it must be more than 0"),
        ([VLLM, CODE], "engines: code: llama_cpp_api_key must be set"),
        ([{**VLLM, "group": "a"}, {**CODE, "group": "a"}], "engine_groups.a.sleep is 1, but only vLLM can sleep"),
        ("vllm", "engines is not a list of mappings"),
    ],
)
def test_a_list_of_engines_that_is_wrong_is_refused_with_the_name_of_the_engine(engines, message):
    groups = {"engine_groups": {"a": {"sleep": 1}}} if "sleep" in message else {}
    code, problems = validate({"engines": engines, **groups})
    assert code != 0
    assert any(message in text for text in problems), problems


def test_a_host_may_have_no_engine():
    code, output = validate({"engines": []})
    assert code == 0, output


def test_engines_of_the_application_are_checked_together():
    chat = {"name": "chat", "url": "http://127.0.0.1:8001/v1", "api_key": "canary-key-1", "models": ["a"]}
    wrong = [chat, {**chat, "url": "http://127.0.0.1:8002", "api_key": "caller-key-0123456789"}, {**chat, "port": 1}]
    code, problems = validate({"ai_server_engines": wrong})
    assert code != 0
    assert any("ai_server_engines" in text and "port" in text for text in problems), problems
    code, problems = validate({"ai_server_engines": wrong[:2]})
    assert code != 0
    for message in (
        "ai_server_engines: chat needs a url that is an http(s) address and ends in /v1",
        "ai_server_engines: chat has a caller's key as its api_key",
        "ai_server_engines: chat occurs twice",
        "ai_server_engines: the model a occurs twice",
        "ai_server_lora_adapter_checklist is checklist, which no engine of ai_server_engines serves (a)",
    ):
        assert any(message in text for text in problems), (message, problems)
    code, problems = validate({"ai_server_engines": [{**chat, "api_key": 5744368105847}]})
    assert code != 0 and any("is a number and not text; write it in quotes." in text for text in problems), problems
    for secret in ("canary", "caller-key", "5744368105847"):
        assert secret not in str(problems)


def test_each_value_has_one_place_and_no_secret_is_shown():
    values = {
        "vllm_service_environment.X is true or false and not text": {
            "vllm_service_environment": {"X": True, "Y": ["a"]}
        },
        "vllm_service_environment.Y is a list and not text": {},
        "vllm_engine_arguments has port, whose place is vllm_port": {
            "vllm_engine_arguments": {"port": 9000, "host": "0.0.0.0", "model": "x", "hf_token": "canary"}
        },
        "vllm_engine_arguments has host, whose place is vllm_host": {},
        "vllm_engine_arguments has model, whose place is vllm_model": {},
        "vllm_engine_arguments has hf_token, whose place is vllm_huggingface_token": {},
        "ai_server_environment has VLLM_API_KEY, whose place is ai_server_vllm_api_key": {
            "ai_server_environment": {"VLLM_API_KEY": "canary"}
        },
        "ai_server_api_keys[0] is a number and not text; write it in quotes.": {
            "vault_ai_server_api_keys": [0x123456789ABCDEF0]
        },
        "ai_server_ocr_api is a number and not text; write it in quotes.": {"vault_ocr_api": 5744368105847},
        "vllm_huggingface_token is true or false and not text; write it in quotes.": {"vault_huggingface_token": True},
        "vllm_build_environment.HTTPS_PROXY is a list": {"vllm_build_environment": {"HTTPS_PROXY": ["x"]}},
        "node_exporter_arguments has web.listen-address, whose place is node_exporter_listen_address": {
            "node_exporter_arguments": {"web.listen-address": ":9"}
        },
        "proxy_environment.https_proxy is true or false": {"proxy_environment": {"https_proxy": True}},
        "promtail_loki_url must be the base": {"promtail_loki_url": "https://user:canary@logs.example"},
    }
    code, problems = validate({name: value for bad in values.values() for name, value in bad.items()})
    assert code != 0
    for message in values:
        assert any(text.startswith(message) for text in problems), (message, problems)
    for secret in ("canary", str(0x123456789ABCDEF0), "5744368105847"):
        assert secret not in str(problems)


def test_an_engine_by_ipv6_is_queried_where_it_listens():
    code, (said,) = validate({"vllm_host": "::1", "ai_server_vllm_base_url": "http://127.0.0.1:8001/v1"})
    assert code != 0
    assert said.endswith("and the engine on this host listens on ::1; give it http://[::1]:8001/v1.")
    request = {"ai_server_vllm_base_url": "http://[::1]:8001/v1", "ai_server_host": "::1"}
    listening = {f"{name}_listen_address": "::1" for name in ("node_exporter", "promtail", "dcgm_exporter")}
    assert validate({"vllm_host": "::1", **request, **listening})[0] == 0


def test_an_engine_elsewhere_has_names_of_its_own():
    elsewhere = {"ai_server_vllm_base_url": "http://engine.example:8001/v1"}
    assert validate({**elsewhere, "ai_server_lora_adapter_checklist": "check"})[0] == 0


def test_a_host_that_cannot_be_reached_ends_the_run_before_anything_is_changed(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers, and nobody else can bind it
        port = taken.getsockname()[1]
        unreachable = {"ansible_host": "127.0.0.1", "ansible_port": port, "ansible_ssh_retries": 0}
        inventory = tmp_path / "hosts.yml"
        inventory.write_text(yaml.safe_dump({"swap": {"hosts": {"good": HERE, "away": unreachable}}}))
        done = playbook("site.yml", {}, inventory=str(inventory))
    assert done.returncode != 0
    assert 'remote host "127.0.0.1". Make sure this host can be reached over ssh' in done.stdout + done.stderr
    assert "away" in done.stdout and "unreachable=1" in done.stdout
    assert "TASK [Gather facts of every host]" in done.stdout
    assert "TASK [swap" not in done.stdout and "changed=1" not in done.stdout


@pytest.mark.parametrize("password", ["wrong", None])
def test_a_wrong_or_missing_vault_password_ends_the_run_before_anything_else(tmp_path, password):
    (tmp_path / "right").write_text("right")
    variables = tmp_path / "group_vars/all"
    variables.mkdir(parents=True)
    vault = variables / "vault.yml"
    vault.write_text("vault_vllm_api_key: canary-key-2718281828\n")
    program = Path(sys.executable).with_name("ansible-vault")
    argv = [str(program), "encrypt", str(vault), "--vault-password-file", str(tmp_path / "right")]
    subprocess.run(argv, cwd=ROOT, check=True, capture_output=True, timeout=60)
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"swap": {"hosts": {"good": HERE}}}))
    given = []
    if password:
        (tmp_path / "given").write_text(password)
        given = ["--vault-password-file", str(tmp_path / "given")]
    done = playbook("site.yml", {}, *given, inventory=str(tmp_path / "hosts.yml"))
    assert done.returncode != 0
    message = "Decryption failed" if password else "Attempting to decrypt but no vault secrets found"
    assert message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert "TASK" not in done.stdout


def test_a_google_cloud_inventory_without_a_project_is_one_sentence():
    done = playbook("site.yml", {}, inventory="inventories/gcp")
    assert done.returncode != 0
    assert done.stderr.strip() == "[ERROR]: gcp_project is empty: set it to the ID of your Google Cloud project."
    assert done.stdout.strip() == ""
