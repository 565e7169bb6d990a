"""A start of vLLM as requested, and with all defaults filled in."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from . import weights as weight_rules
from .engines import NEWEST_READ, Gpu, VllmRules, parse_version, vllm_rules
from .errors import PlanError
from .figures import GIB, Figure
from .layers import MLA
from .shape import Shape, with_quantization
from .vllm_cache import BLOCK, CacheOptions, Pool, cache_pool

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
KV_BYTES = {"fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "fp8_inc": 1, "int8": 1, "bfloat16": 2, "float16": 2, "float32": 4}


@dataclass
class VllmService:
    """One `vllm serve`. None means the engine's default; lengths in tokens, `kv_cache_memory_bytes` in bytes."""

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
    prefix_caching: bool | None = None
    drafted: int = 0  # tokens per step that multi-token prediction drafts
    draft_layers: int = 0
    capture_size: int = 0  # largest batch with a CUDA graph; 0: the engine's default
    offline: bool = False  # the LLM class, not the server
    lora: bool = False
    max_loras: int = 1
    max_lora_rank: int = 16
    block_size: int = BLOCK
    kv_cache_memory_bytes: int | None = None
    assumptions: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Start:
    """A service on a GPU with the engine's defaults filled in.

    `context` means that the free memory was measured before the engine created its CUDA context; `warm` that this host
    has compiled this model with this release before.
    """

    service: VllmService
    gpu: Gpu
    rules: VllmRules
    shape: Shape
    dtype: str
    value_bytes: int
    legacy: bool
    second: bool
    length: int
    seqs: int
    tokens: int
    utilization: float
    context: bool
    warm: bool
    assumptions: tuple[str, ...]

    @property
    def in_flight(self) -> int:
        """Tokens that a sliding window keeps in addition to its own."""
        return self.tokens * self.rules.in_flight_batches

    @property
    def largest_graph(self) -> int:
        """Largest batch with a CUDA graph if the model sets its own (GptOss: 1024); 0: by the number of sequences."""
        return 1024 if self.shape.architecture.startswith("GptOss") and self.rules.since >= (0, 11, 0) else 0

    @property
    def uses_flashinfer(self) -> bool:
        """Whether attention uses FlashInfer: on Blackwell's large cards, and if FlashAttention has no FP8 cache.

        Source: vllm/platforms/cuda.py and v1/attention/backends/flash_attn.py of 0.20.0.
        """
        if any(group.kind == MLA for group in self.shape.groups):
            return False
        blackwell = 10 <= self.gpu.capability < 11
        return blackwell or (self.service.kv_cache_dtype.startswith("fp8") and not 9 <= self.gpu.capability < 10)

    def pool(self) -> Pool:
        service = self.service
        options = CacheOptions(
            service.tensor_parallel_size, service.pipeline_parallel_size,
            KV_BYTES.get(service.kv_cache_dtype, self.value_bytes), self.value_bytes, service.block_size,
            service.prefix_caching, self.shape.multimodal, service.drafted, service.draft_layers,
        )  # fmt: skip
        return cache_pool(self.shape.groups, self.rules, options)


def start_of(service: VllmService, gpu: Gpu, context: bool = True, warm: bool = False) -> Start:
    """Return the start with all defaults filled in. Raises PlanError for a value that vLLM would refuse."""
    validate(service)
    rules = vllm_rules(service.version)
    shape = with_quantization(service.shape, service.quantization, service.model)
    if service.language_model_only:
        shape = replace(shape, other_parameters=0, multimodal=False, encoder=None)
    dtype = service.dtype if service.dtype != "auto" else ("float16" if shape.dtype == "float32" else shape.dtype)
    assumptions = [*shape.assumptions, *service.assumptions]
    if parse_version(service.version) > NEWEST_READ:
        newest = ".".join(map(str, NEWEST_READ))
        assumptions.append(f"vLLM {service.version} is newer than the arithmetic known here ({newest})")
    legacy = rules.legacy == "always" or (rules.legacy == "old" and gpu.capability < 8.0)
    length = service.max_model_len or shape.max_position
    if not length:
        length = 8192
        assumptions.append("the model's longest text is not known: planned for 8192 tokens")
    seqs, tokens = default_batch(service, rules, gpu, legacy, length)
    return Start(
        service, gpu, rules, shape, dtype, weight_rules.dtype_bytes(dtype), legacy, on_second_runner(shape, rules),
        length, seqs, tokens, service.gpu_memory_utilization or rules.utilization, context, warm, tuple(assumptions),
    )  # fmt: skip


def default_batch(service: VllmService, rules: VllmRules, gpu: Gpu, legacy: bool, length: int) -> tuple[int, int]:
    """Return (max_num_seqs, max_num_batched_tokens) as the API server, or the LLM class, chooses them."""
    seqs, tokens = service.max_num_seqs, service.max_num_batched_tokens
    large = rules.large_batches and gpu.total >= 70 * GIB and "a100" not in gpu.name.lower()
    if tokens is None:
        if legacy:
            # Without chunked prefill the profile runs complete prompts; above 32768, chunked prefill is the default.
            tokens = 2048 if length > 32768 else max(length, 2048)
        elif service.offline:
            tokens = 16384 if large else 8192
        else:
            tokens = 16384 if gpu.total >= 160 * GIB and rules.in_flight_batches > 1 else 8192 if large else 2048
        if not legacy:
            tokens = min(tokens, (seqs or 1 << 20) * length)
    if seqs is None:
        seqs = min(1024 if large and not legacy else 256, tokens)
    return seqs, tokens


def on_second_runner(shape: Shape, rules: VllmRules) -> bool:
    """Return whether the version runs this model on its second model runner."""
    if rules.second_runner == "all":
        return True
    named = shape.architecture in rules.second_models and (rules.second_quantized or not shape.quantization)
    return named or (rules.second_runner == "dense" and not shape.moe and not shape.hybrid)


def validate(service: VllmService) -> None:
    """Raise PlanError with one sentence for each value that vLLM itself would refuse."""
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
