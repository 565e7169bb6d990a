"""The settings: environment variables override the file `.env`; all errors are reported at once."""

import difflib
import os
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import httpx
from dotenv import dotenv_values
from dotenv.parser import parse_stream
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from app import tracing

EX_CONFIG = 78  # sysexits.h; systemd shows CONFIG, and RestartPreventExitStatus= can name it
ENV_FILE_VARIABLE = "AI_SERVER_ENV_FILE"
CALLER_KEY_LENGTH = 16
ENCODING = "utf-8-sig"  # some editors start a file with a byte order mark
# Variables of libraries; the file may set them too, and they are then copied to the environment.
NETWORK = (
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR"),
)
LIBRARIES = (*NETWORK, "TZ", "TMPDIR", "LANG", "LC_*", "OTEL_*")
RENAMED = {"MAX_REQUEST_SIZE": "MAX_BODY_BYTES"}
# An environment variable this similar to a setting counts as a misspelled setting; all others are ignored.
NEARLY = 0.8
SYSTEMD = ("CACHE_DIRECTORY", "CONFIGURATION_DIRECTORY", "CREDENTIALS_DIRECTORY", "LOGS_DIRECTORY", "RUNTIME_DIRECTORY")


def _header_value(secret: SecretStr) -> SecretStr:
    """Reject characters that an HTTP header cannot contain, before a client library fails with them."""
    value = secret.get_secret_value()
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("has characters that an HTTP header cannot carry")
    return secret


def _caller_key(secret: SecretStr) -> SecretStr:
    if len(secret.get_secret_value()) < CALLER_KEY_LENGTH:
        raise ValueError(f"has a key shorter than {CALLER_KEY_LENGTH} characters")
    return secret


def _split(value: object) -> object:
    """Return "a, b" as ["a", "b"]; other types unchanged."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _http_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # an invalid port or an incomplete IPv6 address
        usable = False
    if not usable or parts.query or parts.fragment:
        raise ValueError(f"is {url!r}, which is not an http:// or https:// address without a query")
    return url.rstrip("/")


def _engine_url(url: str) -> str:
    if not url.endswith("/v1"):
        raise ValueError(f"is {url!r}, which does not end in /v1")
    return url


def _callback_url(url: str) -> str:
    if url.endswith("/v1"):
        raise ValueError(f"is {url!r}, which ends in /v1, where the backend answers 401")
    return url


def _writable(path: Path) -> Path:
    """Return the absolute path of an existing directory that this user may write to; raise ValueError for others."""
    if not path.is_dir():
        raise ValueError(f"is {str(path)!r}, which is not a directory")
    if not os.access(path, os.W_OK | os.X_OK):
        raise ValueError(f"is {str(path)!r}, which uid {os.geteuid()} may not write to")
    return path.resolve()


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank")
    return text


Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Prompt = Annotated[str, AfterValidator(_not_blank)]  # kept exactly, with its whitespace
Url = Annotated[Text, AfterValidator(_http_url)]
EngineUrl = Annotated[Url, AfterValidator(_engine_url)]
Secret = Annotated[SecretStr, Field(min_length=1), AfterValidator(_header_value)]
Directory = Annotated[Path, AfterValidator(_writable)]


class Settings(BaseSettings):
    """One field per variable, with the same name in upper case; the description is the cure in error messages."""

    model_config = SettingsConfigDict(env_file_encoding=ENCODING, env_ignore_empty=True, extra="ignore", frozen=True)

    app_env: Text = Field(description="the name of the environment, such as production")
    vllm_base_url: EngineUrl = Field(description="vLLM's address with its prefix, such as http://localhost:8001/v1")
    vllm_api_key: Secret = Field(description="the key that vLLM was started with")
    vllm_model: Text = Field(description="the base model's name as /v1/models lists it")
    vllm_lora_adapter_easycontract: Text = Field(description="the easy-contract adapter's name as /v1/models lists it")
    vllm_lora_adapter_checklist: Text = Field(description="the checklist adapter's name as /v1/models lists it")
    engines_file: Path | None = Field(
        default=None, description="a JSON file of several engines and their models, read again when it changes"
    )
    engine_states_file: Path | None = Field(
        default=None, description="a JSON file of the engines that are switched off, read again when it changes"
    )
    backend_callback_base_url: Annotated[Url, AfterValidator(_callback_url)] = Field(
        description="the backend's address without a version, such as https://backend.example/api"
    )
    backend_internal_token: Secret | None = Field(
        default=None, description="the token that the backend's owners give; without it jobs are refused"
    )
    http_timeout_sec: PositiveFloat = Field(
        le=86_400, description="seconds without data after which an outgoing request is aborted, such as 30"
    )
    ocr_api: Secret = Field(description="the key of the OCR service")
    ocr_url: Url | None = Field(default=None, description="where scanned PDFs are posted; without it they are refused")
    backend_uses_proxy: bool = Field(
        default=False,
        description="true to send callbacks, with their token, through the proxy in HTTP_PROXY or a similar variable; "
        "false to connect directly",
    )
    ocr_uses_proxy: bool = Field(
        default=False,
        description="true to send scans, with the key, through the proxy in HTTP_PROXY or a similar variable; "
        "false to connect directly",
    )

    ai_server_api_keys: Annotated[
        list[Annotated[Secret, AfterValidator(_caller_key)]], NoDecode, BeforeValidator(_split)
    ] = Field(
        default=[],
        description=f"one key for each caller, separated by commas, each of {CALLER_KEY_LENGTH} characters or more, "
        "none of them vLLM's own",
    )
    callers_file: Path | None = Field(
        default=None, description="a JSON file of callers by name, read again when it changes"
    )
    rate_limit_per_minute: PositiveInt = Field(
        le=1_000_000, default=120, description="requests a minute for each caller"
    )
    token_limit_per_minute: PositiveInt | None = Field(
        default=None, description="tokens a minute for each caller, prompt and answer; without it they are not limited"
    )
    max_streams: PositiveInt | None = Field(
        default=None, description="requests of one caller at a time; without it they are not limited"
    )
    wrong_keys_per_minute: PositiveInt = Field(
        le=1_000_000, default=60, description="wrong keys a minute from one address, before its guesses get 429"
    )
    max_body_bytes: PositiveInt = Field(
        le=1024**3, default=1024 * 1024, description="bytes that a JSON request may have"
    )
    max_upload_bytes: PositiveInt = Field(
        le=1024**3, default=20 * 1024 * 1024, description="bytes that an upload may have"
    )
    max_body_values: PositiveInt = Field(
        le=100_000_000, default=200_000, description="commas, lists and objects that a JSON request may have"
    )
    max_choices: PositiveInt = Field(le=1000, default=4, description="answers that one request may ask for")
    max_answer_tokens: PositiveInt = Field(
        le=100_000_000, default=32_768, description="tokens that a request may ask an answer to have"
    )
    max_logprobs: PositiveInt = Field(le=1000, default=20, description="log probabilities for each token")
    max_stops: PositiveInt = Field(le=1000, default=16, description="texts that end an answer")
    max_schema_bytes: PositiveInt = Field(
        le=1024**3, default=65_536, description="bytes that tools, a schema or a grammar may have"
    )
    extra_fields: Annotated[list[Text], NoDecode, BeforeValidator(_split)] = Field(
        default=[], description="further fields of vLLM that callers may send, separated by commas"
    )
    cors_origins: Annotated[list[Text], NoDecode, BeforeValidator(_split)] = Field(
        default=[], description="origins of pages whose scripts may ask, such as https://app.example"
    )
    max_pdf_pages: PositiveInt = Field(le=100_000, default=50, description="pages that a PDF may have")

    header_timeout_sec: PositiveFloat = Field(
        le=86_400, default=20, description="seconds within which a request's headers must be there, such as 20"
    )
    body_timeout_sec: PositiveFloat = Field(
        le=86_400, default=120, description="seconds within which a request's body must be there, such as 120"
    )
    send_timeout_sec: PositiveFloat = Field(
        le=86_400, default=60, description="seconds after which a client that takes none of its answer is cut off"
    )

    upload_quota_bytes: PositiveInt = Field(
        le=1024**5, default=10 * 1024**3, description="bytes that all uploads in RESOURCES_DIRECTORY may have"
    )
    upload_retention_days: PositiveInt | None = Field(
        le=36_500,
        default=None,
        description="days that an upload is kept after it was last sent; without it uploads are kept forever",
    )

    job_concurrency: PositiveInt = Field(
        le=1000, default=4, description="jobs answered at the same time; one caller has at most one fewer"
    )
    job_callback_concurrency: PositiveInt = Field(le=1000, default=4, description="callbacks made at the same time")
    job_limit_per_caller: PositiveInt = Field(
        le=1_000_000, default=1000, description="jobs that a caller may have open"
    )
    job_attempts: PositiveInt = Field(
        le=1_000_000, default=20, description="tries for a job's answer, and again for its callback"
    )
    job_backoff_sec: PositiveFloat = Field(
        le=600, default=2, description="seconds before the second try; each wait doubles"
    )
    job_retention_days: PositiveInt = Field(
        le=36_500, default=7, description="days that a finished job can be asked for"
    )

    easycontract_prompt: Prompt = Field(default="Explain this contract in plain words.", description="an instruction")
    checklist_prompt: Prompt = Field(default="Make a checklist from this text.", description="an instruction")

    # Strings, since validate_default checks and converts the defaults.
    resources_directory: Directory = Field(
        default="resources/s3", validate_default=True, description="an existing directory for the uploads"
    )
    state_directory: Directory = Field(
        default="/var/lib/ai-server", validate_default=True, description="an existing directory for the job store"
    )
    log_directory: Directory = Field(
        default="/var/log/dojangkok/production", validate_default=True, description="an existing directory for the log"
    )

    @model_validator(mode="after")
    def _callers_are_not_vllm(self) -> "Settings":
        if self.vllm_api_key in self.ai_server_api_keys:
            raise ValueError("AI_SERVER_API_KEYS has VLLM_API_KEY among its keys: give the callers separate keys")
        if not self.ai_server_api_keys and self.callers_file is None:
            raise ValueError(
                "AI_SERVER_API_KEYS is empty (needed: "
                f"{type(self).model_fields['ai_server_api_keys'].description}; or CALLERS_FILE)"
            )
        return self

    @model_validator(mode="after")
    def _states_are_of_engines(self) -> "Settings":
        if self.engine_states_file and not self.engines_file:
            raise ValueError("ENGINE_STATES_FILE has no effect without ENGINES_FILE: set both, or neither")
        return self


KNOWN = {name.upper() for name in Settings.model_fields}


def load() -> Settings:
    """Return the settings; if they are invalid, exit with status 78 and one line on stderr."""
    env_file = Path(os.environ.get(ENV_FILE_VARIABLE, ".env"))
    problems = []
    try:
        problems += _unknown_in_environment()
        problems += _unknown_in_file(env_file)
        settings = Settings(_env_file=env_file)
    except ValidationError as error:
        problems += [_sentence(detail) for detail in error.errors(include_input=False)]
    except (OSError, SettingsError, UnicodeDecodeError) as error:
        problems = [f"{env_file} cannot be read: {error}"]
    if not problems:
        _hand_to_libraries(env_file)
        problems = _unusable_by_libraries() + tracing.unusable()
    if problems:
        refuse(f"settings refused: {'; '.join(dict.fromkeys(problems))}")
    return settings


def _unknown_in_environment() -> list[str]:
    """Return a sentence for each environment variable that looks like a misspelled or renamed setting."""
    others = {*SYSTEMD, ENV_FILE_VARIABLE}
    suspects = [name for name in sorted(os.environ) if name not in KNOWN | others and not _allowed(name)]
    return [
        _no_setting(name)
        for name in suspects
        if name.upper() in KNOWN
        or name in RENAMED
        or any(_begins(name, known) or _begins(known, name) for known in KNOWN)
        or difflib.get_close_matches(name.upper(), KNOWN, 1, NEARLY)
    ]


def _unknown_in_file(path: Path) -> list[str]:
    """Return a sentence for each line of .env that would have no effect. Raises OSError, UnicodeDecodeError."""
    if not path.is_file():
        return []
    problems = []
    with path.open(encoding=ENCODING) as file:
        for line in parse_stream(file):
            where = f"line {line.original.line} of {path}"
            if line.error:
                problems.append(f"{where} cannot be read: write NAME=value, and quote a value that needs it")
            elif line.key and line.key not in KNOWN and not _allowed(line.key):
                problems.append(f"{_no_setting(line.key)} ({where})")
            elif line.key and line.value is None:
                problems.append(f"{line.key} has no value: write {line.key}=value ({where})")
    return problems


def _allowed(name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in LIBRARIES)


def _begins(name: str, other: str) -> bool:
    """Return whether `other` is `name` with more words after it; `name` needs two words: RATE_LIMIT, OCR_API."""
    return "_" in name and other.startswith(f"{name}_")


def _no_setting(name: str) -> str:
    near = [RENAMED[name]] if name in RENAMED else difflib.get_close_matches(name.upper(), sorted(KNOWN), 1)
    return f"{name} is not a setting" + (f": did you mean {near[0]}?" if near else " (.env.example lists them all)")


def _hand_to_libraries(env_file: Path) -> None:
    """Copy the libraries' variables from the file to the environment; existing variables win."""
    values = dotenv_values(env_file, encoding=ENCODING) if env_file.is_file() else {}
    for name, value in values.items():
        if value and _allowed(name):
            os.environ.setdefault(name, value)
    time.tzset()


def _unusable_by_libraries() -> list[str]:
    """Return a sentence, without values, for each environment variable that the HTTP client rejects."""
    given = {name: os.environ[name] for name in NETWORK if os.environ.get(name)}
    problems = []
    try:
        for name, value in given.items():
            for each in given:
                os.environ.pop(each, None)
            os.environ[name] = value
            try:
                httpx.Client().close()
            except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
                why = type(error).__name__
                problems.append(f"{name} cannot be used by the HTTP client ({why}): correct it or take it out")
    finally:
        os.environ.update(given)
    return problems


def refuse(reason: str) -> None:
    """Exit with status 78 and one line on stderr."""
    print(f"ai-server: {reason}", file=sys.stderr, flush=True)
    raise SystemExit(EX_CONFIG)


def _sentence(detail: dict) -> str:
    """Return a pydantic error as `VARIABLE problem (cure)`; only messages of the validators above contain values."""
    message = detail["msg"].removeprefix("Value error, ")
    if not detail["loc"]:
        return message
    name = str(detail["loc"][0])
    if detail["type"] == "missing":
        problem = "is missing or empty"
    elif detail["type"] == "value_error":
        problem = message
    elif detail["type"] == "too_short":
        problem = "is empty"
    else:
        problem = f"is wrong: {message}"
    return f"{name.upper()} {problem} (needed: {Settings.model_fields[name].description})"
