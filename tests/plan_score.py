"""Score the GPU memory planner over a table of real start-ups: `plan_score.py [DIRECTORY]`.

The directory has `vllm_logs.csv`, `llamacpp_logs.csv` and `model_configs.csv` (the repository's own is
`data/gpu_memory`). A plan only uses what a user knows before the start; it is compared with the engine's measurements.
docs/gpu-memory.md defines which rows have enough input. Prints `name passed/count` per measure, followed by the rows
that missed.
"""

from __future__ import annotations

import csv
import re
import statistics
import sys
from collections import defaultdict
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from plugins.module_utils.gpu.memory.engines import Gpu, capability, card, cuda_mib, parse_version, vllm_rules  # noqa: E402
from plugins.module_utils.gpu.memory.errors import PlanError  # noqa: E402
from plugins.module_utils.gpu.memory.figures import GIB, MIB  # noqa: E402
from plugins.module_utils.gpu.memory.layers import SLIDING  # noqa: E402
from plugins.module_utils.gpu.memory.llamacpp import LlamaService, plan_llamacpp  # noqa: E402
from plugins.module_utils.gpu.memory.quantization import quantized_bits  # noqa: E402
from plugins.module_utils.gpu.memory.shape import Shape, shape_from_row  # noqa: E402
from plugins.module_utils.gpu.memory.vllm import plan_vllm  # noqa: E402
from plugins.module_utils.gpu.memory.vllm_start import VllmService  # noqa: E402

OWN = ROOT / "data" / "gpu_memory"
SMALL_BUDGET = 24 * GIB  # if total * utilization is below this, an error under 0.5 GiB of KV memory counts as right
ALLOWED = 0.5 * GIB
# Words of a model's name that affect neither its shape nor its size.
IDLE = {
    "4bit", "8bit", "autoround", "awq", "base", "bf16", "bnb", "chat", "ct", "dynamic", "fp16", "fp4", "fp8", "gguf",
    "gptq", "hf", "instruct", "int4", "int8", "it", "k", "m", "meta", "mlc", "mxfp4", "nvfp4", "pertensor", "preset",
    "q4", "q5", "q8", "qat", "quantized", "s", "static", "ud", "unsloth", "w4a16", "xl",
}  # fmt: skip


def number(text: str) -> float | None:
    """Return the number at a cell's start: `0.9 (default)`, `1,062,157`, `8k` (8192), `90 %` (0.9); else None."""
    match = re.match(r"\s*(-?\d{1,3}(?:,\d{3})+(?![\d,])|-?\d+(?:\.\d+)?)\s*(k\b|%)?", text or "", re.IGNORECASE)
    if not match:
        return None
    factor = {"": 1, "k": 1024, "%": 0.01}[(match.group(2) or "").lower()]
    return float(match.group(1).replace(",", "")) * factor


def table(path: Path) -> list[dict]:
    """Return the rows of a table, every cell as text; a missing column or cell is empty."""
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as handle:
        return [defaultdict(str, {k: (v or "").strip() for k, v in row.items() if k}) for row in csv.DictReader(handle)]


def words(name: str) -> frozenset[str]:
    """Return the words that distinguish models: family, version, size, variant."""
    name = re.sub(r"\([^)]*\)", " ", name.split("/")[-1]).lower()
    name = re.sub(r"\.gguf$", "", name.strip())
    name = re.sub(r"[-_.](i?q\d(_\w+)?|f16|f32)$", "", name)  # a GGUF file's quantization
    name = re.sub(r"(qwen|llama|gemma|phi|granite|mistral|exaone)[-_ ]?(\d)", r"\1 \2", name)
    found = {word.strip(".") for word in re.split(r"[^a-z0-9.]+", name)} - IDLE - {""}
    return frozenset(word for word in found if not re.fullmatch(r"\d{4}|v\d+(\.\d+)?|\d+k", word))


class Shapes:
    """Shapes by model name: first the rows of the given folder, then the repository's own."""

    def __init__(self, folder: Path):
        self.rows = []
        for place in dict.fromkeys((folder, OWN)):
            path = place / "model_configs.csv"
            if path.exists():
                self.rows += table(path)
        self.shapes = [(row["model"], shape_or_none(row)) for row in self.rows]

    def find(self, model: str, method: str = "") -> Shape | None:
        """Return the shape of a row with this name, otherwise with the same distinguishing words; complete rows first.

        If the table only has a variant with another quantization, only its dimensions are used.
        """
        wanted = words(model)
        if not any(re.search(r"\d", word) for word in wanted):
            return None
        found = [(name, shape) for name, shape in self.shapes if shape and shape.hidden and words(name) == wanted]
        # A preset repeats a model in another program's terms, sometimes under another model's name.
        found.sort(
            key=lambda item: (
                not item[1].intermediate,
                "preset" in item[0],
                item[0] != model,
                not same_storage(item[1].quantization, method),
            )
        )
        shape = found[0][1] if found else None
        if shape and method and not same_storage(shape.quantization, method):
            shape = replace(shape, quantization="", bits=16, kept=None)
        return shape


# Storage formats without a fixed number of bits: the model's own configuration gives it.
OPEN_METHODS = {"compressed-tensors", "modelopt", "quark", "torchao"}


def same_storage(stored: str, method: str) -> bool:
    """Return whether weights stored as `stored` match the start's quantization `method` ("" for none)."""
    if not stored or not method:
        return not stored and not method
    return bool({stored, method} & OPEN_METHODS) or quantized_bits(stored) == quantized_bits(method)


def shape_or_none(row: dict) -> Shape | None:
    """Return the row's shape; None if values are missing or the planner does not know its words."""
    try:
        return shape_from_row(row)
    except PlanError:
        return None


@dataclass
class VllmRow:
    """One row of vllm_logs.csv and the values derived from it."""

    row: dict
    shape: Shape | None
    version: str
    total: float | None
    reason: str = ""

    @property
    def case(self) -> str:
        return self.row["case_id"]


def total_bytes(row: dict) -> float | None:
    """Return the GPU's total memory as a user knows it: stated, or from the card's name and its MiB value."""
    stated = number(row["gpu_total_gib"])
    if stated:
        return stated * GIB
    known = card(row["gpu"])
    sizes = [int(x) for x in re.findall(r"(\d{4,6})\s*MiB", row["gpu"])]
    if "wsl" in row["gpu"].lower() and (sizes or known):
        return (min(sizes) if sizes else known.smi_mib) * MIB
    if known and "+" not in row["gpu"]:
        return known.cuda_gib * GIB
    sizes = sizes or [int(x) * 1024 for x in re.findall(r"\b(\d{1,3})\s?Gi?B\b", row["gpu"])]
    return cuda_mib(min(sizes)) * MIB if sizes else None


# Names of quantizations in tables and model names, and the planner's name; the first match counts.
METHODS = (
    ("nvfp4", "nvfp4"), ("mxfp4", "mxfp4"), ("w4a16|wna16", "w4a16"), ("w8a8", "w8a8"), ("w8a16|int8|8bit", "int8"),
    ("awq", "awq"), ("gptq", "gptq"), ("auto-?round|int4", "auto-round"), ("bnb|bitsandbytes", "bitsandbytes"),
    ("fp8", "fp8"), ("gguf", "gguf"), ("4bit", "bitsandbytes"), ("compressed-tensors", "compressed-tensors"),
)  # fmt: skip


def quantization(row: dict) -> str:
    """Return the row's quantization method, otherwise the one in the model's name; "" for none."""
    for text in (row["quantization"], row["model"]):
        for pattern, method in METHODS:
            if re.search(pattern, text, re.IGNORECASE):
                return method
    return ""


def load(row: dict, shapes: Shapes) -> VllmRow:
    """Return the row with its shape, or with the reason why its input is insufficient for a plan of tokens."""
    shape = shapes.find(row["model"], quantization(row))
    # The first version in the cell, with or without words before it.
    version = re.search(r"\d+\.\d+\S*", row["vllm_version"])
    out = VllmRow(row, shape, version.group() if version else "", total_bytes(row))
    try:
        parse_version(out.version)
    except PlanError:
        out.reason = "version"
    if not out.reason and not out.total:
        out.reason = "total memory"
    if not out.reason and not number(row["tp"]):
        out.reason = "tensor-parallel size"
    if not out.reason and not number(row["gpu_memory_utilization"]):
        out.reason = "utilization"
    if not out.reason and not out.shape:
        out.reason = "model"
    if not out.reason and re.search(r"offload|overrid", row["notes"], re.IGNORECASE):
        out.reason = "offload"
    return out


TYPES = {"bf16": "bfloat16", "fp16": "float16", "f16": "float16", "fp32": "float32", "f32": "float32"}


def type_word(text: str) -> str:
    """Return the type at a cell's start by vLLM's name, "auto" for an empty cell."""
    word = re.match(r"[\w.-]*", text).group().lower().removeprefix("torch.")
    return TYPES.get(word, word) or "auto"


def whole(text: str) -> int | None:
    return int(number(text) or 0) or None


def block_size(row: dict) -> int:
    """Return the tokens per block: the engine's 16 unless the row's command line has another value."""
    match = re.search(r"block[-_]size[= ](\d+)", row["notes"])
    return int(match.group(1)) if match else 16


def service_of(entry: VllmRow) -> VllmService:
    """Return the service that a row describes, without the engine's measurements."""
    row = entry.row
    return VllmService(
        name=entry.case, version=entry.version, model=row["model"], shape=entry.shape,
        dtype=type_word(row["dtype"]), quantization=quantization(row),
        kv_cache_dtype=type_word(row["kv_cache_dtype"]),
        gpu_memory_utilization=number(row["gpu_memory_utilization"]),
        max_model_len=whole(row["max_model_len"]), block_size=block_size(row),
        max_num_seqs=whole(row["max_num_seqs"]),
        max_num_batched_tokens=whole(row["max_num_batched_tokens"]),
        enforce_eager=row["enforce_eager"].lower() == "true",
        tensor_parallel_size=whole(row["tp"]) or 1, pipeline_parallel_size=whole(row["pp"]) or 1,
        expert_parallel_size=expert_parallel(row), language_model_only="language-model-only" in row["notes"],
        offline="LLM class" in row["notes"], capture_size=capture_size(row), **speculation(row),
        prefix_caching=True if "enable-prefix-caching" in row["notes"] else None,
        lora=row["lora"].lower() not in ("", "false", "no", "none", "0", "disabled"),
        max_loras=adapter_slots(row),
    )  # fmt: skip


def adapter_slots(row: dict) -> int:
    """Return the adapters used at once if the row has `2 slots`; otherwise the engine's default."""
    match = re.search(r"(\d+) slots", row["lora"])
    return int(match.group(1)) if match else 1


def capture_size(row: dict) -> int:
    """Return the largest batch with a CUDA graph from the row's command line; 0 if it is not there."""
    match = re.search(r"capture[-_ ]size[= ](\d+)", row["notes"])
    return int(match.group(1)) if match else 0


def speculation(row: dict) -> dict:
    """Return the drafter's layers and tokens per step if the row has multi-token prediction; by default one token."""
    if not re.search(r"\bMTP drafter\b", row["notes"]):
        return {}
    match = re.search(r"num_speculative_tokens\D{0,3}(\d+)", row["notes"])
    return {"draft_layers": 1, "drafted": int(match.group(1)) if match else 1}


def expert_parallel(row: dict) -> int | None:
    """Return the GPUs that share the experts, if the row's command line enables it: all GPUs of the row."""
    if "expert-parallel" not in row["notes"]:
        return None
    named = re.findall(r"(?:x|of )(\d+)", row["gpu"])
    return max(map(int, named)) if named else None


def gpu_of(entry: VllmRow) -> Gpu:
    free = number(entry.row["gpu_free_at_start_gib"])
    name = entry.row["gpu"]
    return Gpu(name, int(entry.total), int(free * GIB) if free else None, capability(name))


def measured_tokens(row: dict, plan: dict | None) -> float | None:
    """Return the tokens that fit: logged, or from the blocks, or from the KV memory if all layers are alike."""
    tokens, blocks, memory = (number(row[k]) for k in ("kv_cache_tokens", "gpu_blocks", "available_kv_gib"))
    if tokens or blocks:
        return tokens or blocks * block_size(row)
    return memory * GIB / plan["figures"]["kv_bytes_per_token"].value if plan and memory and memory > 0 else None


def start_check(row: dict, total: float | None, version: str) -> bool | None:
    """Return whether the free memory covers the requested share; None if a value is missing."""
    free, share = number(row["gpu_free_at_start_gib"]), number(row["gpu_memory_utilization"])
    if share is None and version:
        try:
            share = vllm_rules(version).utilization
        except PlanError:
            share = None
    return None if free is None or share is None or not total else free * GIB >= total * share


class Score:
    """Counts one measure and collects the rows that missed."""

    def __init__(self, name: str):
        self.name, self.passed, self.count, self.missed = name, 0, 0, []

    def add(self, right: bool, text: str) -> None:
        self.count += 1
        self.passed += right
        if not right:
            self.missed.append(text)

    def show(self) -> None:
        print(f"{self.name} {self.passed}/{self.count}")
        for text in self.missed:
            print(f"    {text}")


def kinds(plan: dict | None, entry: VllmRow) -> list[str]:
    """Return the kinds of start that a row belongs to; `plain` if none of the others applies."""
    shape, row = entry.shape, entry.row
    if plan is None or shape is None:
        return []
    found = {
        "hybrid": shape.hybrid,
        "mixture": shape.moe,
        "windows": any(group.kind == SLIDING for group in shape.groups),
        "vision": shape.multimodal and "language-model-only" not in row["notes"],
        "quantized": bool(quantization(row)),
        "several_gpus": (whole(row["tp"]) or 1) * (whole(row["pp"]) or 1) > 1,
    }
    return [name for name, is_so in found.items() if is_so] or ["plain"]


@dataclass
class Kinds:
    """Verdicts, and errors of tokens with grade A (percent), by kind of start."""

    verdicts: dict
    errors: dict

    def show(self) -> None:
        for kind in sorted({*self.verdicts, *self.errors}):
            right, errors = self.verdicts[kind], self.errors[kind]
            near = sum(error <= 10 for error in errors)
            middle = f"{statistics.median(errors):.2f}" if errors else "nan"
            print(f"kind_{kind} verdict {sum(right)}/{len(right)} within_10pct {near}/{len(errors)} median {middle}")


@dataclass
class Tokens:
    """The accuracy of a row's planned tokens: error in percent, and whether it is within the allowance."""

    error: float
    allowed: bool
    text: str


def tokens_of(entry: VllmRow, plan: dict, measured: float) -> Tokens:
    """Compare planned with measured tokens."""
    row = entry.row
    planned = plan["figures"]["kv_tokens"].value
    memory = plan["figures"]["kv_cache"].value
    memory_error = abs(planned - measured) * memory / planned if planned else GIB
    small = entry.total * plan["utilization"] < SMALL_BUDGET
    text = (
        f"{entry.case} {row['model']}: planned {planned:.0f}, measured {measured:.0f} tokens "
        f"({(planned / measured - 1) * 100:+.1f} %)"
    )
    return Tokens(abs(planned / measured - 1) * 100, small and memory_error < ALLOWED, text)


def planned(entry: VllmRow) -> tuple[dict | None, str]:
    """Return (plan, the planner's error if it refused the row), and set the entry's reason."""
    if entry.reason:
        return None, ""
    try:
        return plan_vllm(service_of(entry), gpu_of(entry), context=False), ""
    except PlanError as error:
        entry.reason = "plan"
        return None, str(error)


class VllmScore:
    """All measures over a table of vLLM starts."""

    def __init__(self, verbose: bool):
        self.verbose = verbose
        self.verdict, self.trivial = Score("verdict"), Score("verdict_if_always_ok")
        self.refusals = Score("refusals_caught")
        self.within = {pct: Score(f"kv_tokens_within_{pct}pct") for pct in (5, 10, 15)}
        self.strict = {pct: Score(f"kv_tokens_within_{pct}pct_without_allowance") for pct in (5, 10, 15)}
        self.every = {pct: Score(f"kv_tokens_all_grades_within_{pct}pct") for pct in (5, 10, 15)}
        self.errors: list[float] = []
        self.kinds = Kinds(defaultdict(list), defaultdict(list))
        self.left_out: dict = {}

    def add(self, entry: VllmRow) -> None:
        row = entry.row
        plan, refusal = planned(entry)
        self._add_verdict(entry, plan)
        if entry.reason:
            self.left_out.setdefault(entry.reason, []).append((entry.case, refusal))
        measured = measured_tokens(row, plan)
        if plan is None or not measured or row["outcome"] != "ok":
            return
        near = tokens_of(entry, plan, measured)
        for pct in (5, 10, 15):
            self.every[pct].add(near.error <= pct or near.allowed, near.text)
            if row["completeness"] == "A":
                self.within[pct].add(near.error <= pct or near.allowed, near.text)
                self.strict[pct].add(near.error <= pct, near.text)
        if row["completeness"] == "A":
            self.errors.append(near.error)
            for kind in kinds(plan, entry):
                self.kinds.errors[kind].append(near.error)
        if self.verbose:
            show_figures(near.text, plan["figures"], row)

    def _add_verdict(self, entry: VllmRow, plan: dict | None) -> None:
        row = entry.row
        refused = row["outcome"].startswith("error")
        check = start_check(row, entry.total, entry.version)
        if plan is None and check is None:
            return
        result = plan["verdict"] if plan else "fits" if check else "refused"
        right = (result == "refused") == refused
        text = f"{entry.case} {row['model']}: planned {result}, was {row['outcome']}"
        self.verdict.add(right, text)
        self.trivial.add((check is False) == refused, f"{entry.case}: was {row['outcome']}")
        if refused:
            self.refusals.add(result == "refused", text)
        for kind in kinds(plan, entry):
            self.kinds.verdicts[kind].append(right)

    def show(self) -> None:
        tokens = (*self.within.values(), *self.strict.values(), *self.every.values())
        for score in (self.verdict, self.trivial, self.refusals, *tokens):
            score.show()
        middle = f"{statistics.median(self.errors):.2f}" if self.errors else "nan"
        print(f"kv_tokens_median_error_pct {middle}")
        self.kinds.show()
        show_left_out("vllm", self.left_out)


def show_figures(text: str, figures: dict, row: dict) -> None:
    """Print one line per start: each value as planned and, if logged, as measured."""
    columns = (
        ("weights", "weights_gib"), ("activation", "activation_peak_gib"), ("overhead", "non_torch_gib"),
        ("cuda_graphs", "cudagraph_gib"), ("kv_cache", "available_kv_gib"),
    )  # fmt: skip
    print("#", text, *(f"{name} {figures[name].value / GIB:.2f}/{row[column]}" for name, column in columns))


def score_vllm(folder: Path, shapes: Shapes, verbose: bool) -> None:
    score = VllmScore(verbose)
    for row in table(folder / "vllm_logs.csv"):
        score.add(load(row, shapes))
    score.show()


def show_left_out(engine: str, left_out: dict[str, list[tuple[str, str]]]) -> None:
    """Print how many rows lack which input, and the planner's errors."""
    for reason, cases in sorted(left_out.items()):
        name = f"left_out_{engine}_no_{re.sub('[ -]', '_', reason)}"
        print(f"{name} {len(cases)}: {' '.join(case for case, _ in cases)}")
        for _, message in cases:
            if message:
                print(f"    {message}")


def slots(row: dict) -> int:
    """Return the server's slots: the row's value, otherwise one (most rows are older than the default of four)."""
    match = re.search(r"(\d+) slots|parallel[= ](\d+)", row["engine_note"] + row["notes"])
    return int(match.group(1) or match.group(2)) if match else 1


def llama_service(row: dict, shape: Shape) -> LlamaService:
    """Return the server that a row describes."""
    size = number(row["model_size_file"])
    unit = GIB if "GiB" in row["model_size_file"] else MIB
    layers = number(row["offloaded_layers"])
    engine = row["engine"].lower()
    return LlamaService(
        name=row["case_id"], shape=shape, file_size=int(size * unit) if size else 0,
        gpu_layers=int(layers) if layers else 999, context=int(number(row["n_ctx"]) or 0),
        batch=int(number(row["n_batch"]) or 2048), ubatch=int(number(row["n_ubatch"]) or 512),
        flash_attention=row["flash_attn"] != "0", kv_type=row["kv_type"] or "f16", parallel=slots(row),
        sliding_cache=not ("ik_llama" in engine or "2024" in engine or "llamafile" in engine), model=row["model"],
    )  # fmt: skip


def buffers(text: str) -> float | None:
    """Return the sum of the MiB values in a cell such as `96.00 (12 layers) + 15.00 (12 SWA layers)`."""
    plain = re.sub(r"\([^)]*\)", "", text or "")
    found = [float(x) for x in re.findall(r"\d+(?:\.\d+)?", plain)]
    return sum(found) if found else None


def score_llamacpp(folder: Path, shapes: Shapes, verbose: bool) -> None:
    cache, total = Score("llamacpp_kv_within_1pct"), Score("llamacpp_total_within_5pct")
    left_out: dict[str, list[tuple[str, str]]] = {}
    for row in table(folder / "llamacpp_logs.csv"):
        shape, measured = shapes.find(row["model"], "gguf"), buffers(row["gpu_kv_buffer_mib"])
        if not shape or not number(row["n_ctx"]) or not measured:
            left_out.setdefault("model" if not shape else "context", []).append((row["case_id"], ""))
            continue
        try:
            service = llama_service(row, shape)
            figures = plan_llamacpp(service, Gpu("", 1 << 50))["figures"]
        except PlanError as error:
            left_out.setdefault("plan", []).append((row["case_id"], str(error)))
            continue
        planned = figures["kv_cache"].value / MIB
        text = f"{row['case_id']} {row['model']}: planned {planned:.0f}, measured {measured:.0f} MiB"
        cache.add(abs(planned / measured - 1) <= 0.01, text)
        overridden = re.search(r"overrid|-ot\b|cpu-moe", row["notes"] + row["engine_note"], re.IGNORECASE)
        parts = [buffers(row[k]) for k in ("gpu_model_buffer_mib", "gpu_kv_buffer_mib", "gpu_compute_buffer_mib")]
        if not service.file_size or overridden or None in parts:
            continue
        planned = sum(figures[k].value for k in ("weights", "kv_cache", "activation")) / MIB
        measured = sum(parts)
        text = f"{row['case_id']} {row['model']}: planned {planned:.0f}, measured {measured:.0f} MiB"
        total.add(abs(planned / measured - 1) <= 0.05, text)
        if verbose:
            print("#", text, {k: round(figures[k].value / MIB) for k in ("weights", "kv_cache", "activation")}, parts)
    cache.show()
    total.show()
    show_left_out("llamacpp", left_out)


def main(arguments: list[str]) -> int:
    verbose = "-v" in arguments
    places = [a for a in arguments if a != "-v"]
    folder = Path(places[0]) if places and places[0] else OWN
    missing = [n for n in ("vllm_logs.csv", "llamacpp_logs.csv") if not (folder / n).is_file()]
    if missing:
        print(f"{folder} lacks {', '.join(missing)}: give the folder with the tables of start-ups.", file=sys.stderr)
        return 2
    shapes = Shapes(folder)
    score_vllm(folder, shapes, verbose)
    score_llamacpp(folder, shapes, verbose)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
