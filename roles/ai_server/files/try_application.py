"""Would the application serve? Import app.main of a source with a .env, as the service will, and ask the engines.

An engine that answers must take its key and serve its models; one that is away proves nothing. The engines are those of
ENGINES_FILE, or the one of the .env. Changes nothing. Arguments: the source, the .env, and whether to ask the engines
(ask or alone: in check mode they are still what they were). Status 0, or not 0 and what is wrong as the last line.
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
    """Return a module of the application or of its environment; leave with the cure where it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        sys.exit(
            f"{name} cannot be imported: {error}; declare what is missing in the application's dependencies and lock "
            "them"
        )


# The application reads its .env by the same library.
written = imported("dotenv").dotenv_values(settings, encoding="utf-8")
os.chdir(Path(settings).parent)  # where the application looks for its .env
sys.path.insert(0, source)
with tempfile.TemporaryDirectory() as folder:
    if engine_too == "alone":
        # In check mode the files of callers and engines are not there yet, or still what they were before.
        callers = Path(folder) / "callers.json"
        callers.write_text('{"callers": []}')
        os.environ["CALLERS_FILE"] = str(callers)
        if written.get("ENGINES_FILE"):
            engines = Path(folder) / "engines.json"
            one = {"name": "one", "url": "http://127.0.0.1:9/v1", "api_key": "none", "models": ["none"]}
            engines.write_text(json.dumps({"engines": [one]}))
            os.environ["ENGINES_FILE"] = str(engines)
    imported("app.main")

if engine_too == "alone":
    sys.exit()


def listed_by(called, url, key, cure):
    """Return the models that an engine lists, None where it is away; leave with the cure where it refuses the key."""
    request = urllib.request.Request(f"{url}/models", headers={"Authorization": f"Bearer {key}"})
    try:
        # As the application does: what a proxy is for is the outside world.
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
            return [model["id"] for model in json.load(answer)["data"]]
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            sys.exit(f"{called} at {url} refuses the key; {cure}")
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
                f"{called} at {url} serves {', '.join(listed)} and not {', '.join(missing)}; correct its models in "
                "ai_server_engines"
            )


def ask_one():
    url, key = written.get("VLLM_BASE_URL", ""), written.get("VLLM_API_KEY", "")
    listed = listed_by("the engine", url, key, "give ai_server_vllm_api_key the engine's own vllm_api_key")
    named = ("VLLM_MODEL", "VLLM_LORA_ADAPTER_EASYCONTRACT", "VLLM_LORA_ADAPTER_CHECKLIST")
    missing = [name for name in named if listed is not None and written.get(name) and written[name] not in listed]
    if missing:
        sys.exit(
            f"the engine at {url} serves {', '.join(listed)} and not what {', '.join(missing)} names; "
            "correct ai_server_vllm_model or the adapter's variable"
        )


if written.get("ENGINES_FILE"):
    ask_table(json.loads(Path(written["ENGINES_FILE"]).read_text(encoding="utf-8"))["engines"])
else:
    ask_one()
