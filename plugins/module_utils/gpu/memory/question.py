"""One question to the planner, shared by the module, its action plugin and the command line: options and answer."""

from __future__ import annotations

from . import options, planner, render

_TEXT, _NUMBER, _FLAG = {"type": "str"}, {"type": "int"}, {"type": "bool"}
SERVICE = options.argument_spec(options.SERVICE)
OPTIONS = {
    "services": {"type": "list", "elements": "dict", "required": True, "options": SERVICE},
    "gpu": {"type": "dict", "options": {"name": _TEXT, "total_mib": _NUMBER, "free_mib": _NUMBER, "wsl": _FLAG}},
    "service": _TEXT,
    "leaving": {"type": "list", "elements": "str", "default": []},
    "gpu_index": _NUMBER,
    "hub_url": _TEXT,
    "hub_token": {"type": "str", "no_log": True},
    "refuse": {"type": "bool", "default": False},
    "compare": {"type": "bool", "default": False},
    "history_path": {"type": "path"},
    "metrics_path": {"type": "path"},
    "show": {"type": "str", "choices": ["nothing", "table", "json"], "default": "nothing"},
}


def services_of(params: dict) -> list[dict]:
    """Return the services without the options that were not given."""
    return [{k: v for k, v in service.items() if v is not None} for service in params["services"]]


def ask(params: dict, gpu: dict) -> tuple[dict, dict]:
    """Return (the planner's result, the answer in plain types) for a GPU. Raises PlanError for unusable input."""
    result = planner.plan(
        services_of(params), gpu, params.get("hub_url") or "", params.get("hub_token") or "",
        params.get("history_path") or "",
    )  # fmt: skip
    answer = {"verdict": result["verdict"], "plan": render.as_json(result), "rendered": render.as_text(result)}
    return result, answer


def refusal(result: dict) -> str:
    """Return why the first refused service would not start, and what would help; "" if none is refused."""
    first = next((s for s in result["services"] if not s["runs"]), None)
    if first is None:
        return ""
    cure = f" Cure: {'; or '.join(first['cures'])}." if first["cures"] else ""
    return f"{first['name']} would not start on {result['gpu'].name}: {first['message'].rstrip('.')}.{cure}"
