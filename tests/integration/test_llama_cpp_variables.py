"""The role llama_cpp's errors for bad variables: one sentence each, all at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
GOOD = {
    "llama_cpp_model": "Qwen/Coder-GGUF",
    "llama_cpp_model_file": "coder-q4.gguf",
    "llama_cpp_revision": "0" * 40,
    "llama_cpp_sha256": "1" * 64,
    "llama_cpp_api_key": "a-key-0123456789",
    "llama_cpp_checksums": {"b11669": {"source": f"sha256:{'2' * 64}"}},
    "llama_cpp_lora_adapters": [{"name": "easy", "source": "/srv/easy.gguf"}],
}
PLAY = [
    {
        "name": "Validate",
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "tasks": [{"name": "Validate the role's variables", "llm.server.validate_variables": {"roles": ["llama_cpp"]}}],
    }
]


def validate(tmp_path, variables: dict) -> tuple[int, list[str]]:
    """Return the exit code and the problems that the task lists."""
    (tmp_path / "play.yml").write_text(json.dumps(PLAY))
    argv = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", str(tmp_path / "play.yml")]
    argv += ["-e", json.dumps({**GOOD, **variables})]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120)
    listed = [block.partition("\nPLAY")[0] for block in done.stdout.split("    problems:\n")[1:]]
    return done.returncode, yaml.safe_load(listed[0]) if listed else [done.stdout + done.stderr]


def test_good_input_passes(tmp_path):
    assert validate(tmp_path, {})[0] == 0
    package = {"llama_cpp_source": "package", "llama_cpp_gpu": False, "llama_cpp_checksums": {}}
    by_path = {"llama_cpp_model": "/srv/m.gguf", "llama_cpp_revision": "", "llama_cpp_sha256": ""}
    code, output = validate(tmp_path, {**package, **by_path})
    assert code == 0, output


OF_ANOTHER_KIND = {
    "llama_cpp_alias": ("a b", "it must be a name of"),
    "llama_cpp_arguments": ({"ctx-size": 1, "hf_token": "canary"}, "whose place is llama_cpp_"),
    "llama_cpp_clients": (["everyone"], "an IP address or a network"),
    "llama_cpp_context": (0, "more than 0"),
    "llama_cpp_service_environment": ({"LLAMA_API_KEY": "canary"}, "whose place is llama_cpp_api_key"),
    "llama_cpp_flash_attention": ("maybe", "one of auto, on, off"),
    "llama_cpp_host": ("banana", "an IP address of the host or localhost"),
    "llama_cpp_port": (70000, "1 to 65535"),
    "llama_cpp_root": ("models", "must be an absolute path"),
    "llama_cpp_source": ("git", "one of build, archive, package"),
    "llama_cpp_user": ("root", "and not root"),
}
# These rules only apply to values of the right type.
UNFIT = {
    "llama_cpp_api_key": ("canary", "at least 8 characters of"),
    "llama_cpp_build_jobs": (-1, "or 0 for what the host allows"),
    "llama_cpp_checksums": ({}, 'add it as b11669: {source: "sha256:…"}'),
    "llama_cpp_cpus": (-1, "above 0, or 0 for all"),
    "llama_cpp_kv_cache_type": ("q8_0,q4_0", "or key/value as q8_0/q4_0"),
    "llama_cpp_memory_max": ("10M", "needs 256M"),
    "llama_cpp_name": ("Code", "a letter first"),
    "llama_cpp_revision": ("main", "40 hexadecimal digits"),
    "llama_cpp_sha256": ("abc", "64 hexadecimal digits"),
    "llama_cpp_threads": (-2, "or 0 for the program's own choice"),
}


@pytest.mark.parametrize("bad", [OF_ANOTHER_KIND, UNFIT], ids=["kinds", "rules"])
def test_each_bad_value_is_named_with_its_cure(tmp_path, bad):
    code, problems = validate(tmp_path, {name: value for name, (value, _) in bad.items()})
    assert code != 0
    for name, (_, cure) in bad.items():
        assert any(text.startswith(name) and cure in text for text in problems), (name, problems)
    assert "canary" not in str(problems) and not [text for text in problems if text.endswith("..")]


def test_what_only_shows_in_combination(tmp_path):
    adapters = [
        {"name": "a", "source": "/srv/a"},
        {"name": "a", "source": "lab/b", "file": "b.gguf"},
        {"name": "c", "source": "lab/c", "sha256": "short"},
    ]
    values = {
        "llama_cpp_source": "package",
        "llama_cpp_model": "gpt2",
        "llama_cpp_ubatch": 4096,
        "llama_cpp_lora_adapters": adapters,
    }
    code, problems = validate(tmp_path, values)
    assert code != 0
    for message in (
        "is built without CUDA; set llama_cpp_gpu to false",
        "llama_cpp_model is gpt2; it must be the absolute path of a .gguf file on the host, or owner/name",
        "llama_cpp_ubatch is 4096; it must be at most llama_cpp_batch, 2048.",
        "llama_cpp_lora_adapters: a, a, c must be the absolute path of a .gguf file",
        "llama_cpp_lora_adapters names a, a, c; give each a name of its own.",
    ):
        assert any(message in text for text in problems), (message, problems)
