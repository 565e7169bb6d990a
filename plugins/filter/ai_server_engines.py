"""Filters for the engines of ai-server: errors in them, the file that the application reads, their units."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter

NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
# As in ai_server/app/settings.py: an http(s) address without a query that ends in /v1.
URL = re.compile(r"https?://[^/?#\s]+(/[^?#\s]*)?/v1")
KEY = re.compile(r"[!-~]+")


def ai_server_engine_problems(
    engines: list[dict], keys: list[str], callers: list[dict], named: dict[str, str]
) -> list[str]:
    """Return a sentence for each error in ``engines`` (ai_server_engines); no sentence contains a key.

    ``keys`` and ``callers`` are those of ai_server_api_keys and ai_server_callers: no engine may have one of their
    keys. ``named`` are the models in other variables, by variable: an engine must serve each of them.
    """
    if not engines:
        return []
    taken = {_digest(key) for key in keys}
    for key in (key for caller in callers for key in caller.get("keys") or []):
        taken.add(str(key.get("sha256") or "") or _digest(key.get("key") or ""))
    problems = []
    for number, engine in enumerate(engines):
        name = str(engine.get("name") or "")
        where = f"ai_server_engines: {name or f'number {number + 1}'}"
        problems += [f"{where} {what}" for what in _wrong(engine, name, taken)]
    for name in _twice(str(engine.get("name") or "") for engine in engines):
        problems.append(f"ai_server_engines: {name} occurs twice; give each engine a name of its own.")
    models = [str(model) for engine in engines for model in engine.get("models") or []]
    for model in _twice(models):
        problems.append(
            f"ai_server_engines: the model {model} occurs twice; leave it at the engine that is to serve it."
        )
    served = ", ".join(dict.fromkeys(models))
    for variable, model in named.items():
        if model not in models:
            problems.append(
                f"{variable} is {model}, which no engine of ai_server_engines serves ({served}); choose one of these "
                "or add it to the models of one."
            )
    return problems


def _wrong(engine: dict, name: str, taken: set[str]) -> list[str]:
    """Return the errors in one engine, as the ends of sentences."""
    key, wrong = str(engine.get("api_key") or ""), []
    if not NAME.fullmatch(name):
        wrong.append("needs a name of small letters, digits and '-', with a letter first and at most 31 characters.")
    if not URL.fullmatch(str(engine.get("url") or "")):
        wrong.append("needs a url that is an http(s) address and ends in /v1, such as http://127.0.0.1:8002/v1.")
    if not KEY.fullmatch(key):
        wrong.append("needs an api_key of visible characters.")
    elif _digest(key) in taken:
        wrong.append("has a caller's key as its api_key; give the callers separate keys.")
    if not [model for model in engine.get("models") or [] if str(model).strip()]:
        wrong.append("has no models; name what it is asked for.")
    if engine.get("group") and not NAME.fullmatch(str(engine["group"])):
        wrong.append(f"has the group {engine['group']}; use small letters, digits and '-'.")
    return wrong


def _twice(values) -> list[str]:
    return [value for value, times in Counter(values).items() if value and times > 1]


def _digest(key: str) -> str:
    return hashlib.sha256(str(key).encode()).hexdigest()


def ai_server_engines_file(engines: list[dict]) -> str:
    """Return the text of ENGINES_FILE; a missing group is left out."""
    entries = [
        {name: engine[name] for name in ("name", "url", "api_key", "models", "group") if engine.get(name)}
        for engine in engines
    ]
    return json.dumps({"engines": entries}, indent=1) + "\n"


def ai_server_engine_units(engines: list[dict], directive: str) -> list[str]:
    """Return the units for ``after`` or ``wants`` of ai-server's unit; vllm's if no engines are named.

    ``wants`` does not include an engine of a group: it would be started together with ai-server, in addition to the one
    that runs in its place. Only the first engine is waited for: the others start in turn, which may take minutes.
    """
    if not engines:
        return ["vllm.service"]
    if directive == "after":
        return [f"{engines[0]['name']}.service"]
    return [f"{engine['name']}.service" for engine in engines if not engine.get("group")]


class FilterModule:
    def filters(self):
        return {
            "ai_server_engine_problems": ai_server_engine_problems,
            "ai_server_engine_units": ai_server_engine_units,
            "ai_server_engines_file": ai_server_engines_file,
        }
