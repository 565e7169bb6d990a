"""The load check on the host: the first requests, the tool in a unit of its own, the watch, the result, the end.

The tool runs as the engine's user, from the engine's environment, in a transient unit: bounded in time whatever becomes
of the controller, and the first to die where memory ends. Nothing of it stays.
"""

from __future__ import annotations

import concurrent.futures
import json
import random
import re
import shlex
import shutil
import time
import urllib.request
from pathlib import Path

from .. import probes, systemd_unit, unprivileged
from . import tool, watch

ROOT = Path("/var/lib/llm-load")
PREFIX = "llm-load-"
FIRST_TIMEOUT_S = 180
WAVE_S = 20
NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
STARTS_S = 300  # the tool's own start, on a slow machine
REQUESTS = 200_000
# The engine's own settings, those for its network among them, are the tool's too.
NOT_TAKEN = {systemd_unit.RELEASE_VARIABLE, "HOME", "OMP_NUM_THREADS"}


class Refused(Exception):
    """Why there is no load check: one sentence with the cure."""


def unit_of(name: str) -> str:
    return f"{PREFIX}{name}.service"


def engine(unit: str) -> dict:
    """Return what the tool needs of an engine's unit: program, user, environment, tokenizer. Raises Refused."""
    names = "LoadState,ActiveState,ExecStart,User,Environment"
    out = systemd_unit.run("systemctl", "show", unit, "--property", names, check=False).stdout
    shown = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    if shown.get("LoadState") != "loaded" or shown.get("ActiveState") != "active":
        raise Refused(f"{unit} does not run on this host; run site.yml first, or name another one by load_targets.")
    program = re.search(r"path=(\S+)", shown.get("ExecStart", ""))
    config = re.search(r"--config[ =](\S+)", shown.get("ExecStart", ""))
    if not program or not config or not program[1].endswith("/vllm"):
        raise Refused(f"{unit} is no vLLM that reads a --config; the load check needs vLLM's own tool.")
    text = Path(config[1]).read_text()
    model = re.search(r"^[\"']?model[\"']?: *[\"']?(/[^\s\"']+)", text, re.MULTILINE)
    if not model:
        raise Refused(f"{config[1]} names no directory of a model, from which the tool takes its tokenizer.")
    environment = dict(each.partition("=")[::2] for each in shlex.split(shown.get("Environment", "")))
    return {
        "program": program[1],
        "user": shown.get("User") or "root",
        "environment": {name: value for name, value in environment.items() if name not in NOT_TAKEN},
        "tokenizer": model[1],
        "trust_remote_code": bool(re.search(r"^[\"']?trust-remote-code[\"']?: *true", text, re.MULTILINE)),
    }


def rate(job: dict, plan: dict) -> float:
    """Return requests a second, from as many first ones as there are callers, at once. Raises Refused.

    The very first ones may be slower than all others: where they took little time, second ones are counted.
    """
    for _ in range(2):
        begin = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(plan["callers"]) as pool:
            answers = list(pool.map(lambda number: first(job, plan, number), range(plan["callers"])))
        problem = next((answer for answer in answers if answer), None)
        if problem:
            raise Refused(f"{job['url']}: {job['model']}: a first request met {problem}")
        seconds = time.monotonic() - begin
        if seconds > WAVE_S:
            break
    return plan["callers"] / seconds


def allowance(job: dict) -> int | None:
    """Return how many requests a minute the key may send, where the server tells."""
    request = urllib.request.Request(f"{job['url']}/v1/models", headers={"Authorization": f"Bearer {job['key']}"})
    try:
        with probes.DIRECT.open(request, timeout=10) as answer:
            told = answer.headers.get("x-ratelimit-limit-requests", "")
    except OSError:
        return None  # the first requests say why
    return int(told) if told.isdigit() else None


def first(job: dict, plan: dict, number: int) -> str | None:
    """Ask for one answer; return why there is none. The prompt is token ids, so its length is exact."""
    draw = random.Random(f"{job['seed']} {number}")
    body = {
        "model": job["model"], "prompt": [draw.randrange(10, 250) for _ in range(plan["input_tokens"])],
        "max_tokens": plan["output_tokens"], "min_tokens": plan["output_tokens"], "temperature": 0,
    }  # fmt: skip
    try:
        status, text = probes.ask(f"{job['url']}/v1/completions", job["key"], body, FIRST_TIMEOUT_S)
    except OSError as error:
        return str(error)
    return None if status == 200 else f"{status}: {' '.join(text.split())[:300]}"


def running() -> list[str]:
    """Return the units of a load check that run now."""
    out = systemd_unit.run(
        "systemctl", "list-units", f"{PREFIX}*", "--state", "active,activating", "--plain", "--no-legend", check=False
    ).stdout
    return [line.split()[0] for line in out.splitlines() if line.strip()]


def begin(units: list[str]) -> None:
    """Raise Refused where a load check runs here already, or an engine cannot be loaded."""
    if others := running():
        raise Refused(
            f"a load check runs here already ({', '.join(others)}); wait for its end, or: systemctl stop {others[0]}"
        )
    for unit in units:
        engine(unit)


def start(jobs: list[dict], plan: dict, seconds: float, turn: int) -> dict:
    """Begin the load of each job at once; return its requests and its limit in seconds, by target."""
    if turn == 0:
        shutil.rmtree(ROOT, ignore_errors=True)  # of a run whose controller was gone
    begun = {}
    for job in jobs:
        if not NAME.fullmatch(job["name"]):
            raise Refused(f"load_targets: the name {job['name']!r} needs letters, digits, _ and - alone.")
        has = engine(job["unit"])
        counted = job.get("rate") or rate(job, plan)
        allowed = None if job.get("rate") else allowance(job)
        if allowed and counted * 60 > allowed:
            raise Refused(
                f"{job['url']} allows this key {allowed} requests a minute, and {plan['callers']} callers would send "
                f"{counted * 60:.0f}; give load_api_key the key of a caller with more (ai_server_callers)."
            )
        requests = max(plan["callers"], min(REQUESTS, round(counted * seconds)))
        limit = round(STARTS_S + 2 * seconds)
        launch({**job, **has}, plan, requests, limit, turn)
        begun[job["name"]] = {"requests": requests, "limit": limit, "rate": counted}
    return begun


def launch(job: dict, plan: dict, requests: int, limit: int, turn: int) -> None:
    """Start the tool in a transient unit; its key is in a file of root alone."""
    home = ROOT / job["name"]
    ROOT.mkdir(mode=0o711, parents=True, exist_ok=True)
    home.mkdir(mode=0o700, exist_ok=True)
    unprivileged.own(home, job["user"])
    secrets = ROOT / f"{job['name']}.env"
    secrets.touch(mode=0o600)
    secrets.chmod(0o600)
    secrets.write_text(f"{tool.KEY_VARIABLE}={_quoted(job['key'])}\n")
    variables = {
        **job["environment"], "HOME": str(home), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1",
        "HF_MODULES_CACHE": str(home / "modules"), "VLLM_NO_USAGE_STATS": "1", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    properties = {
        "User": job["user"], "EnvironmentFile": str(secrets), "WorkingDirectory": str(home),
        "RuntimeMaxSec": str(limit), "OOMScoreAdjust": "1000", "NoNewPrivileges": "yes", "ProtectSystem": "strict",
        "ProtectHome": "yes", "PrivateTmp": "yes", "ReadWritePaths": str(home), "LimitNOFILE": "65536",
        "StandardOutput": f"file:{home}/log", "StandardError": "inherit",
    }  # fmt: skip
    words = ["systemd-run", "--quiet", "--collect", "--unit", unit_of(job["name"])]
    words += [word for name, value in properties.items() for word in ("--property", f"{name}={value}")]
    words += [word for name, value in variables.items() for word in ("--setenv", f"{name}={value}")]
    systemd_unit.run("systemctl", "reset-failed", unit_of(job["name"]), check=False)
    systemd_unit.run(*words, "--", *tool.argv(job["program"], job, plan, requests, f"{home}/result-{turn}.json"))


def _quoted(text: str) -> str:
    """Return a value as systemd reads it in an EnvironmentFile."""
    return '"' + re.sub(r'(["\\$`])', r"\\\1", text) + '"'


def look(names: list[str], engines: list[dict], gpu: bool, seconds: float) -> dict:
    """Sample for some seconds, or until the tool has ended everywhere; return the samples and who has not ended."""
    samples, until = [], time.monotonic() + seconds
    while True:
        samples.append(watch.sample(engines, gpu))
        left = set(running()) & {unit_of(name) for name in names}
        if not left or time.monotonic() >= until:
            return {"samples": samples, "left": sorted(left)}
        time.sleep(watch.EVERY_S)


def collect(jobs: list[dict], plan: dict) -> dict[str, dict]:
    """Return the summary of each job of all its turns, by target; ``{"problem": …}`` where there is no result."""
    found = {}
    for job in jobs:
        home = ROOT / job["name"]
        files = sorted(home.glob("result-*.json"))
        if not files:
            found[job["name"]] = {"problem": _why(home / "log", job["key"])}
            continue
        found[job["name"]] = tool.summary([json.loads(file.read_text()) for file in files], plan["output_tokens"])
    return found


def _why(log: Path, key: str) -> str:
    try:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    said = lines[-1] if lines else "it said nothing"
    said = said.replace(key, "***") if key else said
    return f"vllm bench serve has left no result; its last line: {said[:300]}"


def ended(began: dict) -> list[dict]:
    """Return what must not happen and did since ``began``."""
    after = watch.state(list(began["units"]))
    return watch.events(began["units"], after, watch.logs(list(began["units"]), began["time"]))


def stop() -> None:
    """End what runs and take away what was written."""
    for unit in running():
        systemd_unit.run("systemctl", "stop", unit, check=False)
    shutil.rmtree(ROOT, ignore_errors=True)
