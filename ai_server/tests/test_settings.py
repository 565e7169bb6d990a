"""Settings are refused with one line that names every wrong variable and its cure; the process does not start."""

import os
import re
import subprocess
import sys

import pytest

from app.settings import Settings
from conftest import ROOT

REQUIRED = [name.upper() for name, field in Settings.model_fields.items() if field.is_required()]


@pytest.fixture
def run(new_server):
    """Run a module with the test's settings changed: (status, stdout, stderr)."""

    def run(*command: str, **changes: str | None) -> tuple[int, str, str]:
        server = new_server(**changes)
        command = [sys.executable, "-m", *command]
        done = subprocess.run(
            command, cwd=server.directory, env=server.environment(), capture_output=True, text=True, timeout=20
        )
        return done.returncode, done.stdout, done.stderr

    return run


def test_check_accepts_and_leaves_no_trace(run, tmp_path):
    status, out, err = run("app.check")
    assert (status, err) == (0, "")
    assert re.fullmatch(r"ai-server: settings accepted, \d+ modules imported\n", out)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("command", [["app.check"], ["uvicorn", "app.main:app", "--port", "0"]])
def test_refusal_is_one_line_with_everything(run, command):
    status, out, err = run(*command, VLLM_API_KEY="", HTTP_TIMEOUT_SEC="soon", APP_ENV=None)
    assert (status, out, err.count("\n")) == (78, "", 1)
    for part in ("VLLM_API_KEY is missing or empty", "HTTP_TIMEOUT_SEC is wrong", "APP_ENV is missing or empty"):
        assert part in err
    assert "the key that vLLM was started with" in err and "Traceback" not in err


@pytest.fixture
def refused(monkeypatch, tmp_path, capsys, new_server):
    """Load the settings in this process, changed: the one line that refuses them."""
    from app import settings

    def refused(**changes: str | None) -> str:
        server = new_server(**changes)
        monkeypatch.setattr(os, "environ", server.environment())
        monkeypatch.chdir(server.directory)
        with pytest.raises(SystemExit, match="78"):
            settings.load()
        return capsys.readouterr().err

    return refused


PROMPT = '\u3000全角\tfirst line\n second line: it\'s "${HOME}" #1 \\\n'


def test_an_instruction_is_taken_to_the_letter(monkeypatch, tmp_path, new_server):
    from app import settings

    server = new_server()
    monkeypatch.setattr(os, "environ", server.environment())
    monkeypatch.chdir(server.directory)
    escaped = PROMPT.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("${", "${:-$}{")
    (server.directory / ".env").write_text(f'CHECKLIST_PROMPT="{escaped}"\n', encoding="utf-8")
    assert settings.load().checklist_prompt == PROMPT


@pytest.mark.parametrize("name", ["CHECKLIST_PROMPT", "EASYCONTRACT_PROMPT"])
def test_a_blank_instruction_is_none(refused, name):
    assert f"{name} is blank" in refused(**{name: " \u3000\t"})


@pytest.mark.parametrize("name", REQUIRED)
@pytest.mark.parametrize("value", [None, "", "  "])
def test_required(refused, name, value):
    line = refused(**{name: value})
    assert line.startswith(f"ai-server: settings refused: {name} ") and line.count("\n") == 1


@pytest.mark.parametrize(
    "name, value, reason",
    [
        ("VLLM_BASE_URL", "http://localhost:8001", "does not end in /v1"),
        ("VLLM_BASE_URL", "localhost:8001/v1", "not an http:// or https:// address"),
        ("VLLM_API_KEY", "with space", "an HTTP header cannot carry"),
        ("BACKEND_INTERNAL_TOKEN", "ключ", "an HTTP header cannot carry"),
        ("BACKEND_CALLBACK_BASE_URL", "https://backend.example/api/v1", "ends in /v1"),
        ("BACKEND_CALLBACK_BASE_URL", "https://backend.example/api/v1/", "ends in /v1"),
        ("OCR_URL", "ocr.example", "not an http:// or https:// address"),
        ("HTTP_TIMEOUT_SEC", "0", "greater than 0"),
        ("RATE_LIMIT_PER_MINUTE", "-1", "greater than 0"),
        ("MAX_UPLOAD_BYTES", "20M", "valid integer"),
        ("AI_SERVER_API_KEYS", ", ,", "is empty"),
        ("AI_SERVER_API_KEYS", "long-enough-0123456,short", "shorter than 16 characters"),
        ("RESOURCES_DIRECTORY", "nowhere", "not a directory"),
        ("STATE_DIRECTORY", "/proc/nowhere", "not a directory"),
        ("LOG_DIRECTORY", "/dev/null", "not a directory"),
    ],
)
def test_wrong_value(refused, name, value, reason):
    line = refused(**{name: value})
    assert line.startswith(f"ai-server: settings refused: {name} ") and line.count("\n") == 1
    assert reason in line


def test_vllms_key_is_no_callers_key(refused):
    line = refused(VLLM_API_KEY="the-key-of-the-engine", AI_SERVER_API_KEYS="the-key-of-the-engine")
    assert "AI_SERVER_API_KEYS has VLLM_API_KEY among its keys" in line
    assert "the-key-of-the-engine" not in line


def test_no_secret_is_told(refused):
    line = refused(VLLM_API_KEY="secret one", OCR_API="secret two", AI_SERVER_API_KEYS="secret", APP_ENV="")
    assert "secret" not in line


def test_check_of_another_file(run, tmp_path, new_server):
    server = new_server()
    candidate = tmp_path / "candidate.env"
    candidate.write_text("".join(f"{name}={value}\n" for name, value in server.settings.items()))
    nothing = dict.fromkeys(server.settings)
    assert run("app.check", "--env-file", str(candidate), **nothing)[0] == 0
    candidate.write_text(candidate.read_text().replace("/v1\n", "/v2\n"))
    status, _, err = run("app.check", "--env-file", str(candidate), **nothing)
    assert (status, "VLLM_BASE_URL is" in err) == (78, True)
    assert run("app.check", "--env-file", str(tmp_path / "none"))[0] == 1


def test_check_names_a_missing_module(run, tmp_path):
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "pypdf.py").write_text("raise ModuleNotFoundError(\"No module named 'pypdf'\")")
    status, _, err = run("app.check", PYTHONPATH=f"{hidden}:{ROOT}")
    assert (status, err.count("\n")) == (1, 1)
    assert "No module named 'pypdf'" in err and "requirements.txt" in err


def test_example_names_every_setting():
    named = re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(name.upper() for name in Settings.model_fields)
