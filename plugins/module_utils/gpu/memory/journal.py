"""What an engine logged about its memory at start, and how far it is from the plan.

Line forms: vLLM 0.6 to 0.28 and llama.cpp (see docs/gpu-memory.md). Sizes in bytes.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from .errors import PlanError
from .figures import GIB, MIB

_NUMBER = r"(-?[\d,]+(?:\.\d+)?)"
# figure -> pattern; later lines override earlier ones, since a process logs each start again
_GIB = {
    "weights": [rf"Model loading took {_NUMBER} ?GiB", rf"model weights take {_NUMBER} ?GiB",
                rf"Loading model weights took {_NUMBER} ?GB"],
    "activation": [rf"PyTorch activation peak memory takes {_NUMBER} ?GiB", rf"{_NUMBER} GiB for peak activation"],
    "overhead": [rf"non_torch_memory takes {_NUMBER} ?GiB"],
    "consumed": [rf"Actual usage is {_NUMBER} GiB for consumed memory"],
    "kv_cache": [rf"Available KV cache memory: {_NUMBER} GiB", rf"reserved for KV Cache is {_NUMBER} ?GiB"],
    "cuda_graphs": [rf"Estimated CUDA graph memory: {_NUMBER} GiB"],
    "cuda_graphs_actual": [rf"Graph capturing finished in .* took {_NUMBER} GiB"],
}  # fmt: skip
_COUNTS = {
    "kv_tokens": [rf"GPU KV cache size: {_NUMBER} tokens"],
    "blocks": [rf"# (?:GPU|cuda) blocks: {_NUMBER}"],
    "concurrency": [rf"Maximum concurrency for [\d,]+ tokens per request: {_NUMBER}x"],
}
_LLAMA = {
    "weights": rf"CUDA\d+ model buffer size = *{_NUMBER} MiB",
    "kv_cache": rf"CUDA\d+ KV buffer size = *{_NUMBER} MiB",
    "activation": rf"CUDA\d+ compute buffer size = *{_NUMBER} MiB",
}


def measured(text: str) -> dict:
    """Return the figures in the log lines of the engine's latest start; empty if none. Bytes, tokens, times."""
    text = _latest(text)
    found: dict = {}
    for table, factor in ((_GIB, GIB), (_COUNTS, 1)):
        for figure, patterns in table.items():
            for pattern in patterns:
                hits = re.findall(pattern, text)
                if hits:
                    found[figure] = float(hits[-1].replace(",", "")) * factor
    for figure, pattern in _LLAMA.items():
        hits = re.findall(pattern, text)
        if hits:
            found[figure] = sum(float(hit.replace(",", "")) for hit in hits) * MIB
    if "blocks" in found and "kv_tokens" not in found:
        found["kv_tokens"] = found["blocks"] * 16
    return found


def compiled_before(text: str) -> bool:
    """Return whether the latest start in a log found its graphs in the compile cache."""
    return re.search(r"Directly load (?:the compiled graph|AOT compilation)", _latest(text)) is not None


def _latest(text: str) -> str:
    """Return the log from its latest start on."""
    starts = [m.start() for m in re.finditer(r"Initializing (?:a V1|an) LLM engine|non-default args", text)]
    return text[starts[-1] :] if starts else text


def compare(plan: dict, log: str) -> list[dict]:
    """Return one entry per figure that both have: figure, unit, planned, measured, difference, within (the range)."""
    rows, found = [], measured(log)
    if "consumed" in found and plan["figures"].get("cuda_graphs") and plan["figures"]["cuda_graphs"].value:
        # Since 0.27 the engine's "peak activation" includes the estimate of the CUDA graphs if that is subtracted.
        found["activation"] = found.get("activation", 0) - found.get("cuda_graphs", 0)
    for figure, value in found.items():
        planned = plan["figures"].get(figure)
        if planned is None:
            continue
        if figure == "weights" and "lora" in plan["figures"]:
            # The engine's figure for loading includes the adapter slots.
            slots = plan["figures"]["lora"].value
            planned = replace(
                planned, value=planned.value + slots, low=planned.least + slots, high=planned.most + slots
            )
        rows.append(
            {
                "figure": figure,
                "unit": planned.unit,
                "planned": planned.value,
                "measured": value,
                "difference": value - planned.value,
                "within": planned.least <= value <= planned.most,
            }
        )
    return rows


def history_key(plan: dict) -> str:
    """Return the key of starts that can be compared: same engine version, model and all that decides activation."""
    parts = (plan["engine"], plan["version"], plan["model"], plan["utilization"], plan.get("max_num_seqs"))
    return "|".join(str(part) for part in (*parts, plan.get("max_num_batched_tokens"), plan["fingerprint"]))


def read_history(path: str) -> dict:
    """Return the stored comparisons by key; empty if the file does not exist. Raises PlanError if it is damaged."""
    if not path or not Path(path).is_file():
        return {}
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else {}
    except (OSError, ValueError):
        raise PlanError(f"{path} is not readable JSON: remove it, it is written anew after the next start.") from None


def remember(history: dict, plan: dict, rows: list[dict], warm: bool = False) -> bool:
    """Add what was measured to `history`; return whether that changed it. `warm`: the compile cache was used."""
    cache = next((row for row in rows if row["figure"] == "kv_cache"), None)
    if cache is None:
        return False
    # Stored against the plan without earlier corrections, so that two starts do not alternate.
    planned = plan["uncorrected_kv_cache"]["warm" if warm else "cold"]
    entry = {"kv_cache_difference": round(cache["measured"] - planned), "max_model_len": plan["max_model_len"]}
    key = history_key(plan)
    if history.get(key) == entry:
        return False
    history[key] = entry
    return True
