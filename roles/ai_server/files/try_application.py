"""Would the application serve? Import app.main of a source with a .env, as the service will, and ask the engine.

An engine that answers must take the key of the .env and serve its models; one that is away proves nothing. Changes
nothing. Arguments: the source, the .env, and whether to ask the engine (ask or alone: in check mode it is still what it
was before). Status 0, or not 0 and what is wrong as the last line.
"""

import importlib
import json
import os
import re
import sys
import tempfile
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

source, settings, engine_too = sys.argv[1:]
os.chdir(Path(settings).parent)  # where the application looks for its .env
sys.path.insert(0, source)
with tempfile.TemporaryDirectory() as folder:
    if engine_too == "alone":
        # In check mode the file of callers is not there yet, or still what it was before.
        callers = Path(folder) / "callers.json"
        callers.write_text('{"callers": []}')
        os.environ["CALLERS_FILE"] = str(callers)
    try:
        importlib.import_module("app.main")
    except ImportError as error:
        sys.exit(
            f"app.main cannot be imported: {error}; declare what is missing in the application's dependencies and lock "
            "them"
        )

if engine_too == "alone":
    sys.exit()


def value(text):
    """Return what a line of the .env says behind its name, plain or within single quotes; plugins/filter/dotenv.py."""
    text = re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith("'") else text
    return re.sub(r"\$\{:-([^}]*)\}", r"\1", text)


lines = (line.split("=", 1) for line in Path(settings).read_text(encoding="utf-8").rstrip("\n").split("\n"))
written = {name: value(text) for name, text in lines}
engine = written.get("VLLM_BASE_URL", "")
request = urllib.request.Request(
    f"{engine}/models", headers={"Authorization": f"Bearer {written.get('VLLM_API_KEY', '')}"}
)
try:
    # As the application does: what a proxy is for is the outside world.
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=5) as answer:
        served = [model["id"] for model in json.load(answer)["data"]]
except urllib.error.HTTPError as error:
    if error.code in (401, 403):
        sys.exit(f"the engine at {engine} refuses the key; give ai_server_vllm_api_key the engine's own vllm_api_key")
except (OSError, HTTPException, ValueError, KeyError, TypeError):
    pass
else:
    named = ("VLLM_MODEL", "VLLM_LORA_ADAPTER_EASYCONTRACT", "VLLM_LORA_ADAPTER_CHECKLIST")
    missing = [name for name in named if written.get(name) and written[name] not in served]
    if missing:
        sys.exit(
            f"the engine at {engine} serves {', '.join(served)} and not what {', '.join(missing)} names; "
            "correct ai_server_vllm_model or the adapter's variable"
        )
