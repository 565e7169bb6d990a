"""The guard of the engine's routes: which requests pass without the key, and that all others are refused."""

from __future__ import annotations

import asyncio
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
SPEC = importlib.util.spec_from_file_location("guard", ROOT / "roles/vllm/files/guard.py")
guard = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(guard)

KEY = "a-key-of-the-tests"


@pytest.fixture
def ask(monkeypatch):
    """Send a request to the guarded application; return the status, 200 if the request passed."""
    monkeypatch.setenv(guard.KEY, KEY)
    monkeypatch.setenv(guard.OPEN, "/health /metrics")

    def asked(path, method="GET", key=None, header="Bearer", **scope):
        messages = []

        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200})

        async def send(message):
            messages.append(message)

        headers = [(b"authorization", f"{header} {key}".encode())] if key else []
        given = {"type": "http", "method": method, "path": path, "headers": headers, **scope}
        asyncio.run(guard.Guard(app)(given, None, send))
        return messages[0].get("status", messages[0]["type"])

    return asked


@pytest.mark.parametrize("path", ["/health", "/metrics", "/metrics/"])
def test_an_open_route_needs_no_key(ask, path):
    assert ask(path) == 200


@pytest.mark.parametrize(
    "path",
    ["/sleep", "/wake_up", "/is_sleeping", "/collective_rpc", "/reset_prefix_cache", "/server_info", "/pause", "/",
     "/v1/models", "//health", "/healthy", "/health/../sleep/", "/HEALTH", ""],
)  # fmt: skip
def test_every_other_path_needs_the_key(ask, path):
    assert ask(path, "POST") == 401
    assert ask(path, "POST", key=KEY) == 200


@pytest.mark.parametrize(("key", "header"), [("a-key-of-the-test", "Bearer"), (KEY, "Basic"), (f" {KEY}", "Bearer")])
def test_another_key_or_scheme_is_refused(ask, key, header):
    assert ask("/sleep", "POST", key=key, header=header) == 401


def test_the_scheme_is_read_in_any_case(ask):
    assert ask("/sleep", "POST", key=KEY, header="bearer") == 200


def test_a_preflight_passes(ask):
    assert ask("/v1/models", "OPTIONS") == 200


def test_a_prefix_of_a_proxy_opens_nothing(ask):
    assert ask("/engine/health", root_path="/engine") == 200
    assert ask("/engine/sleep", root_path="/engine") == 401


def test_a_websocket_without_the_key_is_closed(ask):
    assert ask("/v1/realtime", type="websocket") == "websocket.close"
    assert ask("/v1/realtime", type="websocket", key=KEY) == 200


def test_the_start_of_the_application_needs_no_key(ask):
    assert ask("", type="lifespan") == 200


def test_without_a_key_the_engine_does_not_start(monkeypatch):
    monkeypatch.setenv(guard.KEY, "")
    with pytest.raises(ValueError, match="VLLM_API_KEY is empty"):
        guard.Guard(None)
