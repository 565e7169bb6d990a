"""model_files: a path must be readable by the engine's user, and changed files are another release."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from plugins.module_utils.engines.model_files import Hub


@pytest.fixture
def place(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def hub(user):
    return Hub(Path("/nonexistent"), sys.executable, user, {})


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can ask as another user")
def test_files_of_another_user_are_found_before_the_engine_finds_them(tmp_path, place):
    other = Hub(Path("/nonexistent"), "/usr/bin/python3", "daemon", {})
    for path in (tmp_path, *tmp_path.parents[:-2]):
        path.chmod(0o755)
    assert other.unreadable([place]) == []
    (place / "model.safetensors").chmod(0o600)
    (message,) = other.unreadable([place])
    assert message.startswith(f"daemon cannot read {place}/model.safetensors: Permission denied; let it")
    place.chmod(0o700)
    (message,) = other.unreadable([place])
    assert message.startswith(f"daemon cannot read {place}: Permission denied")


@pytest.mark.parametrize("path", ["/home/ubuntu/model", "/root/model", "/run/user/1000/model"])
def test_home_directories_are_hidden_from_the_service(path):
    (message,) = hub(None).unreadable([Path(path)])
    assert message == f"{path} is in a home directory, which the service does not see; move it below /srv."


def test_other_files_at_the_same_path_are_noticed(place):
    before = Hub.fingerprint([place])
    assert Hub.fingerprint([place]) == before != ""
    stat = (place / "model.safetensors").stat()
    (place / "model.safetensors").write_bytes(b"WEIGHTS")
    os.utime(place / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    assert Hub.fingerprint([place]) != before


def test_a_snapshot_of_the_hub_needs_no_fingerprint():
    assert Hub.fingerprint([]) == ""
    assert hub(None).unreadable([]) == []


@pytest.fixture
def interpreter(tmp_path):
    """A fake interpreter whose transformers and vLLM are only tables of the supported models."""
    tables = {
        "transformers/__init__.py": "raise RuntimeError('imported')",
        "transformers/models/auto/configuration_auto.py": '[("llama", "LlamaConfig")]',
        "vllm/__init__.py": "",
        "vllm/transformers_utils/config.py": 'X = dict(\n    chatglm="ChatGLMConfig",\n)',
    }
    for name, text in tables.items():
        (tmp_path / "site" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "site" / name).write_text(text)
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/site exec {sys.executable} "$@"\n')
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("model_type, known", [("llama", True), ("chatglm", True), ("", True), ("exaone", False)])
def test_a_type_that_only_code_knows_which_is_not_trusted(interpreter, place, model_type, known):
    result = Hub(Path("/nonexistent"), str(interpreter), None, {}).unknown(model_type, place)
    message = f"config.json of {place} is of the type {model_type}, which only the code beside it knows: set "
    assert result == ([] if known else [f"{message}vllm_trust_remote_code to true."])


def test_an_engine_without_those_tables_is_not_judged(interpreter, place):
    (interpreter.parent / "site/transformers/__init__.py").unlink()
    (interpreter.parent / "site/transformers").rename(interpreter.parent / "site/elsewhere")
    assert Hub(Path("/nonexistent"), str(interpreter), None, {}).unknown("exaone", place) == []
