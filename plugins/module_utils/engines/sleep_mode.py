"""What vLLM's sleep mode adds to an engine: its switch, a guard for the routes that it opens. Plain Python."""

from __future__ import annotations

GUARD = "llm_server_guard.Guard"


def arguments(enabled: bool, own: dict) -> dict:
    """Return the engine's arguments for sleep mode; the middleware of its ``own`` arguments stays, inside the guard."""
    if not enabled:
        return {}
    given = own.get("middleware") or []
    return {"enable-sleep-mode": True, "middleware": [*(given if isinstance(given, list) else [given]), GUARD]}


def variables(enabled: bool, own: dict, guard: str, open_routes: list[str]) -> dict:
    """Return the engine's variables for sleep mode: ``guard`` is the guard's directory, before an ``own`` PYTHONPATH.

    ``open_routes`` are the routes that need no key.
    """
    if not enabled:
        return {}
    path = [guard, own.get("PYTHONPATH")]
    return {
        "VLLM_SERVER_DEV_MODE": "1",
        "LLM_SERVER_OPEN_ROUTES": " ".join(open_routes),
        "PYTHONPATH": ":".join(part for part in path if part),
    }
