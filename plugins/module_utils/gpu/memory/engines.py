"""Facts about engines and cards, by version, with their sources.

vLLM: read in the Python sources of the released wheels named in `read_in`; the constants in bytes were checked
against public start-up logs (the table in data/gpu_memory).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from .errors import PlanError
from .figures import GIB


@dataclass(frozen=True)
class VllmRules:
    """How one range of vLLM versions budgets GPU memory. Bytes unless stated otherwise."""

    since: tuple[int, ...] = (0, 0, 0)
    read_in: str = ""
    utilization: float = 0.90  # default of gpu_memory_utilization
    start_check: bool = False  # refuses to start if free memory is below the requested share
    sampler_bytes: float = 38.3  # per 16-bit logit in the dummy sampling: sort, cumulative sum and draw in float32
    sampler_buffer: bool = False  # in addition, a kernel has a row of float32 logits for each multiprocessor
    sampler_low: float = 0.0  # the same if FlashInfer is installed and used by default
    legacy: str = "always"  # which GPUs run the V0 engine: always, old (compute capability under 8.0), never
    hybrid_groups: bool = False  # layers of different cache form share one pool of blocks
    group_padding: float = 1.0  # most layers of a kind over fewest: below it groups are as large as the most
    hybrid_prefix_caching: bool = False  # prefix caching is on for models with linear layers
    mamba_everywhere: bool = True  # prefix caching keeps Mamba-2's state at every block, not only at the last two
    mamba_state: int = 2  # bytes per value of Nemotron-H's state if its configuration does not set it
    tower_mamba_state: int = 0  # the same if the model also has towers; 0: the model's own type
    compile_benchmarks: bool = False  # a compilation runs kernels on arguments of their own, including the embedding
    graphs_profiled: bool = False  # CUDA graphs are captured once inside the profile and leave some memory in use
    fused_allreduce: bool = False  # with tensor parallelism Hopper and Blackwell reduce by FlashInfer's fused kernel
    graphs_counted: bool = False  # an estimate of the CUDA graphs is subtracted from the KV cache
    second_runner: str = ""  # models on the second model runner: "" none, named, dense (and the named), all
    second_models: frozenset[str] = frozenset()  # the named
    second_quantized: bool = False  # the named run on it if quantized, too
    second_graphs: bool = False  # the second runner estimates its CUDA graphs as well
    second_bytes: float = 4.0  # per logit in its dummy sampling
    tokens_by_concurrency: bool = False  # "GPU KV cache size" is concurrency times the longest request
    in_flight_batches: int = 1  # batches that a sliding window must keep at the same time
    counts_others: bool = False  # subtracts everything in use on the card, by any process, and the CUDA context
    counts_buffers: bool = False  # subtracts the decrease of free memory, so the runner's own buffers, too
    state_a_sequence: bool = False  # refuses if a model with linear layers has fewer blocks than sequences
    large_batches: bool = False  # cards of 70 GiB and more default to 1024 sequences, 8192 tokens
    length_message: str = "v1"


_SECOND_MOE = frozenset({"DeepseekV2ForCausalLM", "GraniteMoeForCausalLM", "Qwen2MoeForCausalLM"})
_SECOND_FIRST = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen3ForCausalLM"})

# Each entry has only what changed.
_VLLM_CHANGES: tuple[dict, ...] = (
    {"since": (0, 0, 0), "read_in": "start-up logs of 0.6.5 to 0.7.3", "length_message": "v0"},
    {
        "since": (0, 8, 0), "read_in": "vllm 0.8.5", "legacy": "old", "length_message": "v1", "counts_others": True,
        "sampler_low": 14.0,
    },
    {"since": (0, 8, 4), "read_in": "vllm 0.8.5", "large_batches": True},
    {"since": (0, 9, 0), "read_in": "start-up errors of 0.9.1", "start_check": True},
    {"since": (0, 9, 1), "read_in": "vllm 0.9.1, 0.11.0", "hybrid_groups": True, "counts_others": False},
    {"since": (0, 11, 0), "read_in": "vllm 0.11.0", "legacy": "never"},
    {"since": (0, 12, 0), "read_in": "vllm 0.12.0", "compile_benchmarks": True, "group_padding": 1.25},
    {"since": (0, 13, 0), "read_in": "vllm 0.13.0", "sampler_low": 0.0},
    # Top-k and top-p by an in-place kernel: the rest is the logits in two precisions, probabilities and noise.
    {
        "since": (0, 17, 0), "read_in": "vllm 0.17.0", "sampler_bytes": 14.0, "sampler_buffer": True,
        "fused_allreduce": True,
    },
    {"since": (0, 18, 0), "read_in": "vllm 0.18.0", "group_padding": 1.5, "graphs_profiled": True},
    {
        "since": (0, 20, 0), "read_in": "vllm 0.20.0", "utilization": 0.92, "graphs_counted": True,
        "state_a_sequence": True, "mamba_state": 4,
    },
    {"since": (0, 21, 0), "read_in": "vllm 0.23.0", "tokens_by_concurrency": True},
    {"since": (0, 23, 0), "read_in": "vllm 0.23.0", "second_runner": "named", "second_models": _SECOND_FIRST},
    {
        "since": (0, 24, 0), "read_in": "vllm 0.24.0", "second_models": _SECOND_FIRST | _SECOND_MOE,
        "second_quantized": True,
    },
    {"since": (0, 25, 0), "read_in": "vllm 0.25.1", "second_runner": "dense"},
    {"since": (0, 26, 0), "read_in": "vllm 0.26.0", "hybrid_prefix_caching": True},
    {
        "since": (0, 27, 0), "read_in": "vllm 0.27.0", "in_flight_batches": 2, "counts_buffers": True,
        "graphs_profiled": False,
    },
    {
        "since": (0, 28, 0), "read_in": "vllm 0.28.0",
        "second_models": _SECOND_MOE | {"DeepseekV4ForCausalLM", "KimiK3ForConditionalGeneration"},
        "mamba_everywhere": False, "tower_mamba_state": 4,
    },
    {"since": (0, 29, 0), "read_in": "vllm 0.29.0", "second_runner": "all", "second_graphs": True},
    # The dummy sampling runs once more with every parameter set, on logits in float32.
    {"since": (0, 33, 0), "read_in": "vllm 0.33.0", "second_bytes": 14.0},
)  # fmt: skip
NEWEST_READ = (0, 33, 0)  # the newest version whose source was read

MESSAGE_FREE = (
    "Free memory on device ({free}/{total} GiB) on startup is less than desired GPU memory utilization "
    "({utilization}, {asked} GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
)
MESSAGE_NO_BLOCKS = (
    "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the engine."
)
MESSAGE_SEQUENCES = (
    "max_num_seqs ({sequences}) exceeds available Mamba cache blocks ({blocks}). Each decode sequence requires one "
    "Mamba cache block, so CUDA graph capture cannot proceed. Please lower max_num_seqs to at most {blocks} or "
    "increase gpu_memory_utilization."
)
MESSAGE_CUDA_OOM = "CUDA out of memory: the weights and the KV cache as given take {needed} of {total} GiB."
MESSAGE_LENGTH = {
    "v0": (
        "The model's max seq len ({length}) is larger than the maximum number of tokens that can be stored in "
        "KV cache ({tokens}). Try increasing `gpu_memory_utilization` or decreasing `max_model_len` when "
        "initializing the engine."
    ),
    "v1": (
        "To serve at least one request with the model's max seq len ({length}), ({needed} GiB KV cache is needed, "
        "which is larger than the available KV cache memory ({available} GiB). Based on the available memory, the "
        "estimated maximum model length is {fitting}."
    ),
}
MESSAGE_OOM = "cudaMalloc failed: out of memory (allocating {size} MiB on device 0)"


def parse_version(text: str) -> tuple[int, int, int]:
    """Return (major, minor, patch) of `0.15.1`, `0.15.2rc1`, `0.8.x`. Raises PlanError if the text has no version."""
    # The only comparison of versions without the library packaging, which the system's Python of a host does not have.
    match = re.match(r"\s*v?(\d+)\.(\d+)(?:\.(\d+|x))?", str(text))
    if not match:
        raise PlanError(f"Engine version {text!r} is not a version such as 0.23.0: give the one that is installed.")
    patch = match.group(3)
    return int(match.group(1)), int(match.group(2)), 99 if patch == "x" else int(patch or 0)


def vllm_rules(version: str) -> VllmRules:
    """Return the rules of `version`."""
    wanted = parse_version(version)
    rules = VllmRules()
    for change in _VLLM_CHANGES:
        if change["since"] <= wanted:
            rules = replace(rules, **change)
    return rules


@dataclass(frozen=True)
class Card:
    """A GPU model: CUDA's total in GiB, nvidia-smi's memory.total in MiB, compute capability."""

    pattern: str
    cuda_gib: float
    smi_mib: int
    capability: float
    nvlink: bool = False  # the usual board links its GPUs directly
    processors: int = 0  # multiprocessors; 0: not listed


# Engines divide CUDA's figure; nvidia-smi adds what the driver keeps. Source: start-up logs and the vendor's
# specifications; the first matching pattern applies.
CARDS: tuple[Card, ...] = (
    Card(r"\bL40S?\b", 44.42, 46068, 8.9, processors=142),
    Card(r"\bA40\b", 44.34, 46068, 8.6, processors=84),
    Card(r"\bL4\b", 22.04, 23034, 8.9, processors=58),
    Card(r"\bT4\b", 14.56, 15360, 7.5, processors=40),
    Card(r"\bA10G?\b", 22.06, 23028, 8.6, processors=72),
    Card(r"\bA30\b", 23.5, 24576, 8.0, processors=56),
    Card(r"A100.*40", 39.39, 40960, 8.0, True, processors=108),
    Card(r"A100", 79.25, 81920, 8.0, True, processors=108),
    Card(r"H100 NVL", 93.11, 95830, 9.0, processors=132),
    Card(r"H100", 79.18, 81559, 9.0, True, processors=132),
    Card(r"H200", 139.8, 143771, 9.0, True, processors=132),
    Card(r"B200", 178.36, 183359, 10.0, True, processors=148),
    Card(r"V100.*16", 15.77, 16384, 7.0, True, processors=80),
    Card(r"V100", 31.74, 32768, 7.0, True, processors=80),
    Card(r"Turing", 14.56, 15360, 7.5),
    Card(r"PRO 6000", 94.97, 97887, 12.0, processors=188),
    Card(r"\bA5000\b", 23.56, 24564, 8.6, processors=64),
    Card(r"\bA6000\b", 47.4, 49140, 8.6, processors=84),
    Card(r"6000 Ada", 47.4, 49140, 8.9, processors=142),
    Card(r"5090", 31.36, 32607, 12.0, processors=170),
    Card(r"5080|5070 Ti", 15.47, 16303, 12.0),
    Card(r"4090", 23.53, 24564, 8.9, processors=128),
    Card(r"4080", 15.6, 16376, 8.9),
    Card(r"4060 Ti", 15.6, 16380, 8.9),
    Card(r"4050", 5.78, 6141, 8.9),
    Card(r"3090", 23.57, 24576, 8.6, processors=82),
    Card(r"3060", 11.63, 12288, 8.6, processors=28),
    Card(r"2080 Ti", 10.75, 11264, 7.5, processors=68),
    Card(r"2060", 11.63, 12288, 7.5),
)


# What the driver keeps of a card's memory: about 470 MiB, less on small cards (from the figures above).
RESERVED_MIB, RESERVED_SHARE = 470, 0.035


def cuda_mib(smi_mib: float) -> float:
    """Return CUDA's total of a card that is not in the list, from the total that nvidia-smi shows."""
    return smi_mib - min(RESERVED_MIB, RESERVED_SHARE * smi_mib)


# Compute capability by name, for a card that is not in the list: it decides the engine of old versions.
_CAPABILITIES = (
    (r"RTX PRO|\b50[5-9]0\b|GB10|Thor", 12.0), (r"\bB[23]00|GB[23]00", 10.0), (r"\bH[128]0{1,2}\b|H800|GH200", 9.0),
    (r"\b40[5-9]0\b|Ada\b|\bL\d", 8.9), (r"\b30[5-9]0\b|RTX A\d|Orin|\bA[12]\d?\b", 8.6),
    (r"\b20[6-8]0\b|16[56]0|Quadro RTX|TITAN RTX|Turing", 7.5), (r"V100|Volta|TITAN V", 7.0),
    (r"\bP(4|40|100)\b|\b10[5-8]0\b", 6.1),
)  # fmt: skip


def capability(name: str) -> float:
    """Return the compute capability of a GPU by its name; 8.0 for an unknown name."""
    known = card(name)
    if known:
        return known.capability
    return next((value for pattern, value in _CAPABILITIES if re.search(pattern, name or "", re.IGNORECASE)), 8.0)


def card(name: str) -> Card | None:
    """Return the card of a GPU's name, None for an unknown one."""
    for entry in CARDS:
        if re.search(entry.pattern, name or "", re.IGNORECASE):
            return entry
    return None


@dataclass(frozen=True)
class Gpu:
    """One GPU as CUDA sees it, in bytes. `free` is None if it was not measured."""

    name: str
    total: int
    free: int | None = None
    capability: float = 8.0
    note: str = ""

    @property
    def nvlink(self) -> bool:
        known = card(self.name)
        return bool(known and known.nvlink)

    @property
    def processors(self) -> int:
        """Multiprocessors; 84, a middle value, for a card that is not listed."""
        known = card(self.name)
        return known.processors if known and known.processors else 84


# What a process's own CUDA context takes from free memory before the engine measures it (start-up logs: 0.06 to
# 0.56 GiB).
CONTEXT_BYTES = (int(0.22 * GIB), int(0.06 * GIB), int(0.56 * GIB))
# The first V1 workers subtracted the context from the KV memory as well: a start of 0.9.0.1 on an A100 of 39.56 GiB had
# 0.65 GiB in addition to weights and activation (ghindex-file:29268111332). Launchers often forced the older engine,
# which did not subtract it.
CONTEXT_COUNTED = (0, 0, int(0.60 * GIB))
# GiB in addition to torch's own: value, low, high. Logs of one GPU; includes the runner's slack since free memory
# decides.
OVERHEAD = (0.09, 0.01, 0.30)
# More if CUDA graphs are captured inside the profile: 0.25 in total from 0.18 on, 0.13 before (F010 to F013, one H100).
OVERHEAD_GRAPHS = (0.12, 0.0, 0.25)
OVERHEAD_BUFFERS = {True: (0.27, 0.05, 0.60), False: (0.42, 0.15, 0.75)}  # second runner (without its tables), first
# More on several GPUs: NCCL alone (0.20 to 0.30 in total on 2080 Ti, 3090, 4090, L40S), and with NVLink (0.54, H100).
OVERHEAD_SEVERAL = {False: (0.15, 0.05, 0.60), True: (0.42, 0.10, 0.80)}
# More for a mixture of experts in NVFP4 on Blackwell: the code of FlashInfer's kernels, which stays on the card (vllm
# pull request 49892; the excess of four starts on two RTX 5090: F026, F028, F045, F046).
OVERHEAD_NVFP4 = (1.35, 0.40, 1.90)
# With the fused reduction (2.06 to 2.13 GiB in total, two and four H100 of 0.19.0: F002, F003, F005).
OVERHEAD_FUSED = (1.80, 0.40, 2.20)
# The same since buffers count: 1.70 GiB in total with four GPUs, 1.74 with eight (ghindex-file:57923772900,
# 70265431125).
OVERHEAD_SEVERAL_BUFFERS = (1.20, 0.10, 1.50)
# FlashInfer's attention has a workspace (VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE), cuBLAS its own (PyTorch).
FLASHINFER_WORKSPACE = 394 << 20
CUBLAS_WORKSPACE = {True: 32 << 20, False: 8 << 20}  # Hopper and later, earlier cards
# What an engine holds beyond its budget while it serves: context, kernels, allocator slack.
BEYOND_BUDGET = (int(0.65 * GIB), int(0.20 * GIB), int(1.10 * GIB))
LLAMACPP_CONTEXT = (380 << 20, 300 << 20, 460 << 20)
