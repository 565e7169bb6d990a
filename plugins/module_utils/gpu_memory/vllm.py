"""What vLLM will do with a GPU: weights, activation, overhead, and the KV cache that is left.

The arithmetic is vLLM's own (see engines.py for the versions whose source it was read in):

    KV memory = total * utilization - weights - activation - overhead [- CUDA graphs]
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

from . import weights as weight_rules
from .engines import (
    BEYOND_BUDGET,
    COMPILED,
    CONTEXT_BYTES,
    CONTEXT_COUNTED,
    MESSAGE_CUDA_OOM,
    MESSAGE_FREE,
    MESSAGE_LENGTH,
    MESSAGE_NO_BLOCKS,
    MESSAGE_SEQUENCES,
    NEWEST_READ,
    OVERHEAD,
    OVERHEAD_BUFFERS,
    OVERHEAD_SEVERAL,
    OVERHEAD_SEVERAL_BUFFERS,
    Gpu,
    VllmRules,
    parse_version,
    vllm_rules,
)
from .errors import PlanError
from .figures import COMPUTED, GIB, MIB, READ, Figure, estimate, gib
from .shape import LINEAR, SLIDING, LayerGroup, Shape, with_quantization

BLOCK = 16
LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
KV_BYTES = {"fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "fp8_inc": 1, "int8": 1, "bfloat16": 2, "float16": 2, "float32": 4}


@dataclass
class VllmService:
    """One `vllm serve`. None leaves the engine's default; lengths in tokens, `lora_bytes` in bytes."""

    name: str
    version: str
    model: str
    shape: Shape
    weights: Figure | None = None
    dtype: str = "auto"
    quantization: str = ""
    kv_cache_dtype: str = "auto"
    gpu_memory_utilization: float | None = None
    max_model_len: int | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    enforce_eager: bool = False
    tensor_parallel_size: int = 1
    pipeline_parallel_size: int = 1
    expert_parallel_size: int | None = None
    language_model_only: bool = False
    lora: bool = False
    max_loras: int = 1
    max_lora_rank: int = 16
    block_size: int = BLOCK
    kv_cache_memory_bytes: int | None = None
    assumptions: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Pool:
    """How the layers' caches share blocks; `block_bytes` of one block over its layers."""

    block_bytes: float
    parts: tuple[tuple[str, int, int, int], ...]  # kind, groups, tokens a block, window
    token_bytes: float

    def request_blocks(self, length: int, in_flight: int) -> int:
        """Blocks that one request of `length` tokens may come to hold."""
        total = 0
        for kind, groups, block, window in self.parts:
            if kind == LINEAR:
                blocks = 1
            elif kind == SLIDING:
                blocks = math.ceil(min(window - 1 + in_flight, length) / block) + 1
                blocks = min(blocks, math.ceil(length / block) + 1)
            else:
                blocks = math.ceil(length / block)
            total += groups * blocks
        return total

    def request_bytes(self, length: int, in_flight: int) -> float:
        return self.request_blocks(length, in_flight) * self.block_bytes


def cache_pool(
    groups: tuple[LayerGroup, ...], rules: VllmRules, tp: int, pp: int, value_bytes: float, block: int
) -> Pool:
    """The pool of blocks that the layers draw from."""
    attention = [g for g in groups if g.kind != LINEAR]
    linear = [g for g in groups if g.kind == LINEAR]
    if not attention:
        raise PlanError("The model has no attention layer with a KV cache: its memory cannot be planned by tokens.")
    token_bytes = sum(math.ceil(g.count / pp) * g.token_bytes(tp, value_bytes) for g in attention if g.kind != SLIDING)
    if len(groups) == 1 or not rules.hybrid_groups:
        # One form of cache, or a version that keeps every layer at full length.
        total = sum(math.ceil(g.count / pp) * g.token_bytes(tp, value_bytes) for g in attention)
        window = attention[0].window if len(groups) == 1 and attention[0].kind == SLIDING and rules.hybrid_groups else 0
        kind = SLIDING if window else "full"
        return Pool(total * block, ((kind, 1, block, window),), token_bytes or total)
    widest = max(g.token_bytes(tp, value_bytes) for g in attention)
    if linear:
        state = max(g.state for g in linear) / tp
        block = max(block, 16 * math.ceil(state / widest / 16))
    page = widest * block
    counts = [math.ceil(g.count / pp) for g in groups]
    size = max(counts) if max(counts) < 1.25 * min(counts) else min(counts)
    parts = []
    for group, count in zip(groups, counts, strict=True):
        own = block if group.kind == LINEAR else int(page / group.token_bytes(tp, value_bytes))
        parts.append((group.kind, math.ceil(count / size), own, group.window))
    return Pool(page * size, tuple(parts), token_bytes)


def default_batch(service: VllmService, rules: VllmRules, gpu: Gpu, legacy: bool, length: int) -> tuple[int, int]:
    """(max_num_seqs, max_num_batched_tokens) as the API server picks them."""
    seqs, tokens = service.max_num_seqs, service.max_num_batched_tokens
    large = rules.large_batches and gpu.total >= 70 * GIB and "a100" not in gpu.name.lower()
    if tokens is None:
        if legacy:
            # Without chunked prefill the profile runs whole prompts; beyond 32768 chunks are on by default.
            tokens = 2048 if length > 32768 else max(length, 2048)
        else:
            tokens = 16384 if gpu.total >= 160 * GIB and rules.in_flight_batches > 1 else 8192 if large else 2048
            tokens = min(tokens, (seqs or 1 << 20) * length)
    if seqs is None:
        seqs = min(1024 if large and not legacy else 256, tokens)
    return seqs, tokens


def activation(
    shape: Shape,
    rules: VllmRules,
    seqs: int,
    tokens: int,
    tp: int,
    value_bytes: int,
    second: bool,
    legacy: bool,
) -> Figure:
    """Peak of the profiling run: the larger of the forward pass and the dummy sampling."""
    if shape.moe:
        width = shape.expert_intermediate or shape.intermediate / max(1, shape.experts_per_token)
        wide = (shape.experts_per_token or 2) * (max(2 * width / tp, shape.hidden) + width / tp)
    else:
        wide = 3 * shape.intermediate / tp
    forward = tokens * (wide + 4 * shape.hidden) * value_bytes
    per_logit = rules.second_bytes if second else rules.sampler_bytes
    if seqs < 8 and not second:
        per_logit = 38.3  # small batches are sorted in every version
    rows = min(seqs, tokens)
    sampling = rows * shape.vocab * per_logit + tokens * shape.hidden * value_bytes
    if sampling >= forward:
        note = f"dummy sampling of {rows} sequences over {shape.vocab} tokens"
        low = sampling * 0.93
        if rules.sampler_low and not legacy:
            low = max(forward * 0.8, sampling * rules.sampler_low / per_logit)
        figure = estimate(sampling, low, sampling * 1.15, note)
    else:
        figure = estimate(forward, forward * 0.8, forward * 1.35, f"forward pass of {tokens} tokens")
    if shape.encoder and shape.encoder.patches and not legacy:
        # The engine reads the largest image first and keeps its tokens while the text is profiled.
        seen = shape.encoder.activation(shape.hidden, value_bytes)
        kept = shape.encoder.patches / 4 * shape.hidden * value_bytes
        if seen > figure.value + kept:
            return estimate(seen, seen * 0.75, seen * 1.3, f"an image of {shape.encoder.patches} patches")
        figure = estimate(
            figure.value + kept, figure.least, figure.most + kept, figure.note + " beside an image's tokens"
        )
    elif shape.multimodal:
        high = figure.most + 0.6 * GIB
        figure = estimate(figure.value, figure.least, high, figure.note + "; images may add to it")
    return figure


def on_second_runner(shape: Shape, rules: VllmRules) -> bool:
    """Whether the version runs this model on its second model runner."""
    if rules.second_runner == "all":
        return True
    named = shape.architecture in rules.second_models and (rules.second_quantized or not shape.quantization)
    return named or (rules.second_runner == "dense" and not shape.moe and not shape.hybrid)


def overhead(
    shape: Shape, rules: VllmRules, gpu: Gpu, seqs: int, several: bool, second: bool, legacy: bool, context: bool
) -> Figure:
    """What is in use beside weights and activation, as the version counts it."""
    parts = [tuple(x * GIB for x in (OVERHEAD_BUFFERS[second] if rules.counts_buffers else OVERHEAD))]
    notes = ["CUDA libraries and the engine's own buffers"]
    if several:
        several_gib = OVERHEAD_SEVERAL_BUFFERS if rules.counts_buffers else OVERHEAD_SEVERAL[gpu.nvlink]
        parts.append(tuple(x * GIB for x in several_gib))
    if rules.counts_buffers and second:
        # The tables for penalties: how often each token was written, and one bit for each of the prompt's.
        parts.append((seqs * shape.vocab * (4 + 1 / 8),) * 3)
        notes.append(f"its tables of {seqs} sequences")
    if rules.counts_others and not legacy:
        held = 0 if gpu.free is None else gpu.total - gpu.free
        parts.append((held,) * 3)
        if context or gpu.free is None:
            parts.append(CONTEXT_COUNTED)
        notes.append("this version takes off whatever else is in use on the card")
    value, low, high = (sum(part[n] for part in parts) for n in range(3))
    return estimate(value, low, high, ", ".join(notes))


def graph_count(seqs: int) -> int:
    """CUDA graphs captured by default: pieces for mixed batches and whole ones for decoding."""
    largest = min(2 * seqs, 512)
    sizes = [s for s in (1, 2, 4, *range(8, 257, 8), *range(272, 513, 16)) if s <= largest]
    return len(sizes) + sum(1 for s in sizes if s <= seqs)


def graphs(shape: Shape, seqs: int) -> Figure:
    """Memory of the CUDA graphs (start-up logs: about 0.2 MiB a layer and graph, with a wide spread)."""
    size = 0.06 * GIB + graph_count(seqs) * shape.layers * 0.2 * MIB
    return estimate(size, size * 0.3, size * 2.0, f"{graph_count(seqs)} CUDA graphs of {shape.layers} layers")


def lora_bytes(shape: Shape, max_loras: int, rank: int, tp: int, value_bytes: int) -> float:
    """Slots for adapters: A and B of every linear slice, of embeddings and head, at the largest rank allowed."""
    query, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    hidden, wide = shape.hidden, shape.intermediate
    slices = [(hidden, query), (hidden, kv), (hidden, kv), (hidden, wide), (hidden, wide)]
    total = sum(inner + outer / tp for inner, outer in slices)
    total += query / tp + hidden + wide / tp + hidden
    return max_loras * rank * value_bytes * (shape.layers * total + 2 * (shape.vocab / tp + hidden))


def validate(service: VllmService) -> None:
    """One sentence for each value that vLLM itself would refuse."""
    share = service.gpu_memory_utilization
    if share is not None and not 0 < share <= 1:
        raise PlanError(
            f"{service.name}: gpu_memory_utilization is {share:g}, it must be above 0 and at most 1, such as 0.85."
        )
    longest = service.shape.max_position
    if service.max_model_len is not None and service.max_model_len < 1:
        raise PlanError(f"{service.name}: max_model_len is {service.max_model_len}, it must be at least 1.")
    if longest and service.max_model_len and service.max_model_len > longest:
        raise PlanError(
            f"{service.name}: max_model_len {service.max_model_len} is beyond the model's {longest}: "
            f"give at most {longest}."
        )
    tp = service.tensor_parallel_size
    if tp < 1 or (service.shape.heads and service.shape.heads % tp):
        raise PlanError(
            f"{service.name}: tensor_parallel_size {tp} does not divide the model's {service.shape.heads} attention "
            "heads: use one that does."
        )
    if service.lora and service.max_lora_rank not in LORA_RANKS:
        raise PlanError(
            f"{service.name}: max_lora_rank {service.max_lora_rank} is not one of {', '.join(map(str, LORA_RANKS))}."
        )
    if service.kv_cache_dtype != "auto" and service.kv_cache_dtype not in KV_BYTES:
        raise PlanError(
            f"{service.name}: kv_cache_dtype {service.kv_cache_dtype} is not known: use auto or one of "
            f"{', '.join(sorted(KV_BYTES))}."
        )


def plan_vllm(service: VllmService, gpu: Gpu, correction: float | None = None, context: bool = True) -> dict:
    """The plan of one service alone on what is free of `gpu`.

    `correction` (bytes) is how much more KV memory than planned an earlier start on this host measured; `context` says
    that the free figure was taken before the engine made its CUDA context. Returns figures by name, `verdict`
    (fits, tight, refused), `message`, `cures` and the plain numbers the caller goes on with.
    """
    validate(service)
    rules = vllm_rules(service.version)
    shape = with_quantization(service.shape, service.quantization, service.model)
    if service.language_model_only:
        shape = replace(shape, other_parameters=0, multimodal=False, encoder=None)
    tp, pp = service.tensor_parallel_size, service.pipeline_parallel_size
    dtype = service.dtype if service.dtype != "auto" else ("float16" if shape.dtype == "float32" else shape.dtype)
    value_bytes = weight_rules.dtype_bytes(dtype)
    assumptions = [*shape.assumptions, *service.assumptions]
    if parse_version(service.version) > NEWEST_READ:
        newest = ".".join(map(str, NEWEST_READ))
        assumptions.append(f"vLLM {service.version} is newer than the arithmetic known here ({newest})")
    legacy = rules.legacy == "always" or (rules.legacy == "old" and gpu.capability < 8.0)
    second = on_second_runner(shape, rules)
    length = service.max_model_len or shape.max_position
    if not length:
        length = 8192
        assumptions.append("the model's longest text is not known: planned for 8192 tokens")
    utilization = service.gpu_memory_utilization or rules.utilization
    seqs, tokens = default_batch(service, rules, gpu, legacy, length)

    weights = service.weights or weight_rules.from_shape(
        shape, dtype, service.model, tp, pp, service.expert_parallel_size
    )
    slots = lora_bytes(shape, service.max_loras, service.max_lora_rank, tp, value_bytes) if service.lora else 0
    peak = activation(shape, rules, seqs, tokens, tp, value_bytes, second, legacy)
    if not service.enforce_eager and second:
        value, low, high = COMPILED
        note = peak.note + " and what compiling leaves"
        peak = estimate(peak.value + value, peak.least + low, peak.most + high, note)
    if not shape.known:
        peak = estimate(peak.value, peak.least * 0.6, peak.most * 2, peak.note)
    beside = overhead(shape, rules, gpu, seqs, tp * pp > 1, second, legacy, context)
    graph = graphs(shape, seqs)
    counted = rules.graphs_counted and not service.enforce_eager and not legacy
    counted = counted and (not second or rules.second_graphs)
    taken = graph if counted else Figure(0, COMPUTED, note="not counted by this version, or eager")
    on_top = 0.0 if counted or service.enforce_eager else graph.value * 0.6

    asked = budget = math.ceil(gpu.total * utilization)
    spent = weights.value + slots + peak.value + beside.value + taken.value
    available = Figure(
        budget - spent,
        "estimated",
        budget - (weights.most + slots + peak.most + beside.most + taken.most),
        budget - (weights.least + slots + peak.least + beside.least + taken.least),
        "budget less all above",
    )
    if service.kv_cache_memory_bytes:
        # The engine takes this much whatever the utilization says.
        budget = int(spent + service.kv_cache_memory_bytes)
        available = Figure(service.kv_cache_memory_bytes, READ, note="kv_cache_memory_bytes as given")
    elif correction is not None:
        middle = available.value + correction
        available = estimate(middle, middle * 0.98, middle * 1.02, "corrected by an earlier start on this host")
    kv_bytes = KV_BYTES.get(service.kv_cache_dtype, value_bytes)
    pool = cache_pool(shape.groups, rules, tp, pp, kv_bytes, service.block_size)
    in_flight = tokens * rules.in_flight_batches
    needed = pool.request_bytes(length, in_flight)

    def pool_tokens(size: float) -> int:
        blocks = max(0, int(size // pool.block_bytes))
        if rules.tokens_by_concurrency or len(pool.parts) > 1:
            if rules.tokens_by_concurrency:
                return int(blocks / pool.request_blocks(length, in_flight) * length)
            return blocks // sum(groups for _, groups, _, _ in pool.parts) * service.block_size
        return blocks * pool.parts[0][2]

    def longest_fitting(size: float) -> int:
        low_end, high_end = 0, 1 << 24
        while low_end < high_end:
            middle = (low_end + high_end + 1) // 2
            if pool.request_bytes(middle, in_flight) <= size:
                low_end = middle
            else:
                high_end = middle - 1
        return low_end

    kv_tokens = Figure(
        pool_tokens(available.value), available.origin, pool_tokens(available.least), pool_tokens(available.most),
        unit="tokens",
    )  # fmt: skip
    blocks = max(0.0, available.value // pool.block_bytes)
    concurrency = blocks / max(1, pool.request_blocks(length, in_flight))
    after = budget + BEYOND_BUDGET[0] + on_top
    figures = {
        "total": Figure(gpu.total, READ, note=gpu.note or "GPU memory as CUDA counts it"),
        "budget": Figure(
            budget, COMPUTED, note="all below" if service.kv_cache_memory_bytes else f"total times {utilization:g}"
        ),
        "weights": weights,
        "lora": Figure(slots, COMPUTED, note=f"{service.max_loras} adapter slots of rank {service.max_lora_rank}"),
        "activation": peak,
        "overhead": beside,
        "cuda_graphs": taken,
        "kv_cache": available,
        "kv_bytes_per_token": Figure(pool.token_bytes, COMPUTED, unit="bytes/token", note="full-length layers"),
        "kv_tokens": kv_tokens,
        "used_after_start": estimate(
            after, budget + BEYOND_BUDGET[1], budget + BEYOND_BUDGET[2] + on_top * 2, "what nvidia-smi will show"
        ),
    }
    if not service.lora:
        figures.pop("lora")

    # With the cache given, no budget protects the card: what must be on it at once is certain.
    cache = service.kv_cache_memory_bytes
    fixed = weights.least + slots + cache if cache else 0
    free = gpu.free
    context_bytes = CONTEXT_BYTES if context else (0, 0, 0)
    verdict, message = "fits", ""
    reasons = []
    if free is not None and free - context_bytes[1] < asked:
        verdict = "refused"
        shown = free - (context_bytes[0] if context else 0)
        message = MESSAGE_FREE.format(
            free=gib(shown), total=gib(gpu.total), utilization=f"{utilization:g}", asked=gib(asked)
        )
        if not rules.start_check:
            message = MESSAGE_NO_BLOCKS + " (less is free than the share asked for)"
    elif fixed > gpu.total:
        verdict, message = "refused", MESSAGE_CUDA_OOM.format(needed=gib(fixed), total=gib(gpu.total))
    elif available.value <= 0:
        verdict, message = "refused", MESSAGE_NO_BLOCKS
    elif needed > available.value:
        verdict = "refused"
        message = MESSAGE_LENGTH[rules.length_message].format(
            length=length, needed=gib(needed), available=gib(available.value),
            fitting=longest_fitting(available.value), tokens=pool_tokens(available.value),
        )  # fmt: skip
    elif rules.state_a_sequence and shape.hybrid and not service.enforce_eager and blocks < seqs:
        verdict, message = "refused", MESSAGE_SEQUENCES.format(sequences=seqs, blocks=int(blocks))
    else:
        if needed > available.least:
            verdict = "tight"
            reasons.append("one request of full length fits by the estimate, not by the worst of its range")
        if free is not None and free - context_bytes[2] < asked:
            verdict = "tight"
            reasons.append("free memory may fall under the share asked for once the CUDA context is made")
        if free is not None and budget + on_top + BEYOND_BUDGET[1] > free:
            verdict = "tight"
            reasons.append("what the engine holds beyond its budget (context, CUDA graphs) may not find room")
    cures = _cures(verdict, service, rules, gpu, utilization, length, needed, available, longest_fitting, context_bytes)
    if message.startswith("max_num_seqs"):
        cures = [f"lower max_num_seqs to {int(blocks)}"]
    if fixed > gpu.total:
        missing = gib(fixed - gpu.total)
        cures = [f"a smaller or quantized model, a smaller cache or a larger GPU: {missing} GiB are missing"]
    return {
        "name": service.name,
        "engine": "vllm",
        "version": service.version,
        "model": service.model,
        "verdict": verdict,
        "message": message,
        "reasons": reasons,
        "margin_tokens": int(kv_tokens.value - length) if verdict != "refused" else 0,
        "cures": cures,
        "figures": figures,
        "max_model_len": length,
        "max_num_seqs": seqs,
        "max_num_batched_tokens": tokens,
        "utilization": utilization,
        "concurrency": round(concurrency, 2),
        "needed": needed,
        "free_at_start": asked + context_bytes[1],
        "gpus": service.tensor_parallel_size,
        "used": after,
        "assumptions": assumptions,
        "rules": f"vLLM since {'.'.join(map(str, rules.since))} (read in {rules.read_in})",
        "context": in_flight,
    }


def _cures(verdict, service, rules, gpu, utilization, length, needed, available, longest_fitting, context) -> list[str]:
    """What to change, most useful first; empty when the plan fits."""
    if verdict == "fits":
        return []
    out = []
    most = 1.0
    if gpu.free is not None:
        most = math.floor((gpu.free - context[0]) / gpu.total * 100) / 100
    spent = gpu.total * utilization - available.value
    short = longest_fitting(available.value)
    smallest = math.ceil((spent + needed) / gpu.total * 100) / 100
    if utilization > most:
        room = most * gpu.total - spent
        if room >= needed:
            out.append(f"lower gpu_memory_utilization to {most:.2f}")
        elif room > 0 and longest_fitting(room) >= 256:
            out.append(f"lower gpu_memory_utilization to {most:.2f} with max_model_len {longest_fitting(room)}")
        out.append(f"free {gib(utilization * gpu.total - max(0, gpu.free - context[0]))} GiB that other processes hold")
        return out
    if available.value > 0 and short >= 256 and short < length:
        out.append(f"lower max_model_len to {short}")
    if utilization < smallest <= min(most, 1.0):
        out.append(f"raise gpu_memory_utilization to {smallest:.2f}")
    elif available.value <= 0 and most > utilization:
        room = most * gpu.total - spent
        if room > 0 and longest_fitting(room) >= 256:
            out.append(f"raise gpu_memory_utilization to {most:.2f} with max_model_len {longest_fitting(room)}")
    if not out and verdict == "refused":
        missing = spent + needed - min(most, 1.0) * gpu.total
        out.append(
            f"a smaller or quantized model, more GPUs or a larger one: {gib(max(0.0, missing))} GiB are missing for "
            f"{length} tokens even at utilization {min(most, 1.0):.2f}"
        )
    if verdict == "tight" and not out:
        out.append(f"lower gpu_memory_utilization to {max(0.1, math.floor(utilization * 100 - 3) / 100):.2f}")
    return out
