"""What vLLM will do with a GPU: weights, activation, overhead, and the remaining KV cache.

The arithmetic is vLLM's own (engines.py names the versions whose source was read):

    KV memory = total * utilization - weights - activation - overhead [- CUDA graphs]
"""

from __future__ import annotations

from dataclasses import replace

from .engines import BEYOND_BUDGET, Gpu
from .figures import COMPUTED, READ, Figure, estimate
from .verdicts import REFUSED
from .vllm_budget import budget_of
from .vllm_start import VllmService, start_of
from .vllm_verdict import Outcome, Verdict, cures, judge


def plan_vllm(
    service: VllmService, gpu: Gpu, correction: float | None = None, context: bool = True, warm: bool = False
) -> dict:
    """Return the plan of one service alone on the free memory of `gpu`.

    `correction` (bytes) is how much more KV memory than planned an earlier start on this host measured; `context` means
    that the free memory was measured before the engine created its CUDA context; `warm` that this host has compiled
    this model with this release before. Returns figures by name, `verdict` (fits, tight, refused), `message`, `cures`
    and the plain numbers that the caller needs.
    """

    def outcome_of(asked: VllmService, on: Gpu) -> Outcome:
        start = start_of(asked, on, context, warm)
        return Outcome(start, budget_of(start, correction), start.pool())

    def again(changed: VllmService, free: float | None) -> str:
        return judge(outcome_of(changed, replace(gpu, free=free))).word

    outcome = outcome_of(service, gpu)
    verdict = judge(outcome)
    return _result(outcome, verdict, cures(outcome, verdict, again))


def _result(outcome: Outcome, verdict: Verdict, remedies: list[str]) -> dict:
    start, budget, service = outcome.start, outcome.budget, outcome.start.service
    refused = verdict.word == REFUSED
    tokens = _tokens(outcome)
    blocks = outcome.pool.blocks(budget.available.value)
    after = budget.size + BEYOND_BUDGET[0] + budget.on_top
    return {
        "name": service.name,
        "engine": "vllm",
        "version": service.version,
        "model": service.model,
        "verdict": verdict.word,
        "message": verdict.message,
        "reasons": list(verdict.reasons),
        "margin_tokens": 0 if refused else int(tokens.value - start.length),
        "cures": remedies,
        "figures": _figures(outcome, tokens, 0 if refused else after),
        "max_model_len": start.length,
        "max_num_seqs": start.seqs,
        "max_num_batched_tokens": start.tokens,
        "utilization": start.utilization,
        "concurrency": round(blocks / max(1, outcome.pool.request_blocks(start.length, start.in_flight)), 2),
        "needed": outcome.needed,
        "free_at_start": budget.asked + outcome.context[1],
        "gpus": service.tensor_parallel_size,
        "used": 0 if refused else after,
        "assumptions": list(start.assumptions),
        "rules": f"vLLM since {'.'.join(map(str, start.rules.since))} (read in {start.rules.read_in})",
        "context": start.in_flight,
    }


def _tokens(outcome: Outcome) -> Figure:
    """Return the tokens of the cache, at each end of its range."""
    start, available = outcome.start, outcome.budget.available
    value, least, most = (
        outcome.pool.tokens(size, start.length, start.in_flight)
        for size in (available.value, available.least, available.most)
    )
    return Figure(value, available.origin, least, most, unit="tokens")


def _figures(outcome: Outcome, tokens: Figure, after: float) -> dict[str, Figure]:
    """Return the figures by name; no "used_after_start" for a service that does not start (`after` is 0)."""
    start, budget, service = outcome.start, outcome.budget, outcome.start.service
    share = "all below" if service.kv_cache_memory_bytes else f"total times {start.utilization:g}"
    slots = f"{service.max_loras} adapter slots of rank {service.max_lora_rank}"
    figures = {
        "total": Figure(start.gpu.total, READ, note=start.gpu.note or "GPU memory as CUDA counts it"),
        "budget": Figure(budget.size, COMPUTED, note=share),
        "weights": budget.weights,
        "lora": Figure(budget.slots, COMPUTED, note=slots),
        "activation": budget.activation,
        "overhead": budget.overhead,
        "cuda_graphs": budget.graphs,
        "kv_cache": budget.available,
        "kv_bytes_per_token": Figure(outcome.pool.token_bytes, COMPUTED, unit="bytes/token", note="full-length layers"),
        "kv_tokens": tokens,
        "used_after_start": estimate(
            after, budget.size + BEYOND_BUDGET[1], budget.size + BEYOND_BUDGET[2] + budget.on_top * 2,
            "what nvidia-smi will show",
        ),
    }  # fmt: skip
    if not service.lora:
        figures.pop("lora")
    if not after:
        figures.pop("used_after_start")
    return figures
