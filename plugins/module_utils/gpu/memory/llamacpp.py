"""What llama.cpp will do with a GPU: model, KV and compute buffers, and the CUDA context.

KV buffer = cells * (key width + value width) * bytes, exact; recurrent layers keep one state per slot in float32. The
compute buffer is the larger of the output matrix's scores and, without flash attention, the attention scores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from .engines import LLAMACPP_CONTEXT, MESSAGE_OOM, Gpu
from .errors import PlanError
from .figures import COMPUTED, GIB, MIB, READ, Figure, estimate
from .layers import LINEAR, SLIDING, LayerGroup
from .shape import Shape
from .tensors import Gguf
from .verdicts import FITS, REFUSED, TIGHT, cures_that_cure

SLOTS = 4  # the server's default (--parallel, since the end of 2025); they share one cache
STATE_BYTES = 4  # per value of a recurrent state, including the convolution's rows

# bytes per value: a block of 32 and its scale
KV_TYPES = {
    "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32, "q5_1": 24 / 32, "q5_0": 22 / 32, "q4_1": 20 / 32,
    "q4_0": 18 / 32, "iq4_nl": 18 / 32,
}  # fmt: skip


@dataclass
class LlamaService:
    """One llama.cpp server. `layers` as in --n-gpu-layers; `file_size` in bytes if no header was read."""

    name: str
    shape: Shape
    header: Gguf | None = None
    file_size: int = 0
    embedding_size: int = 0
    gpu_layers: int = 999
    context: int = 4096
    batch: int = 2048
    ubatch: int = 512
    flash_attention: bool = True
    kv_type: str = "f16"
    parallel: int = SLOTS
    sliding_cache: bool = True  # windowed layers keep only their window (mainline since May 2025)
    model: str = ""
    version: str = ""
    assumptions: list[str] = field(default_factory=list)


def layers_on_gpu(gpu_layers: int, layers: int) -> tuple[int, bool]:
    """Return (repeating layers, output layer) on the GPU: the output layer counts first, then the last layers."""
    if gpu_layers < 0 or gpu_layers > layers:
        return layers, True
    return max(0, gpu_layers - 1), gpu_layers > 0


def kv_bytes(service: LlamaService, on_gpu: int) -> float:
    """Return the bytes of the KV cache of the last `on_gpu` layers, spread over the kinds in proportion."""
    total = 0.0
    cells = service.context
    for group in service.shape.groups:
        count = group.count
        if on_gpu < service.shape.layers:
            count = math.ceil(count * on_gpu / service.shape.layers)
        if group.kind == LINEAR:
            continue
        own = cells
        if group.kind == SLIDING and service.sliding_cache and group.window:
            own = min(cells, 32 * math.ceil((group.window * service.parallel + service.ubatch) / 32))
        total += count * own * token_bytes(service, group)
    return total


def state_bytes(service: LlamaService, on_gpu: int) -> float:
    """Return the bytes of the recurrent states of the last `on_gpu` layers: one per slot."""
    share = min(1.0, on_gpu / service.shape.layers)
    linear = [group for group in service.shape.groups if group.kind == LINEAR]
    one = sum(math.ceil(g.count * share) * g.request_state(1, STATE_BYTES, STATE_BYTES) for g in linear)
    return service.parallel * one


def token_bytes(service: LlamaService, group: LayerGroup) -> float:
    """Return the bytes of one cell in one layer; `kv_type` is one type, or two as `key/value`."""
    types = [kind.strip() for kind in service.kv_type.split("/")]
    for kind in types:
        if kind not in KV_TYPES:
            raise PlanError(f"{service.name}: KV type {kind} is not known: use one of {', '.join(KV_TYPES)}.")
    if group.kind == LINEAR:
        return 0.0
    key, value = KV_TYPES[types[0]], KV_TYPES[types[-1]]
    return max(1, group.kv_heads) * (group.key_dim * key + group.value_dim * value)


def model_bytes(service: LlamaService, on_gpu: int, output: bool) -> Figure:
    """Return the weights on the GPU. The token embedding stays in main memory; a tied one is copied as the output."""
    shape = service.shape
    if service.header:
        first = shape.layers - on_gpu
        size = 0
        for name, tensor in service.header.tensors.items():
            if name.startswith("blk."):
                size += tensor.size if int(name.split(".")[1]) >= first else 0
            elif output and (name.startswith("output") or (shape.tied and name == "token_embd.weight")):
                size += tensor.size
        return Figure(size, READ, note="tensors in the GGUF header")
    embedding = service.embedding_size or _embedding_bytes(service)
    body = service.file_size - embedding
    head = embedding
    layers = body - (0 if shape.tied else head)
    size = layers * on_gpu / shape.layers + (head if output else 0)
    return estimate(size, size * 0.97, size * 1.03, "share of the file's size")


def _embedding_bytes(service: LlamaService) -> int:
    """Return the embedding's share of the file: the file's own bits per weight, over vocabulary and width."""
    shape = service.shape
    dense = shape.linear_parameters() + shape.embedding_parameters()
    embedding = shape.vocab * shape.hidden
    if not dense or (shape.moe and not shape.expert_intermediate) or not shape.intermediate:
        return int(min(embedding * 0.6, service.file_size / 4))
    return int(service.file_size * embedding / dense)


def compute_bytes(service: LlamaService, output: bool) -> Figure:
    """Return the compute buffer on the GPU."""
    shape, rows = service.shape, min(service.ubatch, service.batch, service.context)
    scores = rows * (shape.vocab + shape.hidden * (2 if shape.moe else 1)) * 4 if output else 0
    wide = shape.intermediate if not shape.moe else (shape.experts_per_token or 4) * (shape.expert_intermediate or 1024)
    forward = rows * (2 * wide + 2 * shape.hidden) * 4
    if not service.flash_attention:
        forward += rows * service.context * shape.heads * 4
    size = max(scores, forward)
    return estimate(size, size * 0.85, size * 1.5, f"{rows} tokens a step")


@dataclass(frozen=True)
class Buffers:
    """What one server takes of a GPU."""

    weights: Figure
    cache: Figure
    states: Figure
    compute: Figure
    context: Figure

    @property
    def total(self) -> Figure:
        parts = (self.weights, self.cache, self.states, self.compute, self.context)
        value, least, most = (sum(getattr(part, end) for part in parts) for end in ("value", "least", "most"))
        return estimate(value, least, most, "model, KV, compute and context")

    def verdict(self, free: float) -> str:
        return REFUSED if self.total.value > free else TIGHT if self.total.most > free else FITS


def buffers(service: LlamaService) -> Buffers:
    on_gpu, output = layers_on_gpu(service.gpu_layers, service.shape.layers)
    cache = Figure(kv_bytes(service, on_gpu), COMPUTED, note=f"{service.context} cells, {service.kv_type}")
    states = Figure(state_bytes(service, on_gpu), COMPUTED, note=f"one in each of {service.parallel} slots")
    weights, compute = model_bytes(service, on_gpu, output), compute_bytes(service, output)
    return Buffers(weights, cache, states, compute, estimate(*LLAMACPP_CONTEXT, "CUDA context"))


def cures(service: LlamaService, verdict: str, free: float) -> list[str]:
    """Return what to change, most useful first; each change is planned before it is named."""
    if verdict == FITS:
        return []

    def change(text: str, **fields):
        return text, lambda: buffers(replace(service, **fields)).verdict(free)

    most = service.shape.layers + 1
    now = min(service.gpu_layers if service.gpu_layers >= 0 else most, most)
    counts = range(now - 1, -1, -1)
    layers = next((n for n in counts if buffers(replace(service, gpu_layers=n)).verdict(free) == FITS), None)
    candidates = []
    if layers:
        candidates.append(change(f"lower gpu_layers to {layers} ({now - layers} fewer on the GPU)", gpu_layers=layers))
    length = service.context // 2
    while length >= 256 and buffers(replace(service, context=length)).verdict(free) != FITS:
        length //= 2
    if length >= 256:
        candidates.append(change(f"lower context to {length}", context=length))
    if layers == 0:
        candidates.append(change("lower gpu_layers to 0, which means that the processor does all of it", gpu_layers=0))
    missing = (buffers(service).total.most - free) / GIB
    nothing = (
        f"a smaller model, or free GPU memory: {missing:.2f} GiB are missing, not even the context and no layer fit"
    )
    return cures_that_cure(verdict, candidates) or [nothing]


def plan_llamacpp(service: LlamaService, gpu: Gpu) -> dict:
    """Return the plan of one server alone on the free memory of `gpu`; the same keys as plan_vllm."""
    if service.context < 1:
        raise PlanError(f"{service.name}: context is {service.context}, it must be at least 1.")
    longest = service.shape.max_position
    assumptions = list(service.assumptions)
    if longest and service.context > longest:
        assumptions.append(f"context {service.context} is beyond the {longest} tokens the model was made for")
    free = gpu.total if gpu.free is None else gpu.free
    parts = buffers(service)
    verdict, total = parts.verdict(free), parts.total
    message, reasons = "", []
    if verdict == REFUSED:
        size = parts.weights.value if parts.weights.value > free else parts.compute.value
        message = MESSAGE_OOM.format(size=f"{size / MIB:.2f}")
    elif verdict == TIGHT:
        reasons.append("it fits by the estimate, not by the worst of its range")
    figures = _figures(service, gpu, parts)
    if verdict == REFUSED:
        figures.pop("used_after_start")
    if not service.shape.hybrid:
        figures.pop("states")
    return {
        "name": service.name,
        "engine": "llamacpp",
        "version": service.version,
        "model": service.model,
        "verdict": verdict,
        "message": message,
        "reasons": reasons,
        "margin_tokens": 0,
        "cures": cures(service, verdict, free),
        "figures": figures,
        "max_model_len": service.context,
        "gpu_layers": min(service.gpu_layers, service.shape.layers + 1),
        "utilization": 0.0,
        "concurrency": float(service.parallel),
        "needed": parts.cache.value + parts.states.value,
        "used": 0 if verdict == REFUSED else total.value,
        "assumptions": assumptions,
        "rules": "llama.cpp buffers",
    }


def _figures(service: LlamaService, gpu: Gpu, parts: Buffers) -> dict[str, Figure]:
    per_token = sum(g.count * token_bytes(service, g) for g in service.shape.groups)
    return {
        "total": Figure(gpu.total, READ, note=gpu.note or "GPU memory"),
        "weights": parts.weights,
        "kv_cache": parts.cache,
        "states": parts.states,
        "activation": parts.compute,
        "overhead": parts.context,
        "kv_bytes_per_token": Figure(per_token, COMPUTED, unit="bytes/token", note="all layers"),
        "kv_tokens": Figure(service.context, READ, unit="tokens", note="context asked for"),
        "used_after_start": parts.total,
    }
