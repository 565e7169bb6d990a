"""Reads GPUs and their processes from `nvidia-smi -q -x`, and says in one sentence why that is impossible.

Sizes in MiB. Plain Python; the command is run by `query`, which a caller may replace.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

from ..errors import UserError

TIMEOUT_S = 20


class GpuError(UserError):
    """No GPU figures: `kind` is a word for programs, the text one sentence with the cure."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


# What nvidia-smi prints when it cannot show GPUs -> (kind, sentence)
_FAILURES = (
    (
        r"Driver/library version mismatch",
        "library_mismatch",
        "The loaded NVIDIA driver and its library differ in version (an upgrade without a reboot): reboot this host.",
    ),
    (
        r"couldn't communicate with the NVIDIA driver",
        "no_driver",
        "The NVIDIA driver is not running: install it for this kernel, or reboot if the kernel was just upgraded.",
    ),
    (
        r"couldn't find libnvidia-ml|Driver Not Loaded",
        "no_driver",
        "nvidia-smi is installed but the NVIDIA driver is not: install the driver.",
    ),
    (r"No devices were found", "no_gpu", "The NVIDIA driver runs but finds no GPU: attach one to this machine."),
    (
        r"GPU is lost|fallen off the bus|Unable to determine the device handle",
        "gpu_lost",
        "A GPU fell off the bus: restart this machine, and have the GPU replaced if it happens again.",
    ),
    (
        r"Insufficient Permissions",
        "permissions",
        "This user may not ask the NVIDIA driver: run as root, or grant access to /dev/nvidia*.",
    ),
    (
        r"Failed to initialize NVML",
        "nvml",
        "The NVIDIA library cannot be used (often a container that lost its devices): restart what took them away.",
    ),
)


def program(binary: str = "nvidia-smi") -> str | None:
    """Return the path of nvidia-smi, None if it is not installed."""
    return shutil.which(binary, path=os.environ.get("PATH", "") + ":/usr/bin:/usr/local/bin:/usr/sbin")


def query(timeout: float = TIMEOUT_S, binary: str = "nvidia-smi") -> str:
    """Return the XML of nvidia-smi. Raises GpuError if it is missing, fails, or takes over `timeout` seconds."""
    path = program(binary)
    if path is None:
        raise GpuError("no_nvidia_smi", "nvidia-smi is not installed: this host has no NVIDIA driver.")
    try:
        done = subprocess.run(
            [path, "-q", "-x"],
            capture_output=True, text=True, errors="replace", timeout=timeout, check=False,
            stdin=subprocess.DEVNULL, env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise GpuError(
            "hang", f"nvidia-smi gave no answer within {timeout:g} s: the driver hangs, restart this machine."
        ) from None
    except OSError as error:
        raise GpuError("no_nvidia_smi", f"nvidia-smi cannot be run ({error.strerror}): reinstall it.") from None
    said = done.stdout + "\n" + done.stderr
    # A lost GPU leaves a line above the others' figures, whatever the exit code is.
    if done.returncode != 0 or "<nvidia_smi_log>" not in said or "Unable to determine the device handle" in said:
        raise failure(said, done.returncode)
    return done.stdout


def failure(text: str, returncode: int) -> GpuError:
    """Return the error that matches nvidia-smi's output."""
    for pattern, kind, sentence in _FAILURES:
        if re.search(pattern, text, re.IGNORECASE):
            return GpuError(kind, sentence)
    first = next((line.strip() for line in text.splitlines() if line.strip()), "no output")
    return GpuError("failed", f"nvidia-smi failed with exit code {returncode}: {first}")


def _text(node, path: str) -> str:
    found = node.find(path)
    return (found.text or "").strip() if found is not None else ""


def _mib(text: str) -> int | None:
    """Return the MiB of `23034 MiB`; None for N/A, [N/A], ERR! and the like."""
    match = re.match(r"(\d+) MiB", text)
    return int(match.group(1)) if match else None


def _document(text: str) -> str:
    # The output names its document type by a file that does not exist; the parser does not load it.
    return text[text.index("<nvidia_smi_log") :]


def parse(text: str) -> dict:
    """Return the GPUs in nvidia-smi's XML: `driver_version`, `cuda_version` and `gpus`.

    A GPU has index, uuid, name, total_mib, used_mib, free_mib, reserved_mib (None for N/A), mig, lost and processes
    (pid, name, used_mib).
    """
    try:
        root = ElementTree.fromstring(_document(text))
    except (ElementTree.ParseError, ValueError):
        raise GpuError("unreadable", "nvidia-smi printed something that is not its XML: check its version.") from None
    gpus = []
    for number, node in enumerate(root.findall("gpu")):
        memory = {key: _mib(_text(node, f"fb_memory_usage/{key}")) for key in ("total", "used", "free", "reserved")}
        whole = " ".join(node.itertext())
        processes = []
        for item in node.findall("processes/process_info"):
            if _text(item, "pid").isdigit():
                processes.append(
                    {
                        "pid": int(_text(item, "pid")),
                        "name": _text(item, "process_name"),
                        "used_mib": _mib(_text(item, "used_memory")),
                    }
                )
        minor = _text(node, "minor_number")
        gpus.append(
            {
                "index": number,
                "minor": int(minor) if minor.isdigit() else None,
                "uuid": _text(node, "uuid"),
                "name": _text(node, "product_name"),
                "total_mib": memory["total"],
                "used_mib": memory["used"],
                "free_mib": memory["free"],
                "reserved_mib": memory["reserved"],
                "mig": _text(node, "mig_mode/current_mig") == "Enabled",
                "lost": "GPU is lost" in whole,
                "processes": processes,
            }
        )
    return {
        "driver_version": _text(root, "driver_version"),
        "cuda_version": _text(root, "cuda_version"),
        "gpus": gpus,
    }


def adjustable(text: str) -> list[dict]:
    """Return what can be set on each GPU, from nvidia-smi's XML.

    Each has index, uuid, name, persistence ("Enabled" or "Disabled"), power_limit and power_range in W, and clock_range
    in MHz. A value that the GPU does not report is None.
    """
    found = []
    for gpu, node in zip(parse(text)["gpus"], ElementTree.fromstring(_document(text)).findall("gpu"), strict=True):
        # Drivers before 530 call them power_readings and power_limit.
        power = next((at for at in ("gpu_power_readings", "power_readings") if node.find(at) is not None), "")
        limits = [_number(_text(node, f"{power}/{each}_power_limit")) for each in ("min", "max")]
        limit = _text(node, f"{power}/current_power_limit") or _text(node, f"{power}/power_limit")
        clocks = [_number(each.text or "") for each in node.iter("supported_graphics_clock")]
        clocks = [each for each in clocks if each is not None]
        found.append(
            {
                **{key: gpu[key] for key in ("index", "uuid", "name")},
                "persistence": _text(node, "persistence_mode"),
                "power_limit": _number(limit),
                "power_range": None if None in limits else tuple(limits),
                "clock_range": (min(clocks), max(clocks)) if clocks else None,
            }
        )
    return found


def _number(text: str) -> float | None:
    """Return the number of `72.00 W` or `2040 MHz`; None for N/A and the like."""
    match = re.match(r"([\d.]+) (W|MHz)", text)
    return float(match[1]) if match else None


def unit_of(pid: int, proc: str = "/proc") -> str:
    """Return the systemd service of a process, by its control group; "" if it has none or has exited."""
    try:
        paths = (Path(proc) / str(pid) / "cgroup").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    units = re.findall(r"/([^/\n]+\.service)", paths)
    return units[-1] if units else ""


def read(timeout: float = TIMEOUT_S, proc: str = "/proc", run=None) -> dict:
    """Return the GPUs with the unit of each process. Raises GpuError if the driver has none or does not answer."""
    found = parse((run or query)(timeout))
    if not found["gpus"]:
        raise GpuError("no_gpu", "The NVIDIA driver runs but finds no GPU: attach one to this machine.")
    for gpu in found["gpus"]:
        for process in gpu["processes"]:
            process["unit"] = unit_of(process["pid"], proc)
    return found


def usable(gpu: dict) -> dict:
    """Return the GPU if its figures can be planned with. Raises GpuError for a lost one, MIG, or N/A fields."""
    label = f"GPU {gpu['index']} ({gpu['name'] or 'unknown'})"
    if gpu["lost"]:
        raise GpuError("gpu_lost", f"{label} fell off the bus: restart this machine.")
    if gpu["mig"]:
        raise GpuError("mig", f"{label} is split by MIG: give one instance's figures by hand, or turn MIG off.")
    absent = [key for key in ("total_mib", "used_mib", "free_mib") if gpu[key] is None]
    if absent:
        raise GpuError(
            "not_available",
            f"{label} does not tell its memory ({', '.join(absent)} is N/A): it shares the host's memory or the driver "
            "does not support it; give the figures by hand.",
        )
    return gpu


def notes(gpus: list[dict]) -> list[str]:
    """Return remarks needed to understand the figures: MIG, N/A fields. Raises GpuError for a lost GPU."""
    found = []
    for gpu in gpus:
        try:
            usable(gpu)
        except GpuError as error:
            if error.kind == "gpu_lost":
                raise
            found.append(str(error))
    return found


def choose(gpus: list[dict], index: int | None = None) -> dict:
    """Return the GPU of an index, or the only one. Raises GpuError if that is ambiguous."""
    if index is not None:
        for gpu in gpus:
            if gpu["index"] == index:
                return gpu
        raise GpuError("no_gpu", f"There is no GPU {index}: this host has {len(gpus)}, counted from 0.")
    if len(gpus) > 1:
        raise GpuError("several", f"This host has {len(gpus)} GPUs: say which one by its index.")
    return gpus[0]


def memory_of_units(gpu: dict, units: list[str]) -> int:
    """Return the MiB that processes of these systemd units hold on the GPU."""
    wanted = {unit if unit.endswith(".service") else f"{unit}.service" for unit in units if unit}
    return sum(p["used_mib"] or 0 for p in gpu["processes"] if p.get("unit") in wanted)


def unmet(gpus: list[dict], wanted: dict) -> list[str]:
    """Return the requirements that are not met: sentences with the wanted and the actual value.

    `wanted` may have count, name (a part of it), minimum_total_mib, minimum_free_mib, maximum_used_mib.
    """
    problems = []
    if wanted.get("count") is not None and len(gpus) != wanted["count"]:
        problems.append(f"count of GPUs is {len(gpus)}, wanted {wanted['count']}")
    for gpu in gpus:
        label = f"GPU {gpu['index']}"
        if wanted.get("name") and wanted["name"].lower() not in gpu["name"].lower():
            problems.append(f"{label} is a {gpu['name']}, wanted {wanted['name']}")
        for key, field, sign in (
            ("minimum_total_mib", "total_mib", 1),
            ("minimum_free_mib", "free_mib", 1),
            ("maximum_used_mib", "used_mib", -1),
        ):
            limit = wanted.get(key)
            if limit is None:
                continue
            have = usable(gpu)[field]
            if (have - limit) * sign < 0:
                word = "at least" if sign > 0 else "at most"
                problems.append(f"{label} has {have} MiB {field[:-4]}, wanted {word} {limit} MiB")
    return problems


def shortfall(gpus: list[dict], wanted: dict) -> str:
    """Return the unmet requirements and who holds the memory, as one sentence; "" if all are met."""
    problems, who = unmet(gpus, wanted), holders(gpus)
    return "; ".join(problems) + (f" (held by {who})" if problems and who else "")


def holders(gpus: list[dict]) -> str:
    """Return who holds GPU memory, as in `python3 (pid 4711, vllm.service, 18000 MiB)`; "" if no process is known."""
    parts = []
    for gpu in gpus:
        for process in gpu["processes"]:
            name = Path(process["name"].split(" ")[0]).name or "process"
            size = "N/A" if process["used_mib"] is None else f"{process['used_mib']} MiB"
            unit = f", {process['unit']}" if process.get("unit") else ""
            parts.append(f"{name} (pid {process['pid']}{unit}, {size})")
    return ", ".join(parts)
