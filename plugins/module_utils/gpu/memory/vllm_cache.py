"""vLLM's KV cache as a pool of blocks: what a block holds, what a request takes, how many tokens it has.

The layers' caches form groups of equally many layers whose pages have the same size (vllm/v1/core/kv_cache_utils.py).
With linear layers, a block of attention is enlarged until its page holds a request's state, so a block may have
hundreds of tokens (vllm/model_executor/models/config.py of 0.19.0, vllm/platforms/interface.py of 0.28.0).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from .engines import VllmRules
from .errors import PlanError
from .layers import FULL, LINEAR, MLA, SLIDING, LayerGroup

BLOCK = 16


@dataclass(frozen=True)
class CacheOptions:
    """Options that decide the form of the cache in addition to the layers.

    `value_bytes` of a cached value, `state_bytes` of a value of a state's own type (the model's). `drafted` tokens per
    step are drafted by `draft_layers` more layers.
    """

    tp: int = 1
    pp: int = 1
    value_bytes: float = 2
    state_bytes: float = 2
    block: int = BLOCK
    prefix_caching: bool | None = None
    towers: bool = False
    drafted: int = 0
    draft_layers: int = 0


@dataclass(frozen=True)
class Part:
    """Groups of one kind; tokens per block, the window, and the states that a request holds (0: one per block)."""

    kind: str
    groups: int
    block: int
    window: int = 0
    states: int = 0

    def blocks(self, length: int, in_flight: int) -> int:
        """Blocks that one request of `length` tokens may come to hold in one of the groups."""
        whole = math.ceil(length / self.block)
        if self.kind == LINEAR:
            return self.states or whole
        if self.kind == SLIDING:
            kept = min(self.window - 1 + in_flight, length)
            return min(math.ceil(kept / self.block) + 1, whole + 1)
        return whole


@dataclass(frozen=True)
class Pool:
    """How the layers' caches share blocks; `block_bytes` of one block over the layers of a group."""

    block_bytes: float
    parts: tuple[Part, ...]
    token_bytes: float
    by_concurrency: bool = False  # tokens are counted as concurrency times the longest request

    def request_blocks(self, length: int, in_flight: int) -> int:
        return sum(part.groups * part.blocks(length, in_flight) for part in self.parts)

    def request_bytes(self, length: int, in_flight: int) -> float:
        return self.request_blocks(length, in_flight) * self.block_bytes

    def blocks(self, size: float) -> int:
        return max(0, int(size // self.block_bytes))

    def tokens(self, size: float, length: int, in_flight: int) -> int:
        """Tokens in `size` bytes as the engine prints them ("GPU KV cache size") for requests of `length`."""
        if self.by_concurrency:
            return int(self.blocks(size) / max(1, self.request_blocks(length, in_flight)) * length)
        groups = sum(part.groups for part in self.parts)
        return self.blocks(size) // groups * min(part.block for part in self.parts)

    def longest_fitting(self, size: float, in_flight: int) -> int:
        """Length of the longest request that fits in `size` bytes."""
        low_end, high_end = 0, 1 << 24
        while low_end < high_end:
            middle = (low_end + high_end + 1) // 2
            if self.request_bytes(middle, in_flight) <= size:
                low_end = middle
            else:
                high_end = middle - 1
        return low_end


def cache_pool(groups: tuple[LayerGroup, ...], rules: VllmRules, options: CacheOptions) -> Pool:
    """Return the pool of blocks that the layers share."""
    tp, pp, value = options.tp, options.pp, options.value_bytes
    groups = _with_drafter(groups, options.draft_layers)
    attention = [g for g in groups if g.kind != LINEAR]
    if not attention:
        raise PlanError("The model has no attention layer with a KV cache: its memory cannot be planned by tokens.")
    token_bytes = sum(math.ceil(g.count / pp) * g.token_bytes(tp, value) for g in attention if g.kind != SLIDING)
    if len(groups) == 1 or not rules.hybrid_groups:
        # One form of cache, or a version that keeps every layer at full length.
        total = sum(math.ceil(g.count / pp) * g.token_bytes(tp, value) for g in attention)
        window = attention[0].window if len(groups) == 1 and attention[0].kind == SLIDING and rules.hybrid_groups else 0
        part = Part(SLIDING if window else FULL, 1, options.block, window)
        return Pool(total * options.block, (part,), token_bytes or total, rules.tokens_by_concurrency)
    widest = max(g.token_bytes(tp, value) for g in attention)
    block = _attention_block(groups, widest, rules, options)
    page = widest * block
    counts = [math.ceil(g.count / pp) for g in groups]
    most, fewest = max(counts), min(counts)
    size = most if most < rules.group_padding * fewest else fewest
    parts = []
    for group, count in zip(groups, counts, strict=True):
        if group.kind == LINEAR:
            part = Part(LINEAR, 0, block, 0, _states(group, rules, options))
        else:
            part = Part(group.kind, 0, int(page / group.token_bytes(tp, value)), group.window)
        parts.append(replace(part, groups=math.ceil(count / size)))
    return Pool(page * size, tuple(parts), token_bytes, rules.tokens_by_concurrency)


def _with_drafter(groups: tuple[LayerGroup, ...], layers: int) -> tuple[LayerGroup, ...]:
    """Return the groups including the drafter's layers, which attend to the full context."""
    if not layers:
        return groups
    full = next((g for g in groups if g.kind != LINEAR and g.kind != SLIDING), None)
    return tuple(replace(g, count=g.count + layers) if g is full else g for g in groups)


def _caches_prefixes(rules: VllmRules, options: CacheOptions) -> bool:
    asked = options.prefix_caching
    return rules.hybrid_prefix_caching if asked is None else asked


def _states(group: LayerGroup, rules: VllmRules, options: CacheOptions) -> int:
    """Return the states of one request in a linear layer; 0: one per block (MambaSpec in kv_cache_interface.py)."""
    if not _caches_prefixes(rules, options):
        return 1 + options.drafted
    everywhere = group.chunk and rules.mamba_everywhere and not options.drafted
    return 0 if everywhere else 2 + options.drafted


def _attention_block(groups: tuple[LayerGroup, ...], widest: float, rules: VllmRules, options: CacheOptions) -> int:
    """Return the tokens per block of attention: as requested, or as many as make a page of a state's size."""
    linear = [g for g in groups if g.kind == LINEAR]
    if not linear:
        return options.block
    default = options.state_bytes
    if linear[0].chunk:
        default = (rules.tower_mamba_state if options.towers else rules.mamba_state) or options.state_bytes
    state = max(g.request_state(options.tp, options.state_bytes, default, options.drafted) for g in linear)
    step = 64 if any(g.kind == MLA for g in groups) else BLOCK
    if _caches_prefixes(rules, options) and not _states(linear[0], rules, options):
        step = math.lcm(linear[0].chunk, step)
    return max(options.block, step * math.ceil(state / widest / step))
