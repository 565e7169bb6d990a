#!/usr/bin/python
"""Door to module_utils.gpu.memory: plans a GPU's memory, and compares a start with its plan."""

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_memory_plan
short_description: Plan GPU memory before vLLM or llama.cpp is started, and compare the start with the plan
description:
  - Says before a start whether it will succeed, from the model's own files (headers only, no weights are read), the
    engine's version and options, and what is free on the GPU.
  - The verdict is C(fits), C(tight) or C(refused), with the message the engine would give and the change that would
    make it fit. Every figure says whether it was read, computed or estimated; estimates have a range.
  - Several services are one plan, in their order of start. Of services with the same O(services[].group) at most one
    runs at a time, and the largest of them counts.
  - Memory that the units of the planned services hold now counts as free, because their start replaces them; what
    others hold does not.
  - With O(gpu) given and the task on the controller the plan is made by the action, without starting the module.
  - With O(compare) the engine's log lines since the unit's last start are read back, compared with the plan, and the
    difference is kept in O(history_path) for the next plan on this host. Only that file and O(metrics_path) are ever
    changed.
options:
  services:
    description: The services in their order of start.
    type: list
    elements: dict
    required: true
    suboptions:
      name: {description: Name in the plan., type: str, required: true}
      engine:
        description: V(reserved) stands for something else that will take O(services[].memory_mib).
        type: str
        choices: [vllm, llamacpp, reserved]
        default: vllm
      group:
        description: Services of one group are never in memory together. Each must start while all others run.
        type: str
      asleep_mib: {description: What it keeps while another of its group runs; 0 where it is stopped., type: int}
      version: {description: "Version of the engine, needed for vLLM.", type: str}
      model:
        description: A directory or GGUF file by its path, else a model's name in the cache or on the hub.
        type: str
      revision: {description: Commit or branch of a model by name., type: str}
      hf_home: {description: "Hugging Face cache to look for a model by name in, before the hub.", type: path}
      config:
        description: Content of C(config.json) by hand, for a question without the model at hand.
        type: dict
      model_size_mib: {description: Size of the weights in MiB where no file is at hand., type: int}
      unit: {description: systemd unit whose GPU memory counts as free and whose journal is compared., type: str}
      memory_mib: {description: What a V(reserved) service takes., type: int}
      dtype: {description: "Type of the values, as in C(--dtype).", type: str}
      quantization: {description: "Quantization while loading, as in C(--quantization).", type: str}
      kv_cache_dtype: {description: "Type of the KV cache; llama.cpp: f16, q8_0 or key/value as q8_0/q4_0.", type: str}
      gpu_memory_utilization: {description: Share of the GPU that vLLM takes., type: float}
      max_model_len: {description: Longest text in tokens., type: int}
      max_num_seqs: {description: Sequences at once., type: int}
      max_num_batched_tokens: {description: Tokens of one step., type: int}
      enforce_eager: {description: Whether CUDA graphs are left out., type: bool}
      tensor_parallel_size: {description: GPUs that share the model., type: int}
      adapters:
        description: LoRA adapters. Whether they fit the model is checked where their files are at hand.
        type: list
        elements: dict
        suboptions:
          name: {description: Name it is served under., type: str}
          source: {description: "Its directory, or its name in the cache or on the hub.", type: str}
          revision: {description: Commit or branch of an adapter by name., type: str}
          path: {description: "Its directory, when that is not the source.", type: str}
      max_loras: {description: Adapters used at once., type: int}
      max_lora_rank: {description: Largest rank of an adapter., type: int}
      engine_arguments:
        description: Other arguments of C(vllm serve) by their own names; what matters to memory is taken from them.
        type: dict
      gpu_layers: {description: "llama.cpp: layers on the GPU, as in C(--n-gpu-layers).", type: int}
      context: {description: "llama.cpp: context in tokens.", type: int}
      batch: {description: "llama.cpp: batch size.", type: int}
      ubatch: {description: "llama.cpp: physical batch size.", type: int}
      flash_attention: {description: "llama.cpp: whether flash attention is on.", type: bool}
      parallel: {description: "llama.cpp: slots.", type: int}
  service:
    description: Name of the service that O(compare) and O(metrics_path) are about; all of them when absent.
    type: str
  leaving:
    description: Units whose memory counts as free too, because they are taken away before the first start.
    type: list
    elements: str
    default: []
  gpu:
    description: The GPU by hand; measured by nvidia-smi when absent.
    type: dict
    suboptions:
      name: {description: "Its name, such as C(L4).", type: str}
      total_mib: {description: Total memory as nvidia-smi shows it., type: int}
      free_mib: {description: Free memory. All of it when absent., type: int}
      wsl: {description: "Whether it is seen through WSL2, where CUDA counts all that nvidia-smi shows.", type: bool}
  gpu_index:
    description: Which GPU of several, counted from 0.
    type: int
  hub_url:
    description: Hub or mirror to read headers from, for a model that is not on the host.
    type: str
  hub_token:
    description: Token for a gated or private model.
    type: str
  refuse:
    description: Fail when the verdict is C(refused).
    type: bool
    default: false
  compare:
    description: Compare the journal of the services' units with the plan.
    type: bool
    default: false
  history_path:
    description: File on the host that keeps what earlier starts measured. Not used when absent.
    type: path
  metrics_path:
    description:
      - File on the host that tells node_exporter's textfile collector what was planned, such as
        C(/var/lib/llm-server/metrics/gpu_memory.prom). Written with O(compare), by the plan that knows this start.
    type: path
  show:
    description: What the action prints of the plan, as it is and not as a result.
    type: str
    choices: [nothing, table, json]
    default: nothing
attributes:
  check_mode: {description: Plans and compares; writes no file., support: full}
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

- name: What if the model ran on an L4
  llm.server.gpu_memory_plan:
    gpu: {name: L4, total_mib: 23034}
    hub_url: https://hub.example.org
    services:
      - {name: chat, version: 0.23.0, model: mistralai/Mistral-7B-Instruct-v0.3, max_model_len: 8192}
"""

RETURN = r"""
verdict:
  description: The worst verdict of the services (fits, tight, refused).
  returned: always
  type: str
  sample: fits
plan:
  description: The plan in plain types, sizes in MiB, with C(start_order), the names in the order in which most of them
    run, and C(counted), those whose memory is held together. C(services) has for each its
    verdict, group, whether it runs, its message, cures, assumptions,
    concurrency, what must be free when it is started (C(free_at_start_mib) on the first C(gpus)) and C(figures), each
    with value, low, high, origin (read, computed, estimated), unit and note.
  returned: always
  type: dict
rendered:
  description: The plan as text for a person, with a table and a bar of the GPU's memory.
  returned: always
  type: str
comparison:
  description: For each service what was planned and measured (bytes or tokens), and whether it lay in the range.
  returned: with O(compare)
  type: dict
"""

import json
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from ..module_utils.gpu import nvidia_smi
from ..module_utils.gpu.memory import journal, planner, question, render
from ..module_utils.gpu.memory.errors import PlanError
from ..module_utils.quiet_module import QuietModule

JOURNAL_LINES = 20000


def measured_gpu(services: list[dict], index: int | None, leaving: list[str]) -> dict:
    """The GPU as nvidia-smi shows it; what the services' own units hold counts as free."""
    gpus = nvidia_smi.read()["gpus"]
    ranks = max([1, *(int(planner.with_arguments(s).get("tensor_parallel_size") or 1) for s in services)])
    if ranks > len(gpus):
        raise PlanError(f"tensor_parallel_size {ranks} needs {ranks} GPUs, this host has {len(gpus)}: lower it.")
    units = [*(s.get("unit") or "" for s in services), *leaving]
    if ranks > 1 and index is None:
        # All ranks get the share of the fullest one.
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
    """Journal lines of the unit's last start."""
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


def write(path: str, text: str) -> None:
    """Replaces the file in one step, so that a reader never sees half of it."""
    target = Path(path)
    target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=".gpu_memory")
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        stream.write(text)
    Path(temporary).chmod(0o644)
    Path(temporary).replace(target)


def compare(module: QuietModule, result: dict) -> tuple[dict, bool]:
    """(comparison by service, whether the history changed)."""
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
        write(path, json.dumps(history, indent=2, sort_keys=True) + "\n")
    return found, changed


def tell(module: QuietModule, result: dict) -> bool:
    """Writes the metrics of a plan; whether they changed."""
    path, text = module.params["metrics_path"], render.as_metrics(result, module.params["service"])
    known = Path(path).read_text(encoding="utf-8") if Path(path).is_file() else None
    if known != text and not module.check_mode:
        write(path, text)
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
                # The next plan will know what this start measured: the metrics are its figures, so that they stay.
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
