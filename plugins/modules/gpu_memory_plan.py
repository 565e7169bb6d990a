#!/usr/bin/python
"""Thin module over module_utils.gpu.memory: plans a GPU's memory, and compares a start with its plan."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_memory_plan
short_description: Plan GPU memory before vLLM or llama.cpp is started, and compare the start with the plan
description:
  - Predicts whether a start will succeed, from the model's own files (only headers are read, no weights), the engine's
    version and options, and the free memory of the GPU.
  - The verdict is C(fits), C(tight) or C(refused), with the message that the engine would give and the change that
    would make it fit. Every figure says whether it was read, computed or estimated; estimates have a range.
  - Several services are planned together, in their start order. At most one of the services with the same
    O(services[].group) runs at a time, so only the largest of them counts.
  - Memory that the units of the planned services hold now counts as free, because their start replaces them. Memory
    that other processes hold does not.
  - If O(gpu) is given and the task runs on the controller, the action plugin makes the plan without starting the
    module.
  - With O(compare), the engine's log lines since the unit's last start are compared with the plan. The difference is
    kept in O(history_path) for the next plan on this host. The module changes only that file and O(metrics_path).
options:
  services:
    description: The services in their start order.
    type: list
    elements: dict
    required: true
  service:
    description: Name of the service that O(compare) and O(metrics_path) are about; all services by default.
    type: str
  leaving:
    description: Units whose memory counts as free too, because they are removed before the first start.
    type: list
    elements: str
    default: []
  gpu:
    description: Figures of the GPU; by default nvidia-smi measures them.
    type: dict
    suboptions:
      name: {description: "Its name, such as C(L4).", type: str}
      total_mib: {description: Total memory as reported by nvidia-smi., type: int}
      free_mib: {description: Free memory; by default all of it., type: int}
      wsl: {description: "Whether it is used through WSL2, where CUDA counts all that nvidia-smi shows.", type: bool}
  gpu_index:
    description: Index of the GPU on a host with several, counted from 0.
    type: int
  hub_url:
    description: Hub or mirror from which headers are read if the model is not on the host.
    type: str
  hub_token:
    description: Token for a gated or private model.
    type: str
  refuse:
    description: Fail if the verdict is C(refused).
    type: bool
    default: false
  compare:
    description: Compare the journal of the services' units with the plan.
    type: bool
    default: false
  history_path:
    description: File on the host that keeps the measurements of earlier starts. Not used by default.
    type: path
  metrics_path:
    description:
      - File on the host that shows the plan to node_exporter's textfile collector, such as
        C(/var/lib/llm-server/metrics/gpu_memory.prom). Written with O(compare), by the plan that includes this start.
    type: path
  show:
    description: What the action plugin prints of the plan, as plain output and not as a result.
    type: str
    choices: [nothing, table, json]
    default: nothing
attributes:
  check_mode: {description: Plans and compares; writes no file., support: full}
extends_documentation_fragment:
  - llm.server.gpu_memory
author: The llm-server maintainers (@llm-server)
"""

EXAMPLES = r"""
- name: Refuse a start that cannot succeed
  llm.server.gpu_memory_plan:
    services:
      - name: vllm
        version: 0.23.0
        model: /app/vllm-server/models/base
        gpu_memory_utilization: 0.85
        max_model_len: 8192
        enforce_eager: true
        unit: vllm.service
    history_path: /var/lib/gpu_memory/history.json
    refuse: true

- name: Plan the model for an L4
  llm.server.gpu_memory_plan:
    gpu: {name: L4, total_mib: 23034}
    hub_url: https://hub.example.org
    services:
      - {name: chat, version: 0.23.0, model: mistralai/Mistral-7B-Instruct-v0.3, max_model_len: 8192}
"""

RETURN = r"""
verdict:
  description: The worst verdict of all services (fits, tight, refused).
  returned: always
  type: str
  sample: fits
plan:
  description: The plan in plain types, sizes in MiB. C(start_order) has the names in the order in which most of them
    run; C(counted) has the names of those whose memory is held at the same time. C(services) has, for each service,
    its verdict, group, whether it runs, its message, cures, assumptions, concurrency, what must be free when it is
    started (C(free_at_start_mib) on the first C(gpus)) and C(figures), each with value, low, high, origin (read,
    computed, estimated), unit and note.
  returned: always
  type: dict
rendered:
  description: The plan as text for people, with a table and a bar of the GPU's memory.
  returned: always
  type: str
comparison:
  description: Planned and measured figures of each service (bytes or tokens), and whether they were within the range.
  returned: with O(compare)
  type: dict
"""

import json
import os
import platform
import shutil
import subprocess
from pathlib import Path

from ..module_utils import atomic_file
from ..module_utils.gpu import nvidia_smi
from ..module_utils.gpu.memory import journal, planner, question, render
from ..module_utils.gpu.memory.errors import PlanError
from ..module_utils.quiet_module import QuietModule

JOURNAL_LINES = 20000


def measured_gpu(services: list[dict], index: int | None, leaving: list[str]) -> dict:
    """Return the GPU as nvidia-smi reports it; memory that the services' own units hold counts as free.

    Raises PlanError if the host has too few GPUs.
    """
    gpus = nvidia_smi.read()["gpus"]
    ranks = max([1, *(int(planner.with_arguments(s).get("tensor_parallel_size") or 1) for s in services)])
    if ranks > len(gpus):
        raise PlanError(f"tensor_parallel_size {ranks} needs {ranks} GPUs, this host has {len(gpus)}: lower it.")
    units = [*(s.get("unit") or "" for s in services), *leaving]
    if ranks > 1 and index is None:
        # All ranks get the same share, so the GPU with the least free memory decides.
        chosen = min((nvidia_smi.usable(g) for g in gpus[:ranks]), key=lambda g: g["free_mib"])
    else:
        chosen = nvidia_smi.usable(nvidia_smi.choose(gpus, index))
    own = nvidia_smi.memory_of_units(chosen, units)
    return {
        "name": chosen["name"],
        "total_mib": chosen["total_mib"],
        "free_mib": min(chosen["free_mib"] + own, chosen["total_mib"]),
        "cuda_total_mib": None if planner.card(chosen["name"]) else chosen["free_mib"] + chosen["used_mib"],
        "wsl": "microsoft" in platform.release().lower(),
    }


def unit_log(unit: str) -> str:
    """Return the journal lines of the unit's last start. Raises PlanError if journalctl is not installed."""
    path = shutil.which("journalctl", path=os.environ.get("PATH", "") + ":/usr/bin:/bin")
    systemctl = shutil.which("systemctl", path=os.environ.get("PATH", "") + ":/usr/bin:/bin")
    if not path or not systemctl:
        raise PlanError("journalctl is not on this host: there is no journal to compare with.")
    environment = {**os.environ, "LC_ALL": "C"}
    shown = subprocess.run(
        [systemctl, "show", "--value", "--property", "InvocationID", unit],
        capture_output=True, text=True, errors="replace", check=False, env=environment,
    )  # fmt: skip
    invocation = shown.stdout.strip()
    which = [f"_SYSTEMD_INVOCATION_ID={invocation}"] if invocation else ["--unit", unit]
    done = subprocess.run(
        [path, "--no-pager", "--output", "cat", "--lines", str(JOURNAL_LINES), *which],
        capture_output=True, text=True, errors="replace", check=False, env=environment,
    )  # fmt: skip
    return done.stdout


def compare(module: QuietModule, result: dict) -> tuple[dict, bool]:
    """Return (comparison by service, whether the history changed)."""
    path = module.params["history_path"]
    history = journal.read_history(path or "")
    found, changed = {}, False
    for given, service in zip(module.params["services"], result["services"], strict=True):
        if not given.get("unit") or module.params["service"] not in (None, service["name"]):
            continue
        log = unit_log(given["unit"])
        rows = journal.compare(service, log)
        found[service["name"]] = rows
        if path and "uncorrected_kv_cache" in service:
            changed = journal.remember(history, service, rows, journal.compiled_before(log)) or changed
    if changed and not module.check_mode:
        atomic_file.write(Path(path), json.dumps(history, indent=2, sort_keys=True) + "\n", 0o644)
    return found, changed


def tell(module: QuietModule, result: dict) -> bool:
    """Write the metrics of a plan; return whether they changed."""
    path, text = module.params["metrics_path"], render.as_metrics(result, module.params["service"])
    known = Path(path).read_text(encoding="utf-8") if Path(path).is_file() else None
    if known != text and not module.check_mode:
        atomic_file.write(Path(path), text, 0o644)
    return known != text


def main() -> None:
    module = QuietModule(argument_spec=question.OPTIONS, supports_check_mode=True)
    p = module.params
    try:
        gpu = p["gpu"] or measured_gpu(question.services_of(p), p["gpu_index"], p["leaving"])
        result, answer = question.ask(p, gpu)
        changed = False
        if p["compare"]:
            answer["comparison"], changed = compare(module, result)
            tables = [f"{name}\n{render.comparison_text(rows)}" for name, rows in answer["comparison"].items() if rows]
            answer["rendered"] = "\n\n".join(tables) or "The journal has no memory figures of this start."
            if p["metrics_path"]:
                # The next plan will use what this start measured. The metrics get its figures, so they stay the same.
                planned = question.ask(p, gpu)[0] if changed and not module.check_mode else result
                changed = tell(module, planned) or changed
    except nvidia_smi.GpuError as error:
        module.fail_json(msg=f"{error} Or give the GPU's figures by hand.", kind=error.kind)
    except PlanError as error:
        module.fail_json(msg=str(error), kind="input")
    if p["refuse"] and question.refusal(result):
        module.fail_json(msg=question.refusal(result), kind="refused", **answer)
    module.exit_json(changed=changed, **answer)


if __name__ == "__main__":
    main()
