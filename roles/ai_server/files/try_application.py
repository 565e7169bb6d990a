"""Check whether the application would serve: import its app.main with a .env, as the service does, and ask the engines.

An engine that answers must accept its key and list its models; an unreachable engine is ignored. The engines are those
of ENGINES_FILE, or the one in the .env. Changes nothing. Arguments: the source, the .env, and `ask` or `alone`. With
`alone` no engine is asked, since in check mode the engines are not changed yet. The exit status is 0, or nonzero with
the error as the last line.
"""

import importlib
import json
import os
import sys
import tempfile
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

source, settings, engine_too = sys.argv[1:]


def imported(name):
    """Return a module of the application or its environment; exit with the cure if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        sys.exit(
            f"{name} cannot be imported: {error}; declare what is missing in the application's dependencies and lock "
            "them"
        )


# The application reads its .env with the same library, and without a byte order mark, too.
written = imported("dotenv").dotenv_values(settings, encoding="utf-8-sig")
os.chdir(Path(settings).parent)  # where the application looks for its .env
sys.path.insert(0, source)
with tempfile.TemporaryDirectory() as folder:
    if engine_too == "alone":
        # For an application whose files of callers and engines are not staged.
        callers = Path(folder) / "callers.json"
        callers.write_text('{"callers": []}')
        os.environ["CALLERS_FILE"] = str(callers)
        if written.get("ENGINES_FILE"):
            engines = Path(folder) / "engines.json"
            one = {"name": "one", "url": "http://127.0.0.1:9/v1", "api_key": "none", "models": ["none"]}
            engines.write_text(json.dumps({"engines": [one]}))
            os.environ["ENGINES_FILE"] = str(engines)
    for name in ("CALLERS_FILE", "ENGINES_FILE"):
        # New ones are staged next to the .env; at their places are the old ones, or none.
        staged = Path(settings).with_name(Path(written.get(name) or "none").name)
        if written.get(name) and staged.exists():
            os.environ[name] = written[name] = str(staged)
    imported("app.main")

if engine_too == "alone":
    sys.exit()


def listed_by(called, url, key, cure):
    """Return the models that an engine lists; None if it is unreachable. Exits with the cure if it rejects the key."""
    request = urllib.request.Request(f"{url}/models", headers={"Authorization": f"Bearer {key}"})
    try:
        # Without a proxy, like the application: proxies are for external hosts.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
            return [model["id"] for model in json.load(answer)["data"]]
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            sys.exit(f"{called} at {url} rejects the key; {cure}")
    except (OSError, HTTPException, ValueError, KeyError, TypeError):
        pass
    return None


def ask_table(engines):
    for engine in engines:
        called, url = f"the engine {engine['name']}", engine["url"]
        cure = "give its api_key in ai_server_engines the engine's own key"
        listed = listed_by(called, url, engine["api_key"], cure)
        missing = [model for model in engine["models"] if listed is not None and model not in listed]
        if missing:
            sys.exit(
                f"{called} at {url} serves {', '.join(listed)}, but not {', '.join(missing)}; correct its models in "
                "ai_server_engines"
            )


def ask_one():
    url, key = written.get("VLLM_BASE_URL", ""), written.get("VLLM_API_KEY", "")
    listed = listed_by("the engine", url, key, "give ai_server_vllm_api_key the engine's own vllm_api_key")
    named = ("VLLM_MODEL", "VLLM_LORA_ADAPTER_EASYCONTRACT", "VLLM_LORA_ADAPTER_CHECKLIST")
    missing = [name for name in named if listed is not None and written.get(name) and written[name] not in listed]
    if missing:
        sys.exit(
            f"the engine at {url} serves {', '.join(listed)}, but not what {', '.join(missing)} names; "
            "correct ai_server_vllm_model or the adapter's variable"
        )


if written.get("ENGINES_FILE"):
    ask_table(json.loads(Path(written["ENGINES_FILE"]).read_text(encoding="utf-8"))["engines"])
else:
    ask_one()
