"""What vLLM takes from its budget before the KV cache: weights, activation, overhead, CUDA graphs, adapter slots."""

from __future__ import annotations

import math
from dataclasses import dataclass

from . import weights as weight_rules
from .engines import (
    CONTEXT_COUNTED,
    CUBLAS_WORKSPACE,
    FLASHINFER_WORKSPACE,
    OVERHEAD,
    OVERHEAD_BUFFERS,
    OVERHEAD_FUSED,
    OVERHEAD_GRAPHS,
    OVERHEAD_NVFP4,
    OVERHEAD_SEVERAL,
    OVERHEAD_SEVERAL_BUFFERS,
)
from .figures import COMPUTED, GIB, MIB, READ, Figure, estimate
from .shape import Shape
from .vllm_start import Start

NONE_COUNTED = "not counted by this version, or eager"
UNKNOWN_IMAGES = int(2.5 * GIB)  # maximum in public starts that reading images took in addition to the text
DELTA_CHUNK = 64  # tokens that the gated delta net's kernels process at once


@dataclass(frozen=True)
class Budget:
    """A start's budget; `size` and `asked` in bytes, `on_top` is what CUDA graphs take in addition to it."""

    size: int
    asked: int
    weights: Figure
    slots: float
    activation: Figure
    overhead: Figure
    graphs: Figure
    available: Figure
    on_top: float

    def least_on_card(self, cache: int) -> float:
        """Bytes that are certain to be on the card at the same time if the cache's size is given."""
        return self.weights.least + self.slots + cache


def budget_of(start: Start, correction: float | None) -> Budget:
    """Return the budget of a start; `correction`: bytes of KV memory that an earlier start had more than planned."""
    service, shape = start.service, start.shape
    tp = service.tensor_parallel_size
    weights = weights_of(start)
    slots = lora_bytes(shape, service.max_loras, service.max_lora_rank, tp, start.value_bytes) if service.lora else 0
    peak, beside, graph = activation(start), overhead(start), graphs(start)
    counted = start.rules.graphs_counted and not service.enforce_eager and not start.legacy
    counted = counted and (not start.second or start.rules.second_graphs)
    taken = graph if counted else Figure(0, COMPUTED, note=NONE_COUNTED)
    asked = size = math.ceil(start.gpu.total * start.utilization)
    parts = (weights, peak, beside, taken)
    spent, least, most = (
        slots + sum(getattr(part, end) for part in parts) for end in ("value", "least", "most")
    )  # fmt: skip
    available = estimate(size - spent, size - most, size - least, "budget less all above")
    if service.kv_cache_memory_bytes:
        # The engine takes this amount whatever the utilization is.
        size = int(spent + service.kv_cache_memory_bytes)
        available = Figure(service.kv_cache_memory_bytes, READ, note="kv_cache_memory_bytes as given")
    elif correction is not None:
        middle = available.value + correction
        available = estimate(middle, middle * 0.98, middle * 1.02, "corrected by an earlier start on this host")
    on_top = 0.0 if counted or service.enforce_eager else graph.value * 0.6
    return Budget(size, asked, weights, slots, peak, beside, taken, available, on_top)


def weights_of(start: Start) -> Figure:
    """Return the weights on one GPU, including those of a drafter's layers."""
    service, shape = start.service, start.shape
    tp, pp = service.tensor_parallel_size, service.pipeline_parallel_size
    if service.weights:
        return service.weights
    figure = weight_rules.from_shape(shape, start.dtype, service.model, tp, pp, service.expert_parallel_size)
    if not service.draft_layers:
        return figure
    more = service.draft_layers * shape.draft_bytes(start.value_bytes, tp)
    return estimate(figure.value + more, figure.least, figure.most + more, f"{figure.note}, and the drafter's layer")


def activation(start: Start) -> Figure:
    """Return the peak of the profile: the largest of the steps, which run one after the other."""
    steps = [forward_pass(start), sampling(start)]
    encoder = start.shape.encoder
    read = 0
    if encoder and encoder.item_tokens and not start.legacy:
        read = encoder.profiled_tokens(start.length, start.tokens)
        kept = encoder.kept(read, start.shape.hidden, start.value_bytes)
        steps = [
            estimate(s.value + kept, s.least, s.most + kept, f"{s.note} beside {read} tokens of an image or a video")
            for s in steps
        ]
        seen = encoder.activation(read, start.value_bytes)
        steps.append(
            estimate(seen, seen * 0.75, seen * 1.3, f"an image or a video of {read * encoder.token_patches} patches")
        )
    least = max(step.least for step in steps)
    cold = compilation(start)
    if cold:
        steps.append(cold)
    top = max(steps, key=lambda step: step.value)
    figure = estimate(top.value, least, max(step.most for step in steps), top.note)
    if start.shape.multimodal and not read:
        note = f"{figure.note}; what reading images takes is not known of this model"
        figure = estimate(figure.value, figure.least, figure.most + UNKNOWN_IMAGES, note)
    if not start.shape.known:
        figure = estimate(figure.value, figure.least * 0.6, figure.most * 2, figure.note)
    return figure


def forward_pass(start: Start) -> Figure:
    """Return the widest step of a layer over a full batch of tokens."""
    shape, tp = start.shape, start.service.tensor_parallel_size
    if shape.moe:
        width = shape.expert_intermediate or shape.intermediate / max(1, shape.experts_per_token)
        wide = (shape.experts_per_token or 2) * (max(2 * width / tp, shape.hidden) + width / tp)
    else:
        wide = 3 * shape.intermediate / tp
    if shape.mixer and shape.hybrid and not shape.mixer.groups:
        heads, state = shape.mixer.value_heads, shape.mixer.key_dim * shape.mixer.value_dim
        inner = shape.mixer.conv_width + heads * shape.mixer.value_dim
        wide = max(wide, (3 * inner + heads * (state / DELTA_CHUNK + 2 * DELTA_CHUNK)) / tp)
    size = start.tokens * (wide + 4 * shape.hidden) * start.value_bytes
    return estimate(size, size * 0.8, size * 1.35, f"forward pass of {start.tokens} tokens")


def sampling(start: Start) -> Figure:
    """Return the dummy sampling of the maximum number of sequences."""
    shape, rules = start.shape, start.rules
    rows = min(start.seqs, start.tokens)
    per_logit = (rules.second_bytes if start.second else rules.sampler_bytes) + start.value_bytes - 2
    buffer = CUBLAS_WORKSPACE[start.gpu.capability >= 9] if rules.sampler_buffer else 0
    if rules.sampler_buffer and not start.second:
        buffer += min(rows, start.gpu.processors) * shape.vocab * 4
    if start.seqs < 8 and not start.second:
        per_logit, buffer = 38.3, 0  # small batches are sorted in every version
    size = rows * shape.vocab * per_logit + buffer + start.tokens * shape.hidden * start.value_bytes
    low = size * 0.93
    if rules.sampler_low and not start.legacy:
        low = size * rules.sampler_low / per_logit
    return estimate(size, low, size * 1.15, f"dummy sampling of {rows} sequences over {shape.vocab} tokens")


def compilation(start: Start) -> Figure | None:
    """Return what compiling with an empty cache takes: the kernels' benchmark creates a second embedding table.

    Source: "benchmark_combo_kernel" in vllm/config/compilation.py. In models that read images the embedding lookup is
    outside the compiled part. Cold and warm starts side by side: vllm issues 54122, 54383, 1Cat-vLLM pull request 518.
    """
    shape, service = start.shape, start.service
    read_apart = shape.multimodal and shape.encoder
    if start.warm or service.enforce_eager or not start.rules.compile_benchmarks or read_apart:
        return None
    table = shape.vocab * shape.hidden * start.value_bytes / service.tensor_parallel_size
    size = table + start.tokens * shape.hidden * start.value_bytes
    return estimate(size, 0, size + 0.2 * GIB, "the first start's compilation, no longer there at the next")


def overhead(start: Start) -> Figure:
    """Return what is in use in addition to weights and activation, as the version counts it."""
    rules, gpu, service = start.rules, start.gpu, start.service
    parts = [_gib(OVERHEAD_BUFFERS[start.second] if rules.counts_buffers else OVERHEAD)]
    notes = ["CUDA libraries and the engine's own buffers"]
    if rules.graphs_profiled and not service.enforce_eager and not start.second:
        parts.append(_gib(OVERHEAD_GRAPHS))
    if start.shape.moe and "nvfp4" in start.shape.quantization and gpu.capability >= 10:
        parts.append(_gib(OVERHEAD_NVFP4))
        notes.append("FlashInfer's kernels for NVFP4")
    if service.tensor_parallel_size > 1:
        fused = rules.fused_allreduce and gpu.nvlink and gpu.capability >= 9 and service.pipeline_parallel_size == 1
        several = OVERHEAD_SEVERAL_BUFFERS if rules.counts_buffers else OVERHEAD_SEVERAL[gpu.nvlink]
        parts.append(_gib(OVERHEAD_FUSED if fused else several))
    if rules.counts_buffers and start.second:
        # The tables for penalties: how often each token was output, and one bit for each token of the prompt.
        parts.append((start.seqs * start.shape.vocab * (4 + 1 / 8),) * 3)
        notes.append(f"its tables of {start.seqs} sequences")
    if rules.counts_others and not start.legacy:
        held = 0 if gpu.free is None else gpu.total - gpu.free
        parts.append((held,) * 3)
        if start.context or gpu.free is None:
            parts.append(CONTEXT_COUNTED)
        notes.append("this version takes off whatever else is in use on the card")
    value, low, high = (sum(part[n] for part in parts) for n in range(3))
    return estimate(value, low, high, ", ".join(notes))


def _gib(figures: tuple[float, float, float]) -> tuple[float, ...]:
    return tuple(figure * GIB for figure in figures)


def graph_count(seqs: int, largest: int = 0) -> int:
    """Return the number of CUDA graphs captured by default: piecewise for mixed batches and full ones for decoding."""
    largest = largest or min(2 * seqs, 512)
    sizes = [s for s in (1, 2, 4, *range(8, 257, 8), *range(272, largest + 1, 16)) if s <= largest]
    return len(sizes) + sum(1 for s in sizes if s <= seqs)


def graphs(start: Start) -> Figure:
    """Return the memory of the CUDA graphs (start-up logs: about 0.2 MiB per layer and graph, with a wide spread)."""
    count = graph_count(start.seqs, start.service.capture_size or start.largest_graph)
    size = 0.06 * GIB + count * start.shape.layers * 0.2 * MIB
    note = f"{count} CUDA graphs of {start.shape.layers} layers"
    workspace = 0
    if start.uses_flashinfer:
        workspace = FLASHINFER_WORKSPACE
        note += " and FlashInfer's workspace"
    return estimate(size + workspace, size * 0.3 + workspace, size * 2.0 + workspace, note)


def lora_bytes(shape: Shape, max_loras: int, rank: int, tp: int, value_bytes: int) -> float:
    """Return the bytes of adapter slots: A and B of every linear slice, embeddings and head, at the maximum rank."""
    query, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    hidden, wide = shape.hidden, shape.intermediate
    slices = [(hidden, query), (hidden, kv), (hidden, kv), (hidden, wide), (hidden, wide)]
    total = sum(inner + outer / tp for inner, outer in slices)
    total += query / tp + hidden + wide / tp + hidden
    return max_loras * rank * value_bytes * (shape.layers * total + 2 * (shape.vocab / tp + hidden))
