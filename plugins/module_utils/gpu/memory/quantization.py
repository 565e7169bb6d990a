"""How weights are stored: bits per value, and which parts of a model a method keeps in the model's own type."""

from __future__ import annotations

import re

from .errors import PlanError

# quantization method -> bits per weight in the linear layers, including scales
QUANTIZED_BITS = {
    "awq": 4.16, "awq_marlin": 4.16, "gptq": 4.16, "gptq_marlin": 4.16, "auto-round": 4.16, "autoround": 4.16,
    "auto_round": 4.16, "bitsandbytes": 4.13, "bnb": 4.13, "fp8": 8.02, "fbgemm_fp8": 8.02, "ptpc_fp8": 8.02,
    "fp8_per_tensor": 8.02, "fp8_per_block": 8.02, "int8": 8.1, "mxfp4": 4.25, "gpt_oss_mxfp4": 4.25, "mxfp8": 8.25,
    "nvfp4": 4.5, "modelopt": 8.02, "modelopt_fp4": 4.5, "compressed-tensors": 8.02, "w4a16": 4.16, "wna16": 4.16,
    "w8a8": 8.02, "w8a16": 8.1, "marlin": 4.16, "hqq": 4.5, "torchao": 8.02, "experts_int8": 8.1, "gguf": 4.85,
    "quark": 8.02,
}  # fmt: skip

# Quantization in a GGUF file's name -> bits per weight (llama.cpp's block sizes; K mixes on average)
GGUF_BITS = {
    "q8_0": 8.5, "q6_k": 6.56, "q5_k": 5.7, "q5_1": 6.0, "q5_0": 5.5, "q4_k": 4.85, "q4_1": 5.0, "q4_0": 4.5,
    "iq4": 4.4, "q3_k": 3.9, "iq3": 3.5, "q2_k": 3.0, "iq2": 2.5, "bf16": 16, "f16": 16,
}  # fmt: skip
FINE_BITS = 4.65  # four bits in groups of 32 with their scales and zero points: the maximum of a four-bit method
GROUP_32_BITS = 4.5  # four bits in groups of 32: the target of quantization-aware training (GGUF's Q4_0)

# The parts of a model that a method may leave unquantized, and a module of each as configurations name it.
ATTENTION, LINEAR_PART, DENSE, SHARED, EXPERTS = "attention", "linear", "dense", "shared", "experts"
_MODULES = {
    ATTENTION: ("model.layers.0.self_attn.o_proj", "model.language_model.layers.0.self_attn.o_proj"),
    LINEAR_PART: (
        "model.layers.0.linear_attn.out_proj", "model.language_model.layers.0.linear_attn.out_proj",
        "backbone.layers.0.mixer.out_proj",
    ),
    DENSE: ("model.layers.0.mlp.down_proj", "model.language_model.layers.0.mlp.down_proj"),
    SHARED: (
        "model.layers.0.mlp.shared_expert.down_proj", "model.language_model.layers.0.mlp.shared_expert.down_proj",
        "model.layers.0.mlp.shared_experts.down_proj", "backbone.layers.0.mixer.shared_experts.down_proj",
    ),
}  # fmt: skip
_LLM_COMPRESSOR = ("redhatai/", "neuralmagic/", "nm-testing/", "inferact/")  # owners who quantize with it
BESIDE_EXPERTS = frozenset({ATTENTION, LINEAR_PART, DENSE, SHARED})


def quantized_bits(method: str, config: dict | None = None) -> float:
    """Return the bits of a linear weight under a method, from the configuration's own bits if it has them."""
    config = config or {}
    bits, group, zero_points = config.get("bits") or config.get("w_bit"), config.get("group_size"), True
    if config.get("load_in_4bit") or config.get("_load_in_4bit"):
        bits = 4
    groups = config.get("config_groups")
    if isinstance(groups, dict) and groups:
        weights = (next(iter(groups.values())) or {}).get("weights") or {}
        bits, group = weights.get("num_bits") or bits, weights.get("group_size") or group
        zero_points = weights.get("symmetric") is False
    if isinstance(bits, int | float) and 0 < bits < 16:
        if bits > 4:
            return bits + 0.02
        group = group if isinstance(group, int) and group > 0 else 128
        # A scale of 16 bits per group (of 8 in NVFP4's groups of 16), and a zero point of the weights' own bits.
        return bits + (8 if group <= 16 else 16 + (bits if zero_points else 0)) / group
    key = method.lower().replace("_4bit", "")
    if key not in QUANTIZED_BITS:
        raise PlanError(
            f"Quantization {method} is not known to this planner: name one of {', '.join(sorted(QUANTIZED_BITS))}."
        )
    return QUANTIZED_BITS[key]


def kept_parts(config: dict) -> frozenset[str]:
    """Return the parts that a `quantization_config` keeps in the model's own type, by its list of modules."""
    patterns = [
        pattern
        for key in ("ignore", "exclude_modules", "modules_to_not_convert")
        for pattern in config.get(key) or []
        if isinstance(pattern, str)
    ]
    return frozenset(
        part for part, modules in _MODULES.items() if any(_matches(p, m) for p in patterns for m in modules)
    )


def _matches(pattern: str, module: str) -> bool:
    """Return whether a pattern of a configuration matches a module: `re:…`, a word with stars, or a module's name."""
    if pattern.startswith("re:"):
        try:
            return re.match(pattern[3:], module) is not None
        except re.error:
            return False
    pattern = re.sub(r"\.\d+(?=\.|$)", ".0", pattern)
    if "*" in pattern:
        return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), module) is not None
    return module == pattern or module.startswith(pattern + ".") or f".{pattern}." in f".{module}."


def usually_kept(method: str, experts: bool, name: str = "") -> frozenset[str]:
    """Return the same for a model without such a configuration: what the methods' tools do.

    MXFP4 and, in mixtures, NVFP4 quantize the experts. NVFP4 made by llm-compressor leaves linear attention
    unquantized, ModelOpt's only its convolution (default_disabled_quantizer_cfg). BF16 in a name next to another type
    means that the linear layers keep it. AWQ as compressed tensors leaves a mixture's other feed-forwards unquantized.
    """
    method = method.lower()
    if method.endswith("mxfp4") or (experts and method in ("nvfp4", "modelopt_fp4")):
        return BESIDE_EXPERTS
    if experts and is_fine_awq(method, name):
        return BESIDE_EXPERTS - {ATTENTION}
    compressed = method == "nvfp4" and name.lower().startswith(_LLM_COMPRESSOR)
    if compressed or (method and "bf16" in name.lower()):
        return frozenset({LINEAR_PART})
    return frozenset()


def is_fine_awq(method: str, name: str) -> bool:
    """Return whether a model is AWQ stored as compressed tensors, whose tools use groups of 32."""
    return method in ("w4a16", "wna16", "compressed-tensors") and "awq" in name.lower()
