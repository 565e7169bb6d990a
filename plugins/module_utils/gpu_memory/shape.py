"""The shape of a model: what decides the bytes of its weights and of its KV cache."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace

from .errors import PlanError

MOST_LAYERS = 2000  # more is a damaged file, and would be counted one by one

FULL, SLIDING, LINEAR, MLA = "full", "sliding", "linear", "mla"

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "half": 2, "float32": 4, "float": 4, "float8": 1}

# Architectures whose arithmetic follows the fields read below. Another one is planned as grouped-query
# attention with a wider range, and the plan says so.
KNOWN_ARCHITECTURES = frozenset(
    {
        "ArceeForCausalLM", "Cohere2ForCausalLM", "CohereForCausalLM", "DeepseekV2ForCausalLM",
        "DeepseekV32ForCausalLM", "DeepseekV3ForCausalLM", "Exaone4ForCausalLM", "ExaoneForCausalLM",
        "GPT2LMHeadModel", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration",
        "Gemma4ForCausalLM", "Gemma4ForConditionalGeneration", "GemmaForCausalLM", "Glm4ForCausalLM",
        "GlmForCausalLM", "GlmMoeDsaForCausalLM", "GptOssForCausalLM", "GraniteForCausalLM", "GraniteMoeForCausalLM",
        "InternLM2ForCausalLM", "KimiK25ForConditionalGeneration", "Llama4ForConditionalGeneration",
        "LlamaForCausalLM", "MiMoForCausalLM", "MiniMaxM2ForCausalLM", "Mistral3ForConditionalGeneration",
        "MistralForCausalLM", "MixtralForCausalLM", "OPTForCausalLM", "Olmo2ForCausalLM", "OlmoForCausalLM",
        "Phi3ForCausalLM", "PhiForCausalLM", "Qwen2ForCausalLM", "Qwen2MoeForCausalLM",
        "Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration", "Qwen3ForCausalLM",
        "Qwen3MoeForCausalLM", "Qwen3NextForCausalLM", "Qwen3VLForConditionalGeneration",
        "Qwen3VLMoeForConditionalGeneration", "Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForConditionalGeneration",
        "SmolLM3ForCausalLM", "StableLmForCausalLM", "Starcoder2ForCausalLM",
    }
)  # fmt: skip

# quantization method -> bits a weight takes in the linear layers, scales included
QUANTIZED_BITS = {
    "awq": 4.16, "awq_marlin": 4.16, "gptq": 4.16, "gptq_marlin": 4.16, "auto-round": 4.16, "autoround": 4.16,
    "auto_round": 4.16, "bitsandbytes": 4.13, "bnb": 4.13, "fp8": 8.02, "fbgemm_fp8": 8.02, "ptpc_fp8": 8.02,
    "fp8_per_tensor": 8.02, "fp8_per_block": 8.02, "int8": 8.1, "mxfp4": 4.25, "gpt_oss_mxfp4": 4.25, "mxfp8": 8.25,
    "nvfp4": 4.5, "modelopt": 8.02, "modelopt_fp4": 4.5, "compressed-tensors": 8.02, "w4a16": 4.16, "wna16": 4.16,
    "w8a8": 8.02, "w8a16": 8.1, "marlin": 4.16, "hqq": 4.5, "torchao": 8.02, "experts_int8": 8.1, "gguf": 4.85,
    "quark": 8.02,
}  # fmt: skip

# What a GGUF file's name says it is quantized to -> bits a weight takes (llama.cpp's block sizes; K mixes on average)
GGUF_BITS = {
    "q8_0": 8.5, "q6_k": 6.56, "q5_k": 5.7, "q5_1": 6.0, "q5_0": 5.5, "q4_k": 4.85, "q4_1": 5.0, "q4_0": 4.5,
    "iq4": 4.4, "q3_k": 3.9, "iq3": 3.5, "q2_k": 3.0, "iq2": 2.5, "bf16": 16, "f16": 16,
}  # fmt: skip

# field -> the names configurations give it, first match wins
_ALIASES = {
    "layers": ("num_hidden_layers", "num_layers", "n_layer", "n_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model", "dim"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "vocab": ("vocab_size", "padded_vocab_size"),
}
_OPTIONAL = {
    "kv_heads": ("num_key_value_heads", "multi_query_group_num", "num_kv_heads", "n_kv_heads"),
    "intermediate": ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner", "ffn_hidden_size"),
    "max_position": ("max_position_embeddings", "max_sequence_length", "seq_length", "n_positions", "model_max_length"),
}
_TOP_K = ("num_experts_per_tok", "top_k_experts", "moe_topk")


@dataclass(frozen=True)
class LayerGroup:
    """Layers whose cache has the same form; widths in values a token, `state` in bytes a request."""

    kind: str
    count: int
    kv_heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    window: int = 0
    state: int = 0

    def token_bytes(self, tp: int, bytes_per_value: float) -> float:
        """Cache bytes of one token in one of these layers on one of `tp` GPUs."""
        if self.kind == LINEAR:
            return 0
        if self.kind == MLA:
            return (self.key_dim + self.value_dim) * bytes_per_value
        return max(1, self.kv_heads // tp) * (self.key_dim + self.value_dim) * bytes_per_value


@dataclass(frozen=True)
class Encoder:
    """A tower that reads images: its layers, and how many patches the engine reads at start at the most."""

    layers: int
    width: int
    intermediate: int
    matrices: int = 2  # of a feed-forward: 2, or 3 with a gate
    patches: int = 0  # 0: not known, the engine's profile of images is only in the range

    def parameters(self, hidden: int) -> float:
        """Weights of the tower and of the merger into a model `hidden` wide (four patches make a token)."""
        layer = 4 * self.width**2 + self.matrices * self.width * self.intermediate
        merged = 4 * self.width if self.patches else self.width
        return self.layers * layer + merged * (merged + hidden)

    def activation(self, hidden: int, value_bytes: int) -> float:
        """Bytes at the peak of reading as many patches, the tokens made of them included."""
        wide = self.matrices * self.intermediate + 4 * self.width
        return (self.patches * wide + self.patches / 4 * hidden) * value_bytes


# The vision towers by the architecture's name, where a table of models does not tell them (published configurations).
# Qwen's read an image of 16384 tokens at start, four patches each (preprocessor_config.json: the largest image).
_QWEN_PATCHES = 16384 * 4
_ENCODERS = (
    ("Qwen2VL", Encoder(32, 1280, 5120, 2, _QWEN_PATCHES)), ("Qwen2_5_VL", Encoder(32, 1280, 3420, 3, _QWEN_PATCHES)),
    ("Qwen3VL", Encoder(27, 1152, 4304, 2, _QWEN_PATCHES)), ("Qwen3_5", Encoder(27, 1152, 4304, 2, _QWEN_PATCHES)),
    ("Gemma3ForConditional", Encoder(27, 1152, 4304)), ("Mistral3", Encoder(24, 1024, 4096, 3)),
)  # fmt: skip


def encoder_of(architecture: str, vision: dict) -> Encoder | None:
    """The tower that a configuration's `vision_config` describes, or the architecture is known for."""
    usual = next((entry for prefix, entry in _ENCODERS if architecture.startswith(prefix)), None)
    layers = vision.get("depth") or vision.get("num_hidden_layers")
    width = vision.get("embed_dim") or vision.get("hidden_size")
    wide = vision.get("intermediate_size") or (width or 0) * (vision.get("mlp_ratio") or 4)
    if not all(isinstance(x, int | float) and x > 0 for x in (layers, width, wide)):
        return usual
    matrices, patches = (usual.matrices, usual.patches) if usual else (2, 0)
    return Encoder(int(layers), int(width), int(wide), matrices, patches)


@dataclass(frozen=True)
class Shape:
    """A model's dimensions. `quantization` is "" for plain weights; `bits` what a linear weight takes."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    groups: tuple[LayerGroup, ...]
    dtype: str = "bfloat16"
    quantization: str = ""
    bits: float = 16
    max_position: int = 0
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    layer_input: int = 0  # width of per-layer embeddings (Gemma's E models)
    wide_layers: int = 0  # layers whose feed-forward is twice as wide
    wider_heads: int = 0  # what the heads of full layers are wider by, over all such layers
    other_parameters: float = 0  # towers beside the language model
    multimodal: bool = False
    encoder: Encoder | None = None
    known: bool = True
    assumptions: tuple[str, ...] = field(default=())

    @property
    def moe(self) -> bool:
        return self.experts > 1

    @property
    def hybrid(self) -> bool:
        return any(group.kind == LINEAR for group in self.groups)

    def linear_parameters(self) -> float:
        """Weights in the layers' matrices, the part that quantization shrinks."""
        attention = self.hidden * self.heads * self.head_dim * 2 + 2 * self.hidden * self.kv_heads * self.head_dim
        if any(group.kind == MLA for group in self.groups):
            # Low-rank projections: query 1536 wide and kv as the cache, after DeepSeek-V2's published form.
            rank = self.groups[0].key_dim
            attention = self.hidden * (1536 + rank) + self.heads * self.head_dim * (1536 * 1.5 + 2 * rank + self.hidden)
        dense = 3 * self.hidden * self.intermediate
        if self.moe and self.expert_intermediate:
            dense = 3 * self.hidden * (self.experts * self.expert_intermediate + self.shared_intermediate)
        wider = 2 * self.hidden * (self.heads + self.kv_heads) * self.wider_heads
        return self.layers * (attention + dense) + self.wide_layers * dense + wider

    def expert_parameters(self, tp: int = 0) -> float:
        """The part of the linear parameters that sits in experts; with `tp`, as they are kept on that many GPUs."""
        hidden, wide = self.hidden, self.expert_intermediate
        if tp and self.quantization.endswith("mxfp4"):
            # Kernels want whole tiles: gpt-oss-20b's 2880 becomes 3072 and 2944, 13.72 GiB instead of 12.8.
            hidden, wide = _round_up(hidden, 256), _round_up(math.ceil(wide / tp), 128) * tp
        return self.layers * 3.0 * hidden * self.experts * wide if self.moe else 0.0

    def weight_bytes(self, plain: int, tp: int = 1, ep: int | None = None) -> float:
        """Bytes of all weights on one of `tp` GPUs, experts spread over `ep`; unquantized values take `plain` bytes."""
        quantized = self.bits / 8 if self.quantization else plain
        rest = self.linear_parameters() - self.expert_parameters()
        experts = self.expert_parameters(tp)
        # MXFP4 checkpoints keep everything beside the experts in the model's own type.
        rest *= plain if self.quantization.endswith("mxfp4") and experts else quantized
        # A GGUF file holds its embeddings quantized, and they stay so.
        rest += self.embedding_parameters() * (quantized if self.quantization == "gguf" else plain)
        return rest / tp + experts * quantized / (ep or tp)

    def embedding_parameters(self) -> float:
        """Weights of embeddings, output head and towers: they keep the model's type."""
        heads = 1 if self.tied else 2
        per_layer = self.layers * self.layer_input * (self.vocab + 3 * self.hidden)  # table, gates and projection
        tower = self.encoder.parameters(self.hidden) if self.encoder else 0
        return self.vocab * self.hidden * heads + per_layer + (self.other_parameters or tower)


def quantized_bits(method: str, config: dict | None = None) -> float:
    """Bits a linear weight takes under a method, by the configuration's own bits where it has them."""
    config = config or {}
    bits = config.get("bits") or config.get("w_bit")
    if config.get("load_in_4bit") or config.get("_load_in_4bit"):
        bits = 4
    groups = config.get("config_groups")
    if isinstance(groups, dict) and groups:
        first = next(iter(groups.values()))
        bits = ((first or {}).get("weights") or {}).get("num_bits") or bits
    if isinstance(bits, int | float) and 0 < bits < 16:
        return bits + (20 / (config.get("group_size") or 128) if bits <= 4 else 0.02)
    key = method.lower().replace("_4bit", "")
    if key not in QUANTIZED_BITS:
        raise PlanError(
            f"Quantization {method} is not known to this planner: name one of {', '.join(sorted(QUANTIZED_BITS))}."
        )
    return QUANTIZED_BITS[key]


def _pick(config: dict, names: tuple[str, ...]):
    for name in names:
        if config.get(name) is not None:
            return config[name]
    return None


def shape_from_config(config: dict, label: str) -> Shape:
    """The shape in a `config.json`; `label` names the model in errors."""
    text = config
    for key in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(key), dict) and _pick(config[key], _ALIASES["layers"]):
            text = {**{k: v for k, v in config.items() if k in ("torch_dtype", "dtype")}, **config[key]}
            break
    numbers, missing = {}, []
    for name, aliases in _ALIASES.items():
        value = _pick(text, aliases)
        if not isinstance(value, int) or value < 1:
            missing.append(aliases[0])
        numbers[name] = value
    if missing:
        raise PlanError(
            f"config.json of {label} lacks {', '.join(missing)}: it is not a language model's configuration."
        )
    if numbers["layers"] > MOST_LAYERS:
        raise PlanError(f"config.json of {label} has {numbers['layers']} layers: it is damaged, download it again.")
    optional = {name: _pick(text, aliases) for name, aliases in _OPTIONAL.items()}
    heads = numbers["heads"]
    kv_heads = optional["kv_heads"] or heads
    if isinstance(kv_heads, list):
        kv_heads = max(kv_heads)
    head_dim = text.get("head_dim") or numbers["hidden"] // heads
    architecture = (config.get("architectures") or ["unknown"])[0]
    assumptions = []
    known = architecture in KNOWN_ARCHITECTURES
    if not known:
        assumptions.append(
            f"architecture {architecture} has not been seen: planned as grouped-query attention with a wider range"
        )
    quantization, bits = _quantization(config, text)
    intermediate = optional["intermediate"] or 4 * numbers["hidden"]
    if isinstance(intermediate, list):
        intermediate = max(intermediate)
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    if tied is None:
        tied = architecture.startswith(("Gemma", "Cohere"))
    experts = int(_pick(text, ("num_experts", "num_local_experts", "n_routed_experts")) or 0)
    expert_width = int(text.get("moe_intermediate_size") or (intermediate if experts else 0))
    shared = int(text.get("shared_expert_intermediate_size") or 0)
    shared += int(text.get("n_shared_experts") or 0) * expert_width
    return Shape(
        architecture=architecture,
        layers=numbers["layers"], hidden=numbers["hidden"], heads=heads, kv_heads=kv_heads, head_dim=head_dim,
        intermediate=intermediate, vocab=numbers["vocab"], tied=bool(tied),
        groups=layer_groups(text, architecture, numbers["layers"], kv_heads, head_dim),
        dtype=str(_pick(text, ("dtype", "torch_dtype")) or "bfloat16"),
        quantization=quantization, bits=bits, max_position=int(_context_length(text, optional["max_position"])),
        experts=experts, expert_intermediate=expert_width, shared_intermediate=shared,
        experts_per_token=int(_pick(text, _TOP_K) or (2 if experts else 0)),
        layer_input=int(text.get("hidden_size_per_layer_input") or 0),
        wide_layers=int(text.get("num_kv_shared_layers") or 0) if text.get("use_double_wide_mlp") else 0,
        wider_heads=_wider_heads(text, architecture, numbers["layers"], head_dim),
        multimodal=any(key in config for key in ("vision_config", "audio_config")),
        encoder=encoder_of(architecture, config["vision_config"])
        if isinstance(config.get("vision_config"), dict)
        else None,
        known=known, assumptions=tuple(assumptions),
    )  # fmt: skip


def _context_length(text: dict, positions) -> float:
    """The length the engine derives: the positions, stretched where rope scaling says so."""
    length = positions or 0
    scaling = text.get("rope_scaling") or {}
    if isinstance(scaling, dict):
        kind = scaling.get("rope_type") or scaling.get("type") or ""
        if kind == "yarn" and scaling.get("original_max_position_embeddings"):
            return scaling["original_max_position_embeddings"] * float(scaling.get("factor", 1))
        if kind in ("linear", "dynamic"):
            return length * float(scaling.get("factor", 1))
    return length


def _quantization(config: dict, text: dict) -> tuple[str, float]:
    found = config.get("quantization_config") or text.get("quantization_config") or config.get("compression_config")
    if not isinstance(found, dict):
        return "", 16
    method = str(found.get("quant_method") or found.get("quant_algo") or "")
    return method, quantized_bits(method, found) if method else 16


def _layer_kinds(text: dict, architecture: str, layers: int) -> list[str]:
    """One kind a layer, as the configuration says or as the architecture is known to do."""
    named = text.get("layer_types") or text.get("layers_block_type")
    if isinstance(named, list) and len(named) == layers:
        kinds = []
        for kind in named:
            kinds.append(SLIDING if "sliding" in kind else LINEAR if kind.startswith(("linear", "mamba")) else FULL)
        return kinds
    interval = text.get("full_attention_interval")
    if isinstance(interval, int) and interval > 1:
        return [FULL if (i + 1) % interval == 0 else LINEAR for i in range(layers)]
    window = text.get("sliding_window")
    if not window or text.get("use_sliding_window") is False:
        return [FULL] * layers
    pattern = text.get("sliding_window_pattern") or text.get("_sliding_window_pattern")
    if isinstance(pattern, str) and set(pattern) <= {"L", "G"} and pattern:
        return [SLIDING if pattern[i % len(pattern)] == "L" else FULL for i in range(layers)]
    if not isinstance(pattern, int) or pattern < 2:
        pattern = 2 if architecture.startswith("Gemma2") else 6 if architecture.startswith("Gemma3") else 0
    if pattern:
        return [FULL if (i + 1) % pattern == 0 else SLIDING for i in range(layers)]
    if architecture.startswith(("Phi3", "Qwen2", "Qwen3")) and not text.get("use_sliding_window"):
        return [FULL] * layers
    return [SLIDING] * layers


def _wider_heads(text: dict, architecture: str, layers: int, head_dim: int) -> int:
    """Head width that full layers have beyond the others', summed over them."""
    wide = int(text.get("global_head_dim") or head_dim)
    return (wide - head_dim) * _layer_kinds(text, architecture, layers).count(FULL) if wide > head_dim else 0


def layer_groups(text: dict, architecture: str, layers: int, kv_heads: int, head_dim: int) -> tuple[LayerGroup, ...]:
    """The layers' caches by form, in order of first appearance."""
    if text.get("kv_lora_rank"):
        return (LayerGroup(MLA, layers, 1, int(text["kv_lora_rank"]), int(text.get("qk_rope_head_dim") or 64)),)
    kinds = _layer_kinds(text, architecture, layers)
    # The last layers of Gemma's E models read the cache of earlier ones.
    kinds = kinds[: layers - int(text.get("num_kv_shared_layers") or 0)]
    window = int(text.get("sliding_window") or 0)
    value_dim = int(text.get("v_head_dim") or head_dim)
    groups = []
    for kind in dict.fromkeys(kinds):
        count = kinds.count(kind)
        if kind == LINEAR:
            groups.append(LayerGroup(LINEAR, count, state=_linear_state(text)))
        elif kind == FULL and text.get("global_head_dim"):
            wide = int(text["global_head_dim"])
            wide_heads = int(text.get("num_global_key_value_heads") or kv_heads)
            groups.append(LayerGroup(FULL, count, wide_heads, wide, wide))
        else:
            groups.append(LayerGroup(kind, count, kv_heads, head_dim, value_dim, window if kind == SLIDING else 0))
    return tuple(groups)


def _linear_state(text: dict) -> int:
    """Bytes of one layer's recurrent state a request (gated delta net: convolution and matrix state)."""
    key_heads, value_heads = int(text.get("linear_num_key_heads") or 16), int(text.get("linear_num_value_heads") or 32)
    key_dim, value_dim = int(text.get("linear_key_head_dim") or 128), int(text.get("linear_value_head_dim") or 128)
    width = 2 * key_heads * key_dim + value_heads * value_dim
    return width * (int(text.get("linear_conv_kernel_dim") or 4) - 1) * 2 + value_heads * key_dim * value_dim * 4


def shape_from_gguf(metadata: dict, tensors: dict, label: str) -> Shape:
    """The shape in a GGUF file's metadata; `label` names the file in errors."""
    arch = metadata.get("general.architecture")
    if not arch:
        raise PlanError(f"{label} has no general.architecture: it is not a language model's GGUF file.")

    def get(key: str, default=None):
        return metadata.get(f"{arch}.{key}", default)

    missing = [key for key in ("block_count", "embedding_length", "attention.head_count") if not get(key)]
    if missing:
        raise PlanError(f"{label} lacks {', '.join(f'{arch}.{key}' for key in missing)}: convert the model again.")
    layers, hidden = int(get("block_count")), int(get("embedding_length"))
    if layers > MOST_LAYERS:
        raise PlanError(f"{label} has {layers} layers: it is damaged, download it again.")
    heads = get("attention.head_count")
    heads = max(heads) if isinstance(heads, list) else int(heads)
    per_layer = get("attention.head_count_kv", heads)
    kv_list = [int(x) for x in per_layer] if isinstance(per_layer, list) else [int(per_layer)] * layers
    key_dim = int(get("attention.key_length", hidden // heads))
    value_dim = int(get("attention.value_length", key_dim))
    window = int(get("attention.sliding_window", 0) or 0)
    vocab = int(get("vocab_size", 0) or len(metadata.get("tokenizer.ggml.tokens", [])) or 0)
    if not vocab and "token_embd.weight" in tensors:
        vocab = tensors["token_embd.weight"].shape[0]
    # Every n-th layer of these families looks at the whole text.
    pattern = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2, "cohere2": 4, "exaone4": 4}.get(arch, 0) if window else 0
    groups = []
    attention = [i for i in range(layers) if kv_list[i]]
    full = [i for i in attention if not pattern or (i + 1) % pattern == 0]
    if arch == "gpt-oss" and window:
        full = [i for i in attention if i % 2]
    if full:
        groups.append(LayerGroup(FULL, len(full), max(kv_list), key_dim, value_dim))
    if len(full) < len(attention):
        groups.append(LayerGroup(SLIDING, len(attention) - len(full), max(kv_list), key_dim, value_dim, window))
    return Shape(
        architecture=arch, layers=layers, hidden=hidden, heads=heads, kv_heads=max(kv_list), head_dim=key_dim,
        intermediate=int(_first(get("feed_forward_length", 4 * hidden))), vocab=vocab,
        tied="output.weight" not in tensors, groups=tuple(groups), max_position=int(get("context_length", 0) or 0),
        experts=int(get("expert_count", 0) or 0), experts_per_token=int(get("expert_used_count", 0) or 0),
    )  # fmt: skip


def _first(value):
    return max(value) if isinstance(value, list) else value


def _round_up(value: int, step: int) -> int:
    return math.ceil(value / step) * step


def _number(text) -> int:
    match = re.match(r"\d+", str(text or ""))
    return int(match.group()) if match else 0


def shape_from_row(row: dict) -> Shape | None:
    """The shape in a row of `model_configs.csv`, None where the row has too few figures.

    `other_layers` reads like `sliding_attention:25`; `notes` may carry further configuration fields as `name=value`.
    """
    layers, hidden = _number(row.get("num_hidden_layers")), _number(row.get("hidden_size"))
    kv_heads, head_dim = _number(row.get("num_key_value_heads")), _number(row.get("head_dim"))
    lora_rank = _number(row.get("kv_lora_rank"))
    if not 0 < layers <= MOST_LAYERS or not (lora_rank or (kv_heads and head_dim)):
        return None
    extra = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", row.get("notes") or "")}
    full, other = min(_number(row.get("full_attention_layers")), layers), row.get("other_layers") or ""
    text: dict = {**extra}
    architecture = row.get("architecture") or "unknown"
    if full and other:
        kind = SLIDING if "sliding" in other else LINEAR
        text["layer_types"] = _spread(layers, full, kind)
    elif full:
        text["layer_types"] = _spread(layers, full, LINEAR)
    if lora_rank:
        text["kv_lora_rank"], text["qk_rope_head_dim"] = lora_rank, _number(row.get("qk_rope_head_dim")) or 64
    if _number(row.get("sliding_window")):
        text["sliding_window"] = _number(row["sliding_window"])
        text["use_sliding_window"] = "sliding" in other or architecture.startswith(("Gemma", "gemma"))
    heads = _number(row.get("num_attention_heads")) or (hidden // head_dim if head_dim and hidden else kv_heads)
    experts = _number(row.get("num_experts"))
    method = row.get("quant_method") or ""
    intermediate = _number(row.get("intermediate_size"))
    return Shape(
        architecture=architecture, layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads or heads,
        head_dim=head_dim, intermediate=intermediate, vocab=_number(row.get("vocab_size")),
        tied=str(row.get("tie_word_embeddings")).lower() == "true"
        or architecture.lower().startswith("gemma"),
        groups=layer_groups(text, _family(architecture), layers, kv_heads or heads, head_dim),
        dtype=row.get("dtype") or "bfloat16", quantization=method, bits=quantized_bits(method) if method else 16,
        max_position=extra.get("max_position_embeddings", 0),
        experts=experts, experts_per_token=extra.get("num_experts_per_tok", 8 if experts else 0),
        expert_intermediate=extra.get("moe_intermediate_size", 0),
        layer_input=extra.get("hidden_size_per_layer_input", 0),
        wide_layers=extra.get("num_kv_shared_layers", 0) if extra.get("use_double_wide_mlp") else 0,
        wider_heads=_wider_heads(text, architecture, layers, head_dim),
        other_parameters=extra.get("other_parameters", 0),
        multimodal="ConditionalGeneration" in architecture, encoder=encoder_of(architecture, {}),
    )  # fmt: skip


def _family(architecture: str) -> str:
    return {"gemma3": "Gemma3", "gemma2": "Gemma2"}.get(architecture, architecture)


def _spread(layers: int, full: int, other: str) -> list[str]:
    """`full` full-attention layers spread evenly over `layers`."""
    names = {SLIDING: "sliding_attention", LINEAR: "linear_attention"}
    marks = {round((k + 1) * layers / full) - 1 for k in range(full)}
    return ["full_attention" if i in marks else names[other] for i in range(layers)]


def with_quantization(shape: Shape, method: str, name: str = "") -> Shape:
    """The shape with the quantization the engine is told to apply; a GGUF file's `name` tells its bits."""
    if not method:
        return shape
    bits = quantized_bits(method)
    if method == "gguf":
        bits = next((bits for word, bits in GGUF_BITS.items() if word in name.lower()), bits)
    return replace(shape, quantization=method, bits=shape.bits if shape.quantization and shape.bits < 16 else bits)
