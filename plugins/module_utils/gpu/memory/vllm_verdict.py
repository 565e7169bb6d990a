"""Whether a start of vLLM will succeed, and what to change if it will not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from .engines import (
    BEYOND_BUDGET,
    CONTEXT_BYTES,
    MESSAGE_CUDA_OOM,
    MESSAGE_FREE,
    MESSAGE_LENGTH,
    MESSAGE_NO_BLOCKS,
    MESSAGE_SEQUENCES,
)
from .figures import gib
from .verdicts import FITS, REFUSED, TIGHT, cures_that_cure
from .vllm_budget import Budget
from .vllm_cache import Pool
from .vllm_start import Start, VllmService

SHORTEST = 256  # a shorter context is not offered as a cure


@dataclass(frozen=True)
class Verdict:
    """`word` is fits, tight or refused; `message` what the engine would print; `reasons` why it is tight."""

    word: str
    message: str = ""
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outcome:
    """A start with its budget and pool, and what follows from them."""

    start: Start
    budget: Budget
    pool: Pool

    @property
    def needed(self) -> float:
        """Bytes of KV memory that one request of full length needs."""
        return self.pool.request_bytes(self.start.length, self.start.in_flight)

    @property
    def context(self) -> tuple[int, ...]:
        return CONTEXT_BYTES if self.start.context else (0, 0, 0)

    def fitting(self, size: float) -> int:
        return self.pool.longest_fitting(size, self.start.in_flight)

    @property
    def room(self) -> float:
        """The largest share of the card that is free."""
        gpu = self.start.gpu
        return 1.0 if gpu.free is None else math.floor((gpu.free - self.context[0]) / gpu.total * 100) / 100


def judge(outcome: Outcome) -> Verdict:
    """Return the verdict on a start; the checks are in the engine's order."""
    start, budget = outcome.start, outcome.budget
    free, total, available = start.gpu.free, start.gpu.total, budget.available
    cache = start.service.kv_cache_memory_bytes
    fixed = budget.least_on_card(cache) if cache else 0
    if free is not None and free - outcome.context[1] < budget.asked:
        return Verdict(REFUSED, _free_message(outcome))
    # With a given cache size no budget protects the card; the sum that must be on it at once is certain.
    if fixed > total:
        return Verdict(REFUSED, MESSAGE_CUDA_OOM.format(needed=gib(fixed), total=gib(total)))
    if available.value <= 0:
        return Verdict(REFUSED, MESSAGE_NO_BLOCKS)
    if outcome.needed > available.value:
        return Verdict(REFUSED, _length_message(outcome))
    blocks = outcome.pool.blocks(available.value)
    if start.rules.state_a_sequence and start.shape.hybrid and not start.service.enforce_eager and blocks < start.seqs:
        return Verdict(REFUSED, MESSAGE_SEQUENCES.format(sequences=start.seqs, blocks=blocks))
    reasons = []
    if outcome.needed > available.least:
        reasons.append("one request of full length fits by the estimate, not by the worst of its range")
    if free is not None and free - outcome.context[2] < budget.asked:
        reasons.append("free memory may fall under the share asked for once the CUDA context is made")
    if free is not None and budget.size + budget.on_top + BEYOND_BUDGET[1] > free:
        reasons.append("what the engine holds beyond its budget (context, CUDA graphs) may not find room")
    return Verdict(TIGHT if reasons else FITS, "", tuple(reasons))


def _free_message(outcome: Outcome) -> str:
    start = outcome.start
    if not start.rules.start_check:
        return MESSAGE_NO_BLOCKS + " (less is free than the share asked for)"
    return MESSAGE_FREE.format(
        free=gib(max(0, start.gpu.free - outcome.context[0])), total=gib(start.gpu.total),
        utilization=f"{start.utilization:g}", asked=gib(outcome.budget.asked),
    )  # fmt: skip


def _length_message(outcome: Outcome) -> str:
    start, size = outcome.start, outcome.budget.available.value
    return MESSAGE_LENGTH[start.rules.length_message].format(
        length=start.length, needed=gib(outcome.needed), available=gib(size), fitting=outcome.fitting(size),
        tokens=outcome.pool.tokens(size, start.length, start.in_flight),
    )  # fmt: skip


def cures(outcome: Outcome, verdict: Verdict, again: Callable[[VllmService, float | None], str]) -> list[str]:
    """Return what to change, most useful first; empty if it fits. `again` plans a change, with so much free."""
    if verdict.word == FITS:
        return []
    return cures_that_cure(verdict.word, _candidates(outcome, again)) or [_nothing_helps(outcome)]


def _candidates(outcome: Outcome, again) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield (text, plan with the change) of every single change, then of pairs."""
    start, service = outcome.start, outcome.start.service

    def change(text: str, **fields):
        return text, lambda: again(replace(service, **fields), start.gpu.free)

    for length in _lengths(outcome):
        yield change(f"lower max_model_len to {length}", max_model_len=length)
    for share in _higher(outcome):
        yield change(f"raise gpu_memory_utilization to {share:.2f}", gpu_memory_utilization=share)
    blocks = outcome.pool.blocks(outcome.budget.available.value)
    if start.shape.hybrid and 0 < blocks < start.seqs:
        yield change(f"lower max_num_seqs to {blocks}", max_num_seqs=blocks)
    for share in _lower(outcome):
        yield change(f"lower gpu_memory_utilization to {share:.2f}", gpu_memory_utilization=share)
    yield from _pairs(outcome, change)
    if start.gpu.free is not None and start.gpu.free < start.gpu.total:
        missing = outcome.budget.asked + outcome.context[2] - start.gpu.free
        if missing > 0:
            more = min(start.gpu.total, start.gpu.free + missing)
            yield f"free {gib(more - start.gpu.free)} GiB that other processes hold", lambda: again(service, more)


def _lengths(outcome: Outcome) -> list[int]:
    """Return shorter contexts: one that fits at the worst of the range, then one by the estimate."""
    found = [outcome.fitting(size) for size in (outcome.budget.available.least, outcome.budget.available.value)]
    return [length for length in dict.fromkeys(found) if SHORTEST <= length < outcome.start.length]


def _spent(outcome: Outcome, end: str) -> float:
    budget = outcome.budget
    return budget.asked - getattr(budget.available, end)


def _higher(outcome: Outcome) -> list[float]:
    """Return larger shares with room for one request: at the worst of the range, then by the estimate."""
    start = outcome.start
    if start.service.kv_cache_memory_bytes:
        return []
    found = [
        math.ceil((_spent(outcome, end) + outcome.needed) / start.gpu.total * 100) / 100 for end in ("least", "value")
    ]
    return [share for share in dict.fromkeys(found) if start.utilization < share <= outcome.room]


def _lower(outcome: Outcome) -> list[float]:
    """Return smaller shares that leave room next to the engine: with a margin for the context, then without one."""
    start = outcome.start
    if start.gpu.free is None or start.service.kv_cache_memory_bytes:
        return []
    beside = [outcome.context[2], outcome.budget.on_top + BEYOND_BUDGET[1], outcome.context[0]]
    shares = [math.floor((start.gpu.free - size) / start.gpu.total * 100) / 100 for size in (max(beside), beside[2])]
    return [share for share in dict.fromkeys(shares) if 0 < share < start.utilization]


def _pairs(outcome: Outcome, change) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield the largest share of the card that is free, with the longest context that then fits."""
    start = outcome.start
    shares = _lower(outcome) or ([outcome.room] if outcome.room > start.utilization else [])
    for share in shares:
        for end in ("least", "value"):
            length = outcome.fitting(share * start.gpu.total - _spent(outcome, end))
            if SHORTEST <= length < start.length:
                word = "raise" if share > start.utilization else "lower"
                yield change(
                    f"{word} gpu_memory_utilization to {share:.2f} with max_model_len {length}",
                    gpu_memory_utilization=share, max_model_len=length,
                )  # fmt: skip


def _nothing_helps(outcome: Outcome) -> str:
    """Return by how much the card is too small, if no setting helps."""
    start, budget = outcome.start, outcome.budget
    cache = start.service.kv_cache_memory_bytes
    if cache:
        missing = budget.least_on_card(cache) - start.gpu.total
        return (
            f"a smaller or quantized model, a smaller cache or a larger GPU: {gib(max(0.0, missing))} GiB are missing"
        )
    share = max(0.0, min(outcome.room, 1.0))
    missing = _spent(outcome, "value") + outcome.needed - share * start.gpu.total
    if missing <= 0:
        return "no setting of this service helps for certain: leave more of the GPU free, or take a larger one"
    return (
        f"a smaller or quantized model, more GPUs or a larger one: {gib(missing)} GiB are missing for {start.length} "
        f"tokens even at utilization {share:.2f}"
    )
