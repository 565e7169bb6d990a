"""The host's part of a load check: first requests, start of the tool, samples, results, clean-up.

The tool runs as the engine's user, from the engine's environment, in a transient unit. The unit has a time limit, even
if the controller is gone, and is the first to be killed when memory runs out. Nothing stays on the host.
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

from .. import unprivileged
from ..errors import UserError
from ..release import probes, systemd_unit
from . import tool, watch

ROOT = Path("/var/lib/llm-load")
PREFIX = "llm-load-"
FIRST_TIMEOUT_S = 180
WAVE_S = 20
NAME = re.compile(r"[A-Za-z0-9_-]{1,40}")
STARTS_S = 300  # the tool's own start, on a slow machine
REQUESTS = 200_000
# The tool inherits the engine's other variables, such as network settings.
LEFT_OUT = {systemd_unit.RELEASE_VARIABLE, "HOME", "OMP_NUM_THREADS"}


def unit_of(name: str) -> str:
    return f"{PREFIX}{name}.service"


def engine(unit: str) -> dict:
    """Return what the tool needs of an engine's unit: program, user, environment, tokenizer. Raises UserError."""
    names = "LoadState,ActiveState,ExecStart,User,Environment"
    out = systemd_unit.run("systemctl", "show", unit, "--property", names, check=False).stdout
    shown = dict(line.split("=", 1) for line in out.splitlines() if "=" in line)
    if shown.get("LoadState") != "loaded" or shown.get("ActiveState") != "active":
        raise UserError(f"{unit} is not running on this host; run site.yml first, or set load_targets.")
    program = re.search(r"path=(\S+)", shown.get("ExecStart", ""))
    config = re.search(r"--config[ =](\S+)", shown.get("ExecStart", ""))
    if not program or not config or not program[1].endswith("/vllm"):
        raise UserError(
            f"{unit} does not run vLLM with --config, which the load check needs; set load_targets to a unit that does."
        )
    text = Path(config[1]).read_text()
    model = re.search(r"^[\"']?model[\"']?: *[\"']?(/[^\s\"']+)", text, re.MULTILINE)
    if not model:
        raise UserError(
            f"{config[1]} names no model directory for the tool's tokenizer; set model to a directory on the host."
        )
    environment = dict(each.partition("=")[::2] for each in shlex.split(shown.get("Environment", "")))
    return {
        "program": program[1],
        "user": shown.get("User") or "root",
        "environment": {name: value for name, value in environment.items() if name not in LEFT_OUT},
        "tokenizer": model[1],
        "trust_remote_code": bool(re.search(r"^[\"']?trust-remote-code[\"']?: *true", text, re.MULTILINE)),
    }


def rate(job: dict, plan: dict) -> float:
    """Return requests per second, measured with one concurrent request per caller. Raises UserError.

    The very first requests may be slow. If they took little time, a second wave is measured instead.
    """
    for _ in range(2):
        begin = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(plan["callers"]) as pool:
            answers = list(pool.map(lambda number: first(job, plan, number), range(plan["callers"])))
        problem = next((answer for answer in answers if answer), None)
        if problem:
            raise UserError(f"{job['url']}: {job['model']}: the first request failed: {problem}")
        seconds = time.monotonic() - begin
        if seconds > WAVE_S:
            break
    return plan["callers"] / seconds


def allowance(job: dict) -> int | None:
    """Return the key's limit of requests per minute, or None if the server does not report one."""
    request = urllib.request.Request(f"{job['url']}/v1/models", headers={"Authorization": f"Bearer {job['key']}"})
    try:
        with probes.DIRECT.open(request, timeout=10) as answer:
            limit = answer.headers.get("x-ratelimit-limit-requests", "")
    except OSError:
        return None  # the first requests report the error
    return int(limit) if limit.isdigit() else None


def first(job: dict, plan: dict, number: int) -> str | None:
    """Send one request; return the error, or None. The prompt is a list of token IDs, so its length is exact."""
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
    """Return the load check units that are running."""
    out = systemd_unit.run(
        "systemctl", "list-units", f"{PREFIX}*", "--state", "active,activating", "--plain", "--no-legend", check=False
    ).stdout
    return [line.split()[0] for line in out.splitlines() if line.strip()]


def begin(units: list[str]) -> None:
    """Raise UserError if a load check is already running, or an engine cannot be tested."""
    if others := running():
        raise UserError(
            f"a load check is already running ({', '.join(others)}); wait until it ends, or run "
            f"systemctl stop {others[0]}"
        )
    for unit in units:
        engine(unit)


def start(jobs: list[dict], plan: dict, seconds: float, turn: int) -> dict:
    """Start the load of all jobs; return number of requests and time limit by target."""
    if turn == 0:
        shutil.rmtree(ROOT, ignore_errors=True)  # left by a run whose controller was gone
    begun = {}
    for job in jobs:
        if not NAME.fullmatch(job["name"]):
            raise UserError(f"load_targets: the name is {job['name']!r}; use only letters, digits, _ and -.")
        has = engine(job["unit"])
        counted = job.get("rate") or rate(job, plan)
        allowed = None if job.get("rate") else allowance(job)
        if allowed and counted * 60 > allowed:
            raise UserError(
                f"{job['url']} allows this key {allowed} requests a minute, but {plan['callers']} callers would send "
                f"{counted * 60:.0f}; set load_api_key to the key of a caller with a higher limit (ai_server_callers)."
            )
        requests = max(plan["callers"], min(REQUESTS, round(counted * seconds)))
        limit = round(STARTS_S + 2 * seconds)
        launch({**job, **has}, plan, requests, limit, turn)
        begun[job["name"]] = {"requests": requests, "limit": limit, "rate": counted}
    return begun


def launch(job: dict, plan: dict, requests: int, limit: int, turn: int) -> None:
    """Start the tool in a transient unit; the key is in a file that only root can read."""
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
    """Return a value quoted for an EnvironmentFile of systemd."""
    return '"' + re.sub(r'(["\\$`])', r"\\\1", text) + '"'


def look(names: list[str], engines: list[dict], gpu: bool, seconds: float) -> dict:
    """Sample for some seconds, or until the tool has finished; return the samples and the units still running."""
    samples, until = [], time.monotonic() + seconds
    while True:
        samples.append(watch.sample(engines, gpu))
        left = set(running()) & {unit_of(name) for name in names}
        if not left or time.monotonic() >= until:
            return {"samples": samples, "left": sorted(left)}
        time.sleep(watch.EVERY_S)


def collect(jobs: list[dict], plan: dict) -> dict[str, dict]:
    """Return the summary of each job over its turns, by target, or ``{"problem": …}`` if there is no result."""
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
    message = lines[-1] if lines else "(no output)"
    message = message.replace(key, "***") if key else message
    return f"vllm bench serve wrote no result; its last line: {message[:300]}"


def ended(began: dict) -> list[dict]:
    """Return the restarts and out-of-memory events since ``began``."""
    after = watch.state(list(began["units"]))
    return watch.events(began["units"], after, watch.logs(list(began["units"]), began["time"]))


def stop() -> None:
    """Stop running load checks and remove their files."""
    for unit in running():
        systemd_unit.run("systemctl", "stop", unit, check=False)
    shutil.rmtree(ROOT, ignore_errors=True)
