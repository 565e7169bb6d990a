"""What sleep mode adds to an engine, and which of the user's settings stay."""

from __future__ import annotations

import pytest

from plugins.module_utils.engines import sleep_mode


@pytest.mark.parametrize(
    ("own", "middleware"),
    [
        ({}, [sleep_mode.GUARD]),
        ({"middleware": None}, [sleep_mode.GUARD]),
        ({"middleware": "own.One"}, ["own.One", sleep_mode.GUARD]),
        ({"middleware": ["own.One", "own.Two"]}, ["own.One", "own.Two", sleep_mode.GUARD]),
    ],
)
def test_the_users_middleware_stays_inside_the_guard(own, middleware):
    assert sleep_mode.arguments(True, own) == {"enable-sleep-mode": True, "middleware": middleware}


def test_the_guard_is_found_before_the_users_modules():
    assert sleep_mode.variables(True, {"PYTHONPATH": "/own"}, "/etc/vllm/guard", ["/health", "/metrics"]) == {
        "VLLM_SERVER_DEV_MODE": "1",
        "LLM_SERVER_OPEN_ROUTES": "/health /metrics",
        "PYTHONPATH": "/etc/vllm/guard:/own",
    }
    assert sleep_mode.variables(True, {"PYTHONPATH": None}, "/guard", [])["PYTHONPATH"] == "/guard"


def test_without_sleep_mode_nothing_is_added():
    assert sleep_mode.arguments(False, {"middleware": "own.One"}) == {}
    assert sleep_mode.variables(False, {"PYTHONPATH": "/own"}, "/guard", ["/health"]) == {}
