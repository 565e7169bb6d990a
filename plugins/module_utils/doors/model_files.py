"""The module model_files; its options and results are documented with it."""

from __future__ import annotations

from pathlib import Path

from ..engines.model_files import Hub
from ..errors import UserError
from ..gpu.memory.checks import check_adapter, check_model, own_model_type
from ..quiet_module import QuietModule


def main() -> None:
    source = {"source": {"type": "str", "required": True}, "revision": {"type": "str"}}
    module = QuietModule(
        argument_spec={
            "model": {"type": "str", "required": True},
            "revision": {"type": "str"},
            "adapters": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {"name": {"type": "str", "required": True}, **source},
            },
            "max_lora_rank": {"type": "int", "default": 16},
            "trust_remote_code": {"type": "bool", "default": True},
            "cache": {"type": "path", "required": True},
            "python": {"type": "path", "required": True},
            "user": {"type": "str"},
            "endpoint": {"type": "str"},
            "token": {"type": "str", "no_log": True},
            "environment": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    variables = {key: str(value) for key, value in wanted["environment"].items()}
    if wanted["endpoint"]:
        variables["HF_ENDPOINT"] = wanted["endpoint"]
    if wanted["token"]:
        variables["HF_TOKEN"] = wanted["token"]
    variables.update({"HOME": wanted["cache"], "HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_TELEMETRY": "1"})
    hub = Hub(Path(wanted["cache"]), wanted["python"], wanted["user"], variables)
    try:
        result = bring(hub, wanted, module.check_mode)
    except (UserError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


def bring(hub: Hub, wanted: dict, check_mode: bool) -> dict:
    """Fetch missing files and check all of them; return the module's result."""
    requested = {"": (wanted["model"], wanted["revision"])}
    requested |= {adapter["name"]: (adapter["source"], adapter["revision"]) for adapter in wanted["adapters"]}
    places, fetched, missing = {}, [], set()
    for name, (source, revision) in requested.items():
        places[name], complete = hub.place(source, revision)
        if not complete:
            fetched.append(f"{source}@{revision}")
            if check_mode:
                missing.add(name)
            else:
                places[name] = hub.fetch(source, revision)
    local = [places[name] for name, (source, _) in requested.items() if source.startswith("/")]
    # In check mode on a new host neither the user nor the interpreter exists yet.
    problems = [] if check_mode and not Path(hub.python).exists() else hub.unreadable(local)
    if "" not in missing:
        problems += check_model(str(places[""]), wanted["trust_remote_code"])
        if not problems and not wanted["trust_remote_code"]:
            problems += hub.unknown(own_model_type(str(places[""])), places[""])
        for name in requested.keys() - missing - {""}:
            found = check_adapter(str(places[""]), str(places[name]), wanted["max_lora_rank"])
            problems += [f"adapter {name}: {problem}" for problem in found]
    if problems:
        raise UserError(" ".join(problems))
    return {
        "changed": bool(fetched),
        "model": str(places.pop("")),
        "adapters": {name: str(place) for name, place in places.items()},
        "fetched": fetched,
        "fingerprint": hub.fingerprint(local),
    }
