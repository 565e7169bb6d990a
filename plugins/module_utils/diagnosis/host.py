"""Reads a machine: everything that may indicate a failure, as lines and facts that can be sent elsewhere.

Changes nothing. Every check has a time limit and may fail: what could not be read is reported, and the rest continues.
Needs root for other users' files and processes.
"""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import queue
import re
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from ..engines import engine_states
from ..gpu import nvidia_smi
from ..release import probes, store, systemd_unit
from ..watch import metrics_page
from . import failures, lines
from .judge import starts

# Arguments of the modules that read a host.
ARGUMENTS = {
    "services": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "name": {"type": "str", "required": True},
            "kind": {"type": "str"},
            "unit": {"type": "str"},
            "metrics": {"type": "str"},
        },
    },
    "gpu": {"type": "bool", "default": False},
    "upstreams": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "service": {"type": "str", "required": True},
            "url": {"type": "str", "required": True},
            "bearer": {"type": "str", "no_log": True},
        },
    },
}
COMMAND_LIMIT = 8  # seconds a command may take
LOOK_LIMIT = 15  # seconds for all checks together
JOURNAL_LINES = 3000  # per service; a start of vLLM with eight workers that fail logs about 2000
RECENT = 600  # seconds: older messages of a running service no longer count
KERNEL_HOURS = 24
BEFORE = 120  # seconds before a start in which the kernel's log is relevant to it
STARTS = 3  # of a service that failed
ROOM_MIB = 100  # a disk with less free space counts as full
CHANGED_DAYS = 2
_ENGINE = ("vllm:num_requests_waiting", "vllm:num_requests_running", "vllm:kv_cache_usage_perc")

# EXIT_STATUS of systemd.exec(5), by the words in its journal.
STEPS = {
    200: "CHDIR", 201: "NICE", 202: "FDS", 203: "EXEC", 204: "MEMORY", 205: "LIMITS", 206: "OOM_ADJUST",
    207: "SIGNAL_MASK", 208: "STDIN", 209: "STDOUT", 210: "CHROOT", 211: "IOPRIO", 212: "TIMERSLACK", 213: "SECUREBITS",
    214: "SETSCHEDULER", 215: "CPUAFFINITY", 216: "GROUP", 217: "USER", 218: "CAPABILITIES", 219: "CGROUP",
    220: "SETSID", 221: "CONFIRM", 222: "STDERR", 224: "PAM", 225: "NETWORK", 226: "NAMESPACE",
    227: "NO_NEW_PRIVILEGES", 228: "SECCOMP", 229: "SELINUX_CONTEXT", 230: "PERSONALITY", 231: "APPARMOR_PROFILE",
    232: "ADDRESS_FAMILIES", 233: "RUNTIME_DIRECTORY", 235: "CHOWN", 236: "SMACK_PROCESS_LABEL", 237: "KEYRING",
    238: "STATE_DIRECTORY", 239: "CACHE_DIRECTORY", 240: "LOGS_DIRECTORY", 241: "CONFIGURATION_DIRECTORY",
    242: "NUMA_POLICY", 243: "CREDENTIALS", 245: "BPF",
}  # fmt: skip
_CODES = {"1": "exited", "2": "killed", "3": "dumped"}  # CLD_* of sigaction(2)
_KERNEL = re.compile(
    r"NVRM|nvidia|Xid|oom|Out of memory|Killed process|EXT4-fs|XFS|BTRFS|I/O error|segfault|trap |Remounting|Lockdown"
    r"|Loading of|type=1326",
    re.IGNORECASE,
)
OUT_OF_MEMORY = re.compile(r"oom-kill|invoked oom-killer|Out of memory: Killed|Memory cgroup out of memory")
# Text of nvidia-smi's failures, by the kind of the error that was recognized.
_GPU_WORDS = {
    "library_mismatch": "Failed to initialize NVML: Driver/library version mismatch",
    "no_driver": "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver",
    "no_gpu": "No devices were found",
    "gpu_lost": "GPU is lost",
}


def run(*argv: str, limit: float = COMMAND_LIMIT) -> str:
    """Return a command's output. Raises OSError if it is missing or does not end in time."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=limit, check=False,
            stdin=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise OSError(f"{argv[0]} gave no answer within {limit:g} s") from None
    return done.stdout


def state(says: str, *agrees: str, wrong: bool = False) -> dict:
    """Return a fact; `agrees` are the causes that it supports, `wrong` means that it is a fault by itself."""
    return {"says": says, "agrees": list(agrees), "wrong": wrong}


def _line(text: str, speaker: str, unit: str = "") -> dict:
    return {"text": text, "level": None, "speaker": speaker, "unit": unit, "raw": text, "start": ""}


# -- units ------------------------------------------------------------------------------------------------------------


def ending(unit: str, shown: dict) -> list[str]:
    """Return a unit's state in the words of systemd's journal, from its properties; empty if nothing is wrong."""
    lines = []
    load, result = shown.get("LoadState"), shown.get("Result", "success")
    if load == "not-found":
        return [f"Unit {unit} not found."]
    if load == "masked":
        return [f"Unit {unit} is masked."]
    if load in ("bad-setting", "error"):
        return [f"{unit} has a bad unit file setting."]
    code, status = _CODES.get(shown.get("ExecMainCode", "")), shown.get("ExecMainStatus", "0")
    ended = shown.get("ActiveState") == "failed" or shown.get("SubState") == "auto-restart"
    if code and ended and (status != "0" or code != "exited"):
        number = int(status)
        if code == "exited":
            word = STEPS.get(number, "FAILURE" if number == 1 else "n/a")
        else:
            word = signal.Signals(number).name[3:] if number in set(signal.Signals) else "n/a"
        lines.append(f"{unit}: Main process exited, code={code}, status={number}/{word}")
    if ended and result != "success":
        lines.append(f"{unit}: Failed with result '{result}'.")
    return lines


def obstacle(path: str, uid: int, gids: set[int]) -> str | None:
    """Return why a user cannot run the program at `path`, following links and its interpreter; None if possible."""
    seen: set[str] = set()
    while True:
        if path in seen or len(seen) > 40:
            return f"{path} is a link to itself"
        seen.add(path)
        for folder in reversed(Path(path).parents):
            if not folder.is_dir():
                return f"{folder} does not exist"
            if not _may(folder, uid, gids, 1):
                return f"{folder} is closed to its user"
        entry = Path(path)
        if entry.is_symlink():
            path = os.path.normpath(entry.parent / entry.readlink())
            continue
        if not entry.exists():
            return f"{path} does not exist"
        if not _may(entry, uid, gids, 1) or not entry.stat().st_mode & 0o111:
            return f"{path} is not executable for its user"
        with entry.open("rb") as handle:
            head = handle.readline(256)
        if head[:2] != b"#!":
            return None
        path = head[2:].split()[0].decode(errors="replace") if head[2:].split() else ""
        if not path.startswith("/"):
            return f"{entry} has no interpreter in its first line"


def _may(path: Path, uid: int, gids: set[int], bit: int) -> bool:
    if uid == 0:
        return True
    mode = path.stat()
    shift = 6 if mode.st_uid == uid else 3 if mode.st_gid in gids else 0
    return bool(stat.S_IMODE(mode.st_mode) >> shift & bit)


def _program(unit: str, shown: dict) -> list[dict]:
    match = re.search(r"path=(\S+)", shown.get("ExecStart", ""))
    user = shown.get("User") or "root"
    if not match:
        return []
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return [state(f"{unit}: there is no user {user}.", "systemd_user_217", wrong=True)]
    gids = {group.gr_gid for group in grp.getgrall() if user in group.gr_mem} | {entry.pw_gid}
    why = obstacle(match[1], entry.pw_uid, gids)
    return [state(f"{unit} starts {match[1]}: {why} ({user}).", "systemd_exec_203", wrong=True)] if why else []


def properties(out: str) -> dict[str, str]:
    """Return the output of `systemctl show` as a dict; repeated properties are joined by newlines."""
    shown: dict[str, str] = {}
    for line in out.splitlines():
        name, equals, value = line.partition("=")
        if equals:
            shown[name] = f"{shown[name]}\n{value}" if name in shown else value
    return shown


def missing_paths(unit: str, shown: dict) -> list[dict]:
    """Return the missing files and directories of a unit; systemd's own messages do not name them."""
    files = re.findall(r"^(/.*) \(ignore_errors=no\)$", shown.get("EnvironmentFiles", ""), re.MULTILINE)
    declared = [("EnvironmentFile", "systemd_env_file", path) for path in files]
    folder = shown.get("WorkingDirectory", "")
    declared += [("WorkingDirectory", "systemd_chdir_200", folder)] if folder.startswith("/") else []
    return [
        state(f"{unit} has {name}={path}, which does not exist.", cause, wrong=True)
        for name, cause, path in declared
        # systemd reads every file that matches a pattern.
        if not Path(path).exists() and not (name == "EnvironmentFile" and any(Path("/").glob(path[1:])))
    ]


def model_files(config: str) -> list[dict]:
    """Return what is missing or damaged in an engine's model and adapters, from the text of its --config file."""
    from ..gpu.memory import checks  # imported here, so that a host that cannot read models loses only this check

    model = re.search(r"^[\"']?model[\"']?: *[\"']?(/[^\s\"']+)", config, re.MULTILINE)
    if not model:
        return []
    rank = re.search(r"^[\"']?max-lora-rank[\"']?: *(\d+)", config, re.MULTILINE)
    broken = ("weights_corrupt", "weights_incomplete", "tokenizer_broken", "model_not_found")
    found = [state(problem, *broken, wrong=True) for problem in checks.check_model(model[1])]
    if found:
        return found
    unfit = ("lora_not_found", "lora_rank_too_large", "lora_target_modules", "lora_shape_mismatch")
    modules = re.search(r"^[\"']?lora-modules[\"']?:(.*(?:\n[-\s].*)*)", config, re.MULTILINE)
    for adapter in re.findall(r"[\"=](/[^\s\"'\\]+)", modules[1] if modules and rank else ""):
        problems = checks.check_adapter(model[1], adapter, int(rank[1]))
        found += [state(problem, *unfit, wrong=True) for problem in problems]
    return found


def _model(shown: dict) -> list[dict]:
    config = re.search(r"--config[ =](\S+)", shown.get("ExecStart", ""))
    return model_files(_text(config[1])) if config else []


def _journal(*arguments: str, count: int = JOURNAL_LINES) -> list[tuple[float, dict]]:
    """Return (time, line) of the journal's records, oldest first."""
    fields = "MESSAGE,PRIORITY,_SYSTEMD_INVOCATION_ID,INVOCATION_ID,_SYSTEMD_UNIT,UNIT,SYSLOG_IDENTIFIER"
    text = run(
        "journalctl", *arguments, "--lines", str(count), "--output", "json", f"--output-fields={fields}",
        "--quiet", "--no-pager",
    )  # fmt: skip
    found = []
    for raw in text.splitlines():
        try:
            entry = json.loads(raw)
        except ValueError:
            continue
        moment = int(entry.get("__REALTIME_TIMESTAMP") or 0) / 1e6
        found += [(moment, line) for line in lines.record(entry)]
    return found


def _service(name: str, given: dict) -> dict:
    """Return the evidence about one service: its state in words, lines since the relevant start, and facts."""
    unit = given.get("unit") or store.Service(name).main_unit()
    names = (
        "LoadState,ActiveState,SubState,Result,ExecMainCode,ExecMainStatus,NRestarts,DropInPaths,ExecStart,User,"
        "NeedDaemonReload,InvocationID,ActiveEnterTimestampMonotonic,EnvironmentFiles,WorkingDirectory"
    )
    out = run("systemctl", "show", unit, "--property", names)
    shown = properties(out)
    if not shown:
        raise OSError("systemctl does not answer")
    running = shown.get("ActiveState") == "active"
    since = time.monotonic() - int(shown.get("ActiveEnterTimestampMonotonic") or 0) / 1e6
    young = running and int(shown.get("NRestarts") or 0) > 0 and since < RECENT
    failing = not running or young
    ended = ending(unit, shown)
    if failing:
        entries = _journal("--unit", unit, "--since", f"-{KERNEL_HOURS}h")
        kept = starts([line for _, line in entries])
        while kept and not failures.failed(kept[-1]) and not ended and len(kept) > 1 and young:
            kept.pop()
        kept = [line for part in kept[-STARTS:] for line in part]
        moments = [moment for moment, line in entries if line in kept[:1]]
        begun = moments[0] if moments else time.time()
    else:
        kept = [line for _, line in _journal("--unit", unit, "--since", f"-{RECENT}s")]
        begun = time.time() - RECENT
    found = [line.__dict__ for line in kept] + [_line(text, "systemd", unit) for text in ended]
    states = []
    if not running and not ended:
        states.append(
            state(f"{unit} does not run ({shown.get('ActiveState')}): it was stopped or never started.", wrong=True)
        )
    if young:
        states.append(
            state(f"{unit} was started again {shown['NRestarts']} times, the last time {since:.0f} s ago.", wrong=True)
        )
    if shown.get("DropInPaths"):
        states.append(state(f"{unit} is changed by {shown['DropInPaths']}."))
    if shown.get("NeedDaemonReload") == "yes":
        states.append(state(f"{unit} was changed on disk and not read again (systemctl daemon-reload)."))
    if failing and shown.get("LoadState") == "loaded":
        states += _program(unit, shown)
        states += missing_paths(unit, shown)
        states += _model(shown)
    unit_state = {
        "unit": unit,
        "running": running,
        "failing": failing,
        "begun": begun,
        "lines": found,
        "states": states,
    }
    return {**unit_state, "kind": given.get("kind") or name}


def _answers(name: str, unit: str, running: bool) -> list[dict]:
    """Run a service's own probes, as its role does at the start, but no completion."""
    service = store.Service(name)
    current = service.state()["current"]
    questions = service.proof_of(current)["probes"] if current else []
    questions = [each for each in questions if set(each) & {"http", "metric", "models"}]
    if running:
        why = probes.first_failure(questions, 4)
        return [state(f"{unit} runs and does not answer as it should: {why}", wrong=True)] if why else []
    found = []
    for port in sorted(
        {urlsplit(url).port for url in re.findall(r"https?://[^\"'\s]+", json.dumps(questions))} - {None}
    ):
        holder = systemd_unit.port_holder(port, unit)
        if holder:
            found.append(state(f"port {port} is held by {holder}.", "port_in_use"))
    return found


# -- the host ---------------------------------------------------------------------------------------------------------


def _kernel() -> list[tuple[float, dict]]:
    entries = _journal("--dmesg", "--since", f"-{KERNEL_HOURS}h")
    return [(moment, line) for moment, line in entries if _KERNEL.search(line.text)]


def _disks() -> list[dict]:
    found = []
    for place in ("/", "/var", "/var/log", "/tmp", "/app", "/opt", "/home", "/dev/shm"):
        path = Path(place)
        if not path.is_dir() or (place not in ("/", "/dev/shm") and not path.is_mount()):
            continue
        use, room = shutil.disk_usage(place), os.statvfs(place)
        agrees = ("shared_memory_too_small",) if place == "/dev/shm" else ("disk_full", "weights_corrupt")
        if use.total and use.free >> 20 < min(ROOM_MIB, use.total >> 24 or 1):
            found.append(
                state(f"{place} is full: {use.free >> 20} of {use.total >> 20} MiB are free.", *agrees, wrong=True)
            )
        if room.f_files and room.f_ffree * 1000 < room.f_files:
            found.append(state(f"{place} has {room.f_ffree} inodes left.", *agrees, wrong=True))
        if place == "/dev/shm" and use.total >> 20 < 64:
            found.append(state(f"/dev/shm has {use.total >> 20} MiB.", *agrees))
    for row in Path("/proc/mounts").read_text().splitlines():
        device, place, kind, options = row.split()[:4]
        if device.startswith("/dev/") and kind in ("ext4", "xfs", "btrfs") and "ro" in options.split(","):
            found.append(state(f"{place} is mounted read-only.", "read_only_filesystem", "filesystem_damaged"))
    return found


def _backups() -> list[dict]:
    """Return failures of the last backup and the last check; see the role `backup`."""
    noted = Path("/var/lib/llm-backup/state.json")
    known = json.loads(noted.read_text()) if noted.exists() else {}
    words = {"run": "the last backup failed", "check": "the check of the backup repository failed"}
    found = [(word, known.get(name) or {}) for name, word in words.items()]
    return [state(f"{word}: {each['why']}.", wrong=True) for word, each in found if each and not each["ok"]]


def _memory() -> list[dict]:
    rows = (line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines() if ":" in line)
    sizes = {name: int(value.split()[0]) >> 10 for name, value in rows}
    total, free, swap = sizes["MemTotal"], sizes.get("MemAvailable", 0), sizes.get("SwapFree", 0)
    text = f"{free} of {total} MiB of memory are available, {swap} MiB of swap free."
    low = free * 20 < total
    found = [state(text, "host_ram_oom_killed", "memory_allocation_failed")] if low else []
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > 4 * cores:
        found.append(
            state(f"{load:.0f} processes want the {cores} processors.", "engine_rpc_timeout", "upstream_timeout")
        )
    return found


def _gpu() -> dict:
    """Return lines and facts of the GPUs."""
    lines, found = [], []
    loaded = re.search(r"Kernel Module\s+(?:for \S+\s+)?([\d.]+)", _text("/proc/driver/nvidia/version"))
    libraries = {
        match[1]
        for folder in ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64")
        for path in Path(folder).glob("libnvidia-ml.so.*.*")
        if (match := re.search(r"so\.([\d.]+)$", path.name))
    }
    if loaded and libraries and loaded[1] not in libraries:
        text = f"the kernel runs NVIDIA's module {loaded[1]}, the library on disk is {', '.join(sorted(libraries))}."
        found.append(state(text, "driver_library_mismatch", wrong=True))
    try:
        for gpu in nvidia_smi.read(COMMAND_LIMIT)["gpus"]:
            who = nvidia_smi.holders([gpu])
            if gpu["used_mib"] and gpu["total_mib"]:
                text = (
                    f"GPU {gpu['index']}: {gpu['used_mib']} of {gpu['total_mib']} MiB are in use{who and f' by {who}'}."
                )
                found.append(
                    state(text, "gpu_memory_not_free", "cuda_oom", "cuda_oom_warmup", "kv_cache_too_small_for_max_len")
                )
    except nvidia_smi.GpuError as error:
        if error.kind in _GPU_WORDS:
            lines.append(_line(_GPU_WORDS[error.kind], "nvidia-smi"))
        elif error.kind == "no_nvidia_smi":
            lines.append(_line("couldn't find libnvidia-ml.so", "nvidia-smi"))
        else:
            found.append(state(str(error), wrong=True))
    return {"lines": lines, "states": found}


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _changes() -> list[dict]:
    """Return recent changes: packages, and a reboot that is due."""
    found = []
    horizon = time.strftime("%Y-%m-%d", time.localtime(time.time() - CHANGED_DAYS * 86400))
    for block in _text("/var/log/apt/history.log").split("\n\n"):
        begun = re.search(r"Start-Date: (\S+)\s+(\S+)", block)
        named = sorted(
            set(re.findall(r"((?:lib)?nvidia-\S+|linux-image-\S+|cuda-\S+|datacenter-gpu-manager\S*):\w+ \(", block))
        )
        if begun and begun[1] >= horizon and named:
            more = f" and {len(named) - 3} more" if len(named) > 3 else ""
            text = f"apt changed {', '.join(named[:3])}{more} on {begun[1]} {begun[2]}."
            found.append(state(text, "driver_library_mismatch", "nvidia_driver_not_loaded", "no_cuda_device"))
    if Path("/var/run/reboot-required").exists():
        packages = " ".join(_text("/var/run/reboot-required.pkgs").split()[:3])
        found.append(state(f"a reboot is due ({packages or 'no package named'}).", "driver_library_mismatch"))
    return found[-4:]


def _clock() -> list[dict]:
    output = run("timedatectl", "show", "--property", "NTPSynchronized")
    if "NTPSynchronized=no" in output:
        return [
            state("the clock is not synchronised.", "clock_wrong", "tls_certificate", "promtail_entry_rejected_time")
        ]
    return []


def reach(url: str, bearer: str = "", limit: float = 4) -> str | None:
    """Return why `url` cannot be reached: its name, port, certificate or status; None if it answers."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.getaddrinfo(parts.hostname, port, proto=socket.IPPROTO_TCP)
    except OSError as error:
        return f"the name {parts.hostname} is not known ({error.strerror or error})"
    try:
        with socket.create_connection((parts.hostname, port), limit) as way:
            if parts.scheme == "https":
                ssl.create_default_context().wrap_socket(way, server_hostname=parts.hostname).close()
    except ssl.SSLError as error:
        return f"its certificate is not taken ({getattr(error, 'verify_message', '') or error.reason})"
    except OSError as error:
        return f"{parts.hostname}:{port} does not answer ({error.strerror or error})"
    if not bearer:
        return None
    try:
        status, _ = probes.ask(url, bearer, timeout=limit)
    except OSError as error:
        return str(error)
    return f"it answers {status} to its key" if status in (401, 403) else None


def _upstream(given: dict) -> list[dict]:
    why = reach(given["url"], given.get("bearer") or "")
    shown = re.sub(r"//[^@/]*@", "//", given["url"])
    agrees = ("dns_failure", "upstream_unreachable", "tls_certificate", "upstream_unauthorised", "hub_unreachable")
    agrees += ("promtail_loki_unreachable", "upstream_timeout")
    return [state(f"{given['service']} asks {shown}: {why}.", *agrees, wrong=True)] if why else []


def _engine_load(url: str) -> list[dict]:
    """Return what vLLM's metrics show about slow answers."""
    _, text = probes.ask(url, timeout=3)
    waiting, running, usage = (metrics_page.total(text, name) for name in _ENGINE)
    if waiting < 1:
        return []
    full = "; the KV cache is full" if usage > 0.95 else ""
    summary = f"{waiting:.0f} requests wait at the engine, {running:.0f} run{full}: answers are slow."
    return [state(summary, "upstream_timeout", wrong=True)]


# -- all together -----------------------------------------------------------------------------------------------------


def look(services: list[dict], gpu: bool = False, upstreams: list[dict] | None = None) -> dict:
    """Return all evidence: by service, of the host, and what could not be read.

    A service has `name`, optionally `kind` (what runs, if its name does not say it), `unit` and `metrics` (the address
    of an engine's metrics). Services that this project installed here are always included. `upstreams` are
    {service, url, bearer}.
    """
    begun = time.monotonic()
    known = {path.name for path in store.STORE.glob("*") if (path / "state.json").exists()}
    # An engine that does not run because another one of its group serves is in its intended state.
    resting = set(engine_states.away())
    known, services = known - resting, [each for each in services if each["name"] not in resting]
    named = {each["name"]: each for each in [*({"name": name} for name in sorted(known)), *services]}
    done, problems = side_by_side(_jobs(named, services, gpu, upstreams or []), LOOK_LIMIT)
    units = {name: done[f"the unit of {name}"] for name in named if f"the unit of {name}" in done}
    jobs = {
        f"answers of {name}": (lambda name=name: _answers(name, units[name]["unit"], units[name]["running"]))
        for name in units
        if name in known
    }
    answers, more = side_by_side(jobs, 5)
    for name, unit in units.items():
        unit["states"] += answers.get(f"answers of {name}", [])
        load = done.get(f"the metrics of {name}", [])
        unit["states"] += load if unit["running"] else []
    _add_kernel_lines(units, done.get("the kernel's log", []))
    return {
        "services": units,
        "host": _host_evidence(done),
        "problems": problems + more,
        "seconds": round(time.monotonic() - begun, 1),
    }


def _jobs(named: dict[str, dict], services: list[dict], gpu: bool, upstreams: list[dict]) -> dict[str, Callable]:
    """Return the checks by name: of the units of all `named` services, the host, and the engines of `services`."""
    jobs = {f"the unit of {name}": (lambda name=name: _service(name, named[name])) for name in named}
    jobs |= {"the kernel's log": _kernel, "disks": _disks, "memory": _memory, "changes": _changes, "the clock": _clock}
    jobs["backups"] = _backups
    if gpu:
        jobs["the GPU"] = _gpu
    for number, each in enumerate(upstreams):
        jobs[f"upstream {number} of {each['service']}"] = lambda each=each: _upstream(each)
    for each in services:
        if each.get("metrics"):
            jobs[f"the metrics of {each['name']}"] = lambda each=each: _engine_load(each["metrics"])
    return jobs


def _host_evidence(done: dict) -> dict:
    """Return the lines and facts of the host from the finished checks, which are those of `_jobs`."""
    kernel = done.get("the kernel's log", [])
    gpus = done.get("the GPU", {"lines": [], "states": []})
    states = [each for key in ("disks", "memory", "changes", "the clock", "backups") for each in done.get(key, [])]
    states += gpus["states"]
    states += [each for key, value in done.items() if key.startswith("upstream ") for each in value]
    recent = [
        line.__dict__
        for moment, line in kernel
        if moment > time.time() - RECENT and not OUT_OF_MEMORY.search(line.text)
    ]
    killed = [line.text for _, line in kernel if re.search(r"Killed process", line.text)]
    if killed:
        states.append(
            state(f"in the last {KERNEL_HOURS} hours the kernel wanted memory: {killed[-1]}", "host_ram_oom_killed")
        )
    return {"lines": recent + gpus["lines"], "states": states}


def _add_kernel_lines(units: dict, kernel: list) -> None:
    """Add the kernel's messages around its starts to each failed service; those about memory only to the victim."""
    for unit in units.values():
        if not unit["failing"]:
            continue
        killed = any(re.search(r"status=9/KILL|oom-kill", line["text"]) for line in unit["lines"])
        around = [
            line.__dict__
            for moment, line in kernel
            if moment > unit["begun"] - BEFORE
            and (not OUT_OF_MEMORY.search(line.text) or killed or unit["unit"] in line.text)
        ]
        unit["lines"] = around + unit["lines"]


def side_by_side(jobs: dict, limit: float, workers: int = 8) -> tuple[dict, list[str]]:
    """Run the checks in parallel; return their results, and a sentence for each that failed or did not end in time.

    The threads are daemons: one that waits for a missing disk blocks nothing, not even the end of the program.
    """
    waiting, ended = queue.SimpleQueue(), queue.SimpleQueue()
    for item in jobs.items():
        waiting.put(item)

    def work() -> None:
        while True:
            try:
                name, job = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                ended.put((name, job(), None))
            except Exception as error:
                # The error itself may be the cause that is looked for; the other checks must still continue.
                ended.put((name, None, error))

    for _ in range(min(workers, len(jobs))):
        threading.Thread(target=work, daemon=True).start()
    found, failed, end = {}, {}, time.monotonic() + limit
    while len(found) + len(failed) < len(jobs):
        try:
            name, value, error = ended.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            break
        if error is None:
            found[name] = value
        else:
            failed[name] = str(error)
    with contextlib.suppress(queue.Empty):
        while True:
            waiting.get_nowait()  # nobody would read the result of a check that has not begun
    late = f"no end within {limit:g} s"
    return found, [f"{name}: {failed.get(name, late)}" for name in jobs if name not in found]
