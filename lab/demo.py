"""`make demo`: a complete server on a machine of the laboratory; `make demo-down` removes it.

The machine is converged by the same site.yml as production, with inventories/local, which reads the machine's facts
from .lab/demo.json.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from dashboards import to_vmui
from lab import host, machine, services

NAME = "demo"
FACTS = host.STATE / "demo.json"
PORT = int(os.environ.get("DEMO_PORT", "8000"))
# The monitoring server's pages, on the same ports as on the machine.
PAGES = {"metrics": 8428, "logs": 9428, "alerts": 8880}
# `make demo ENGINES=two`: vLLM and llama.cpp, whose package only exists in Debian's next release.
ENGINES = os.environ.get("ENGINES") or "one"
PLATFORMS = {"one": "debian12", "two": "forky"}
SERVED = ["lab/tiny-llama", "easycontract", "checklist"]
MODELS = {"one": SERVED, "two": [*SERVED, "code"]}
PROMPT = "Write one short sentence about a rented home."


def up(arguments: list[str]) -> int:
    """Boot, converge and show; return the exit code of the run."""
    begin = time.monotonic()
    if ENGINES not in PLATFORMS:
        raise host.Problem(f"ENGINES is {ENGINES}; it must be {' or '.join(PLATFORMS)}.")
    if FACTS.exists() and json.loads(FACTS.read_text()).get("engines", "one") != ENGINES:
        raise host.Problem("The demo runs with other engines on another platform; remove it with make demo-down.")
    offered = services.up()
    booted = machine.up(
        NAME,
        PLATFORMS[ENGINES],
        publish=[f"127.0.0.1:{PORT}:8000", *(f"127.0.0.1:{page}:{page}" for page in PAGES.values())],
    )
    FACTS.write_text(json.dumps(facts(booted, offered), indent=1))
    FACTS.chmod(0o600)
    host.say("Converging with site.yml (usually 2 min on a fresh machine, half a minute on a finished one) …")
    playbook = Path(sys.executable).with_name("ansible-playbook")
    done = subprocess.run([str(playbook), "-i", "inventories/local", "site.yml", *arguments], cwd=host.ROOT)
    if done.returncode:
        host.say("The run failed: the lines above say why. `make demo` continues where it stopped.")
        return done.returncode
    show(offered, time.monotonic() - begin)
    return 0


def facts(booted: dict, offered: dict) -> dict:
    """Return what inventories/local reads: addresses of the machine and its services, checksums, generated secrets."""
    sums: dict = {}
    for program in offered["programs"]:
        sums.setdefault(program["name"], {}).setdefault(program["version"], {})["amd64"] = program["checksum"]
    earlier = json.loads(FACTS.read_text())["secrets"] if FACTS.exists() else {}
    names = (
        "vllm_api_key",
        "llama_cpp_api_key",
        "ai_server_api_key",
        "backend_internal_token",
        "ocr_api",
        "backup_password",
    )
    return {
        "machine": booted,
        "engines": ENGINES,
        "services": {"mirror": offered["mirror"], "slack": offered["slack"]},
        "checksums": sums,
        "versions": offered["versions"],
        "uv_cache": machine.SHARED_UV_CACHE,
        "vllm_wheel": offered["vllm_wheel"],
        "secrets": {name: earlier.get(name) or secrets.token_hex(24) for name in names},
    }


def show(offered: dict, seconds: float) -> None:
    """Print an answer of each model through ai-server, the addresses, and what to try next."""
    key = json.loads(FACTS.read_text())["secrets"]["ai_server_api_key"]
    base = f"http://127.0.0.1:{PORT}"
    print(
        f"\nServing after {seconds:.0f} s. Through ai-server, to {PROMPT!r} "
        "(a tiny random model: its answers are meaningless):"
    )
    for name in MODELS[ENGINES]:
        print(f"  {name:<16}{answer(base, key, name)!r}")
    metrics, logs, alerts = (f"http://127.0.0.1:{port}" for port in PAGES.values())
    print(f"""
Open
  {to_vmui.address(metrics)}
                         dashboards (docs/dashboards.md)
  {logs}/select/vmui?query=%7Bservice.name%3D%22vllm%22%7D
                         the engine's log
  {alerts}/vmalert/alerts
                         alerts that fire; {offered["slack"]} shows the messages, as Slack would
  {base}/metrics         ai-server: its metrics (docs/ai-server.md lists the endpoints)
  {base}/health          its state and the engine's

Make an alert fire, within three minutes, and end
  .venv/bin/python -m lab ssh {NAME} -- sudo systemctl stop vllm
  .venv/bin/python -m lab ssh {NAME} -- sudo systemctl start vllm

Try next
  curl -sN {base}/v1/chat/completions -H 'Authorization: Bearer {key}' \\
    -H 'Content-Type: application/json' \\
    -d '{{"stream": true, "max_tokens": 20, "messages": [{{"role": "user", "content": "Hello"}}]}}'
  .venv/bin/ansible-playbook -i inventories/local site.yml --check --diff -e vllm_max_model_len=256
  .venv/bin/ansible-playbook -i inventories/local playbooks/backup.yml
  .venv/bin/ansible-playbook -i inventories/local playbooks/restore.yml
  .venv/bin/python -m lab ssh {NAME} -- journalctl -u vllm -n 20

make demo again changes nothing; make demo-down takes it all away.""")


def answer(base: str, key: str, model_name: str) -> str:
    """Return a model's answer to the demo's prompt."""
    body = {"model": model_name, "max_tokens": 12, "temperature": 0, "messages": [{"role": "user", "content": PROMPT}]}
    request = urllib.request.Request(
        f"{base}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as reply:
        return json.load(reply)["choices"][0]["message"]["content"]


def down() -> None:
    """Remove the demo's machines and everything that the laboratory wrote into this clone."""
    for name in (NAME, services.NAME):
        machine.down(name)
    FACTS.unlink(missing_ok=True)
