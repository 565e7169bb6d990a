"""Test that invalid settings stop the start with one line that names every wrong variable and its cure."""

import os
import re
import subprocess
import sys

import pytest

from app.settings import KNOWN, LIBRARIES, Settings
from conftest import ROOT

REQUIRED = [name.upper() for name, field in Settings.model_fields.items() if field.is_required()]


@pytest.fixture
def run(new_server):
    """Return a function that runs a module with changed settings and returns (status, stdout, stderr)."""

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
    """Return a function that loads changed, invalid settings in this process and returns the error on stderr."""
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
def test_a_blank_instruction_counts_as_none(refused, name):
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
        ("VLLM_BASE_URL", "http://localhost:8001/v1/chat/completions", "does not end in /v1"),
        ("VLLM_BASE_URL", "localhost:8001/v1", "not an http:// or https:// address"),
        ("VLLM_BASE_URL", "http://localhost:80010/v1", "not an http:// or https:// address"),
        ("VLLM_BASE_URL", "http://[::1:8001/v1", "not an http:// or https:// address"),
        ("VLLM_API_KEY", "with space", "an HTTP header cannot carry"),
        ("BACKEND_INTERNAL_TOKEN", "ключ", "an HTTP header cannot carry"),
        ("BACKEND_CALLBACK_BASE_URL", "https://backend.example/api/v1", "ends in /v1"),
        ("BACKEND_CALLBACK_BASE_URL", "https://backend.example/api/v1/", "ends in /v1"),
        ("OCR_URL", "ocr.example", "not an http:// or https:// address"),
        ("HTTP_TIMEOUT_SEC", "0", "greater than 0"),
        ("RATE_LIMIT_PER_MINUTE", "-1", "greater than 0"),
        ("MAX_UPLOAD_BYTES", "20M", "valid integer"),
        ("RATE_LIMIT_PER_MINUTE", "true", "valid integer"),
        ("RATE_LIMIT_PER_MINUTE", "2.5", "valid integer"),
        ("JOB_BACKOFF_SEC", "601", "less than or equal to 600"),
        ("JOB_CONCURRENCY", "100000", "less than or equal to 1000"),
        ("JOB_RETENTION_DAYS", "9" * 400, "less than or equal to 36500"),
        ("JOB_LIMIT_PER_CALLER", "0", "greater than 0"),
        ("UPLOAD_QUOTA_BYTES", "10G", "valid integer"),
        ("UPLOAD_RETENTION_DAYS", "0", "greater than 0"),
        ("BACKEND_USES_PROXY", "maybe", "valid boolean"),
        ("HTTP_TIMEOUT_SEC", "inf", "less than or equal to 86400"),
        ("HTTP_TIMEOUT_SEC", "nan", "less than or equal to 86400"),
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


@pytest.mark.parametrize(
    "name, near",
    [
        ("RATE_LIMIT_PER_MIN", "RATE_LIMIT_PER_MINUTE"),
        ("RATE_LIMIT", "RATE_LIMIT_PER_MINUTE"),
        ("rate_limit_per_minute", "RATE_LIMIT_PER_MINUTE"),
        ("Rate_Limit_Per_Minute", "RATE_LIMIT_PER_MINUTE"),
        ("MAX_REQUEST_SIZE", "MAX_BODY_BYTES"),
        ("HTTP_TIMEOUT", "HTTP_TIMEOUT_SEC"),
        ("OCR_API_KEY", "OCR_API"),
        ("AI_SERVER_KEYS", "AI_SERVER_API_KEYS"),
        ("JOB_ATEMPTS", "JOB_ATTEMPTS"),
    ],
)
def test_an_unknown_setting(refused, tmp_path, name, near):
    assert refused(**{name: "5"}) == f"ai-server: settings refused: {name} is not a setting: did you mean {near}?\n"
    (tmp_path / "file.env").write_text(f"\n# ours\n{name}=5\n")
    line = refused(AI_SERVER_ENV_FILE=str(tmp_path / "file.env"))
    assert f"{name} is not a setting: did you mean {near}? (line 3 of {tmp_path}/file.env)" in line


@pytest.mark.parametrize(
    "text, message",
    [
        ("COLOUR=red\n", "COLOUR is not a setting (.env.example lists them all) (line 1 of"),
        ("OCR_URL=\nexport NODE_ENV=production\n", "NODE_ENV is not a setting"),
        ("UVICORN_PORT=1\nAI_SERVER_ENV_FILE=x\n", "UVICORN_PORT is not a setting"),
        ("RATE_LIMIT_PER_MINUTE\n", "RATE_LIMIT_PER_MINUTE has no value: write RATE_LIMIT_PER_MINUTE=value (line 1"),
        ("RATE_LIMIT_PER_MINUTE: 5\n", "line 1 of"),
        ("OCR_URL='http://ocr.example\n", "line 1 of"),
    ],
)
def test_a_line_without_effect(refused, tmp_path, text, message):
    (tmp_path / "file.env").write_text(text)
    line = refused(AI_SERVER_ENV_FILE=str(tmp_path / "file.env"))
    assert message in line and line.count("\n") == 1


HERE = {
    **dict.fromkeys(
        ("HTTPS_PROXY", "http_proxy", "LC_ALL", "OTEL_SERVICE_NAME", "VLLM_PORT", "VLLM_LOGGING_LEVEL"), "x"
    ),
    **dict.fromkeys(("LOGS_DIRECTORY", "CACHE_DIRECTORY", "RUNTIME_DIRECTORY", "SSL_CERT_DIR", "JOURNAL_STREAM"), "/x"),
    **dict.fromkeys(("JOB_NAME", "LOG_LEVEL", "UVICORN_PORT", "APP_VERSION", "AI_SERVER_PORT", "MAX_JOBS"), "1"),
    "TZ": "UTC",
}


def test_settings_of_others_are_ignored(run):
    assert run("app.check", **HERE)[::2] == (0, "")


@pytest.fixture
def loaded(monkeypatch, new_server):
    """Return a function that loads a settings file in this process and returns (settings, environment after it)."""
    from app import settings

    def loaded(text: str, **environment: str) -> tuple[Settings, dict]:
        server = new_server()
        (server.directory / ".env").write_bytes(text.encode())
        given = {name: value for name, value in server.environment().items() if f"{name}=" not in text}
        monkeypatch.setattr(os, "environ", {**given, **environment})
        monkeypatch.chdir(server.directory)
        return settings.load(), os.environ

    return loaded


def test_what_the_file_has_for_libraries_reaches_them(loaded):
    _, environment = loaded("HTTPS_PROXY=http://a:1\nOTEL_SERVICE_NAME=x\nNO_PROXY=b\nLANG=\n", NO_PROXY="c")
    assert (environment["HTTPS_PROXY"], environment["OTEL_SERVICE_NAME"]) == ("http://a:1", "x")
    assert (environment["NO_PROXY"], "LANG" in environment) == ("c", False)


@pytest.mark.parametrize(
    "name, value",
    [
        ("NO_PROXY", "localhost,[::1]"),
        ("no_proxy", "fd00::/8"),
        ("HTTPS_PROXY", "socks5://user:canary@proxy.example:1080"),
        ("ALL_PROXY", "proxy://user:canary@proxy.example"),
        ("SSL_CERT_FILE", "/nowhere/canary.pem"),
    ],
)
def test_what_the_http_client_fails_at(refused, name, value):
    line = refused(**{name: value, "HTTP_PROXY": "http://proxy.example:3128", "TZ": "UTC"})
    assert line.startswith(f"ai-server: settings refused: {name} cannot be used by the HTTP client (")
    assert "canary" not in line and line.count("\n") == 1


def test_an_address_with_a_slash_behind_it(loaded):
    assert loaded("VLLM_BASE_URL=http://localhost:8001/v1/\n")[0].vllm_base_url == "http://localhost:8001/v1"


@pytest.mark.parametrize("text", ["\ufeffAPP_ENV=staging\n", "APP_ENV=staging\r\n", "export APP_ENV='staging' # x\n"])
def test_files_of_other_editors(loaded, text):
    assert loaded(text)[0].app_env == "staging"


def test_vllms_key_is_not_accepted_from_callers(refused):
    line = refused(VLLM_API_KEY="the-key-of-the-engine", AI_SERVER_API_KEYS="the-key-of-the-engine")
    assert "AI_SERVER_API_KEYS has VLLM_API_KEY among its keys" in line
    assert "the-key-of-the-engine" not in line


def test_no_secret_is_shown(refused):
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
    named = re.findall(r"^#?([A-Za-z_*]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE)
    assert sorted(named) == sorted([*KNOWN, *LIBRARIES])
