"""Requests of the tests to the engine on the machine."""

from __future__ import annotations

import json

KEY = "canary-vllm-key-31415926"
BASE, ADAPTERS = "lab/tiny-llama", ["easycontract", "checklist"]
URL = "http://127.0.0.1:8001"
LOAD_TARGET = {
    "name": "vllm",
    "unit": "vllm.service",
    "metrics": f"{URL}/metrics",
    "url": URL,
    "key": KEY,
    "models": [BASE],
}


def ask(host, path: str, body: dict | None = None, key: str | None = KEY) -> tuple[int, dict]:
    """Return status and JSON of one request, sent on the machine, which has no curl."""
    program = (
        "import json,sys,urllib.request,urllib.error\n"
        "url,key,body=json.load(sys.stdin)\n"
        "headers={'Content-Type':'application/json'}\n"
        "if key: headers['Authorization']='Bearer '+key\n"
        "request=urllib.request.Request(url,json.dumps(body).encode() if body else None,headers)\n"
        "try:\n"
        "    answer=urllib.request.urlopen(request,timeout=60); status=answer.status\n"
        "except urllib.error.HTTPError as error: answer=error; status=error.code\n"
        "print(json.dumps([status,answer.read().decode()]))\n"
    )
    arguments = json.dumps([URL + path, key, body])
    status, text = json.loads(host.check_output("echo %s | python3 -c %s", arguments, program))
    return status, json.loads(text) if text.startswith("{") else {}


def say(host, model: str) -> str:
    body = {"model": model, "prompt": "A rented home", "max_tokens": 12, "temperature": 0}
    status, answer = ask(host, "/v1/completions", body)
    assert status == 200, answer
    return answer["choices"][0]["text"]


def pid(host) -> str:
    return host.check_output("systemctl show vllm --property MainPID --value")
