"""The shape of a model: the dimensions that decide the bytes of its weights and of its KV cache."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace

from .encoders import Encoder, encoder_of
from .errors import PlanError
from .layers import FEED_FORWARD, FULL, LINEAR, MLA, SLIDING, LayerGroup, Mixer, layer_groups, layer_kinds, mixer
from .quantization import (
    ATTENTION,
    DENSE,
    EXPERTS,
    GGUF_BITS,
    GROUP_32_BITS,
    LINEAR_PART,
    SHARED,
    is_fine_awq,
    kept_parts,
    quantized_bits,
    usually_kept,
)

MOST_LAYERS = 2000  # more means a damaged file, and counting them one by one would take too long

DTYPE_BYTES = {"bfloat16": 2, "float16": 2, "half": 2, "float32": 4, "float": 4, "float8": 1}

# Architectures whose arithmetic follows the fields read below. Any other is planned as grouped-query attention with a
# wider range, and the plan says so.
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
        "NemotronHForCausalLM", "SmolLM3ForCausalLM", "StableLmForCausalLM", "Starcoder2ForCausalLM",
    }
)  # fmt: skip

# field -> its names in configurations; the first match applies
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
class Shape:
    """A model's dimensions. `quantization` is "" for plain weights; `bits` is the size of a linear weight.

    `kept` are the parts that stay in the model's own type when quantized; None: what the method's tools usually keep.
    """

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
    kept: frozenset[str] | None = None
    kept_known: bool = False  # from the configuration, not by convention
    max_position: int = 0
    experts: int = 0
    experts_per_token: int = 0
    expert_intermediate: int = 0
    shared_intermediate: int = 0
    matrices: int = 3  # of a feed-forward: 3 with a gate
    gated: bool = False  # queries are twice as wide, half of them gate the attention's output
    attention_layers: int = 0
    feed_forward_layers: int = 0
    first_dense: int = 0  # layers before the first with experts
    full_layers: int = 0  # number of layers whose heads have their own dimensions, followed by these dimensions
    full_dim: int = 0
    full_kv_heads: int = 0
    mixer: Mixer | None = None
    layer_input: int = 0  # width of per-layer embeddings (Gemma's E models)
    wide_layers: int = 0  # layers whose feed-forward is twice as wide
    other_parameters: float = 0  # towers in addition to the language model
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

    @property
    def mixer_layers(self) -> int:
        return sum(group.count for group in self.groups if group.kind == LINEAR)

    @property
    def expert_layers(self) -> int:
        return max(0, self._feed_forwards - self.first_dense) if self.moe else 0

    @property
    def _feed_forwards(self) -> int:
        return self.feed_forward_layers or self.layers

    def _attention(self, dim: int, kv_heads: int) -> float:
        """Weights of one layer's attention."""
        queries = self.heads * dim * (3 if self.gated else 2)
        return self.hidden * (queries + 2 * kv_heads * dim)

    def parts(self) -> dict[str, float]:
        """Weights in the layers' matrices by part; quantization may shrink them."""
        layers = self.attention_layers or self.layers - self.mixer_layers
        if any(group.kind == MLA for group in self.groups):
            # Low-rank projections: query 1536 wide and kv as the cache, as in DeepSeek-V2's published form.
            rank = self.groups[0].key_dim
            one = self.hidden * (1536 + rank) + self.heads * self.head_dim * (1536 * 1.5 + 2 * rank + self.hidden)
            attention = layers * one
        else:
            attention = (layers - self.full_layers) * self._attention(self.head_dim, self.kv_heads)
            attention += self.full_layers * self._attention(self.full_dim, self.full_kv_heads)
        dense = self.matrices * self.hidden * self.intermediate
        with_experts = self.expert_layers if self.expert_intermediate else 0
        return {
            ATTENTION: attention,
            LINEAR_PART: self.mixer_layers * self.mixer.parameters(self.hidden) if self.mixer else 0.0,
            DENSE: (self._feed_forwards - with_experts + self.wide_layers) * dense,
            SHARED: with_experts * self.matrices * self.hidden * self.shared_intermediate,
            EXPERTS: self.expert_parameters() if with_experts else 0.0,
        }

    def linear_parameters(self) -> float:
        return sum(self.parts().values())

    def expert_parameters(self, tp: int = 0) -> float:
        """The part of the linear parameters that is in experts; with `tp`, as stored on that many GPUs."""
        hidden, wide = self.hidden, self.expert_intermediate
        if tp and self.quantization.endswith("mxfp4"):
            # Kernels need complete tiles: gpt-oss-20b's 2880 becomes 3072 and 2944, 13.72 GiB instead of 12.8.
            hidden, wide = _round_up(hidden, 256), _round_up(math.ceil(wide / tp), 128) * tp
        return self.expert_layers * float(self.matrices) * hidden * self.experts * wide

    def weight_bytes(
        self, plain: int, tp: int = 1, ep: int | None = None, kept: frozenset[str] | None = None, bits: float = 0
    ) -> float:
        """Bytes of all weights on one of `tp` GPUs, experts spread over `ep`; unquantized values take `plain` bytes.

        `kept` and `bits` replace the shape's own.
        """
        quantized = (bits or self.bits) / 8 if self.quantization else plain
        kept = next((k for k in (kept, self.kept) if k is not None), frozenset())
        parts = self.parts()
        parts.pop(EXPERTS)
        rest = sum(size * (plain if part in kept else quantized) for part, size in parts.items())
        # The embeddings in a GGUF file are quantized, and they stay so.
        rest += self.embedding_parameters() * (quantized if self.quantization == "gguf" else plain)
        experts = self.expert_parameters(tp) if self.expert_intermediate else 0
        return rest / tp + experts * quantized / (ep or tp)

    def draft_bytes(self, plain: int, tp: int) -> float:
        """Bytes of one layer for multi-token prediction: a layer and the projection of two inputs, in plain values."""
        wide = self.experts * self.expert_intermediate + self.shared_intermediate if self.moe else self.intermediate
        layer = self._attention(self.head_dim, self.kv_heads) + self.matrices * self.hidden * wide
        return (layer + 2 * self.hidden**2) * plain / tp

    def embedding_parameters(self) -> float:
        """Weights of embeddings, output head and towers: they keep the model's type."""
        heads = 1 if self.tied else 2
        per_layer = self.layers * self.layer_input * (self.vocab + 3 * self.hidden)  # table, gates and projection
        tower = self.encoder.parameters(self.hidden) if self.encoder else 0
        return self.vocab * self.hidden * heads + per_layer + (self.other_parameters or tower)


def _pick(config: dict, names: tuple[str, ...]):
    for name in names:
        if config.get(name) is not None:
            return config[name]
    return None


def shape_from_config(config: dict, label: str) -> Shape:
    """Return the shape from a `config.json`; `label` names the model in errors."""
    text = config
    for key in ("text_config", "llm_config", "language_config"):
        if isinstance(config.get(key), dict) and _pick(config[key], _ALIASES["layers"]):
            text = {**{k: v for k, v in config.items() if k in ("torch_dtype", "dtype")}, **config[key]}
            break
    numbers = _numbers(text, label)
    architecture = (config.get("architectures") or ["unknown"])[0]
    known = architecture in KNOWN_ARCHITECTURES
    assumptions = ()
    if not known:
        assumptions = (
            f"architecture {architecture} has not been seen: planned as grouped-query attention with a wider range",
        )
    quantization, bits, kept = _quantization(config, text)
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    if tied is None:
        tied = architecture.startswith(("Gemma", "Cohere"))
    vision = config.get("vision_config")
    return Shape(
        architecture=architecture, **numbers, vocab=_pick(text, _ALIASES["vocab"]), tied=bool(tied),
        groups=layer_groups(text, architecture, numbers["layers"], numbers["kv_heads"], numbers["head_dim"]),
        dtype=str(_pick(text, ("dtype", "torch_dtype")) or "bfloat16"), quantization=quantization, bits=bits, kept=kept,
        kept_known=kept is not None,
        max_position=int(_context_length(text, _pick(text, _OPTIONAL["max_position"]))),
        **_experts(text, numbers["intermediate"], architecture),
        **_layer_fields(text, architecture, numbers),
        multimodal=any(key in config for key in ("vision_config", "audio_config")),
        encoder=encoder_of(architecture, vision) if isinstance(vision, dict) else None,
        known=known, assumptions=assumptions,
    )  # fmt: skip


def _numbers(text: dict, label: str) -> dict:
    """Return the dimensions that every configuration has. Raises PlanError if one is missing or absurd."""
    numbers = {name: _pick(text, aliases) for name, aliases in _ALIASES.items()}
    missing = [_ALIASES[name][0] for name, value in numbers.items() if not isinstance(value, int) or value < 1]
    if missing:
        raise PlanError(
            f"config.json of {label} lacks {', '.join(missing)}: it is not a language model's configuration."
        )
    if numbers["layers"] > MOST_LAYERS:
        raise PlanError(f"config.json of {label} has {numbers['layers']} layers: it is damaged, download it again.")
    heads = numbers["heads"]
    kv_heads = _pick(text, _OPTIONAL["kv_heads"]) or heads
    intermediate = _pick(text, _OPTIONAL["intermediate"]) or 4 * numbers["hidden"]
    return {
        "layers": numbers["layers"], "hidden": numbers["hidden"], "heads": heads, "kv_heads": _first(kv_heads),
        "head_dim": text.get("head_dim") or numbers["hidden"] // heads, "intermediate": _first(intermediate),
    }  # fmt: skip


def _experts(text: dict, intermediate: int, architecture: str = "") -> dict:
    """Return the fields of a mixture of experts."""
    experts = int(_pick(text, ("num_experts", "num_local_experts", "n_routed_experts")) or 0)
    width = int(text.get("moe_intermediate_size") or (intermediate if experts else 0))
    shared = int(_pick(text, ("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size")) or 0)
    shared = shared or int(text.get("n_shared_experts") or 0) * width
    if experts and architecture.startswith("Gemma4"):
        shared = shared or intermediate  # these mixtures run the dense feed-forward in addition to the experts
    return {
        "experts": experts, "expert_intermediate": width, "shared_intermediate": shared,
        "experts_per_token": int(_pick(text, _TOP_K) or (2 if experts else 0)),
        "first_dense": int(text.get("first_k_dense_replace") or 0) if experts else 0,
    }  # fmt: skip


def _layer_fields(text: dict, architecture: str, numbers: dict) -> dict:
    """Return the fields of single layers in a configuration."""
    kinds = layer_kinds(text, architecture, numbers["layers"])
    wide = int(text.get("global_head_dim") or 0)
    return {
        "attention_layers": len([kind for kind in kinds if kind not in (LINEAR, FEED_FORWARD)]),
        "feed_forward_layers": kinds.count(FEED_FORWARD),
        "full_layers": kinds.count(FULL) if wide else 0,
        "full_dim": wide,
        "full_kv_heads": int(text.get("num_global_key_value_heads") or numbers["kv_heads"]),
        "mixer": mixer(text, architecture) if LINEAR in kinds else None,
        # Qwen3-Next and its successors gate the attention (qwen3_next.py); Nemotron's feed-forwards have no gate.
        "gated": bool(text.get("attn_output_gate", architecture.startswith(("Qwen3Next", "Qwen3_5")))),
        "matrices": 2 if architecture.startswith("NemotronH") else 3,
        "layer_input": int(text.get("hidden_size_per_layer_input") or 0),
        "wide_layers": int(text.get("num_kv_shared_layers") or 0) if text.get("use_double_wide_mlp") else 0,
    }


def _context_length(text: dict, positions) -> float:
    """Return the length that the engine derives: the positions, extended by rope scaling if configured."""
    length = positions or 0
    scaling = text.get("rope_scaling") or {}
    if isinstance(scaling, dict):
        kind = scaling.get("rope_type") or scaling.get("type") or ""
        if kind == "yarn" and scaling.get("original_max_position_embeddings"):
            return scaling["original_max_position_embeddings"] * float(scaling.get("factor", 1))
        if kind in ("linear", "dynamic"):
            return length * float(scaling.get("factor", 1))
    return length


def _quantization(config: dict, text: dict) -> tuple[str, float, frozenset[str] | None]:
    """Return (method, bits, parts that stay in the model's type); "" and 16 for plain weights."""
    found = config.get("quantization_config") or text.get("quantization_config") or config.get("compression_config")
    if not isinstance(found, dict):
        return "", 16, None
    method = str(found.get("quant_method") or found.get("quant_algo") or "")
    if not method:
        return "", 16, None
    method = _with_algorithm(method, str(found.get("quant_algo") or ""))
    kept = kept_parts(found)
    if method.endswith("mxfp4"):
        kept |= usually_kept(method, True)
    return method, quantized_bits(method, found), kept


def _with_algorithm(method: str, told: str) -> str:
    """Return ModelOpt's method by the algorithm that a configuration or a model's name states: eight bits or four."""
    return "modelopt_fp4" if method == "modelopt" and "fp4" in told.lower() else method


def shape_from_gguf(metadata: dict, tensors: dict, label: str) -> Shape:
    """Return the shape from a GGUF file's metadata; `label` names the file in errors."""
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
    attention, linear = _gguf_layers(get, layers, kv_list)
    # Every n-th layer of these families attends to the full context.
    pattern = {"gemma2": 2, "gemma3": 6, "gpt-oss": 2, "cohere2": 4, "exaone4": 4}.get(arch, 0) if window else 0
    full = [i for i in attention if not pattern or (i + 1) % pattern == 0]
    if arch == "gpt-oss" and window:
        full = [i for i in attention if i % 2]
    groups = [linear] if linear else []
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


def _gguf_layers(get, layers: int, kv_list: list[int]) -> tuple[list[int], LayerGroup | None]:
    """Return (numbers of the layers with attention, the recurrent layers) from a file's metadata."""
    attention = [i for i in range(layers) if kv_list[i]]
    inner = int(get("ssm.inner_size", 0) or 0)
    if not inner:
        return attention, None
    interval = int(get("full_attention_interval", 0) or 0)
    if len(attention) == layers and interval > 1:
        attention = [i for i in attention if (i + 1) % interval == 0]
    state = int(get("ssm.state_size", 128))
    width = inner + 2 * int(get("ssm.group_count", 1)) * state
    rows = int(get("ssm.conv_kernel", 4)) - 1
    # If layers without attention are also feed-forwards (Nemotron-H), those have their own width.
    wide = get("feed_forward_length", 0)
    without = [i for i in range(layers) if i not in attention]
    linear = [i for i in without if not (isinstance(wide, list) and wide[i])]
    return attention, LayerGroup(LINEAR, len(linear), conv_rows=rows, conv_width=width, state_values=inner * state)


def _first(value):
    return max(value) if isinstance(value, list) else value


def _round_up(value: int, step: int) -> int:
    return math.ceil(value / step) * step


def _number(text) -> int:
    match = re.match(r"\d+", str(text or ""))
    return int(match.group()) if match else 0


def shape_from_row(row: dict) -> Shape | None:
    """Return the shape from a row of `model_configs.csv`, None if the row has too few figures.

    `other_layers` has the form `sliding_attention:25`; `notes` may have further configuration fields as `name=value`.
    """
    layers, hidden = _number(row.get("num_hidden_layers")), _number(row.get("hidden_size"))
    kv_heads, head_dim = _number(row.get("num_key_value_heads")), _number(row.get("head_dim"))
    if not 0 < layers <= MOST_LAYERS or not (_number(row.get("kv_lora_rank")) or (kv_heads and head_dim)):
        return None
    architecture = _row_architecture(row)
    sees = not re.search(r"\btext\b", row.get("model") or "", re.IGNORECASE)  # a checkpoint without its tower
    text = _row_text(row, architecture, layers)
    heads = _number(row.get("num_attention_heads")) or (hidden // head_dim if head_dim and hidden else kv_heads)
    method = _with_algorithm(row.get("quant_method") or "", row.get("model") or "")
    intermediate = _number(row.get("intermediate_size"))
    experts = _experts(text, intermediate)
    if experts["experts"]:
        experts["expert_intermediate"] = int(text.get("moe_intermediate_size") or 0)
        experts["experts_per_token"] = int(text.get("num_experts_per_tok") or 8)
    numbers = {"layers": layers, "hidden": hidden, "heads": heads, "kv_heads": kv_heads or heads, "head_dim": head_dim}
    shape = Shape(
        architecture=architecture, **numbers, intermediate=intermediate, vocab=_number(row.get("vocab_size")),
        tied=str(row.get("tie_word_embeddings")).lower() == "true" or architecture.lower().startswith("gemma"),
        groups=layer_groups(text, architecture, layers, kv_heads or heads, head_dim),
        dtype=row.get("dtype") or "bfloat16", quantization=method, bits=quantized_bits(method) if method else 16,
        max_position=int(text.get("max_position_embeddings") or 0),
        **experts, **_layer_fields(text, architecture, numbers),
        other_parameters=int(text.get("other_parameters") or 0),
        multimodal=sees and ("ConditionalGeneration" in architecture or architecture.startswith("NemotronH_")),
        encoder=encoder_of(architecture, {}) if sees else None,
    )  # fmt: skip
    return named_quantization(shape, row.get("model") or "")


def _row_architecture(row: dict) -> str:
    """Return vLLM's name of the architecture if the table has llama.cpp's, or only the language model's."""
    named = row.get("architecture") or "unknown"
    if named.startswith("NemotronH") and re.search(r"omni|-vl\b", row.get("model") or "", re.IGNORECASE):
        return "NemotronH_Nano_Omni_Reasoning_V3"
    return {"gemma3": "Gemma3", "gemma2": "Gemma2"}.get(named, named)


def _row_text(row: dict, architecture: str, layers: int) -> dict:
    """Return a row as the fields of a configuration."""
    text: dict = {key: int(value) for key, value in re.findall(r"(\w+)=(\d+)", row.get("notes") or "")}
    full, other = min(_number(row.get("full_attention_layers")), layers), row.get("other_layers") or ""
    if _number(row.get("num_experts")):
        text["num_experts"] = _number(row["num_experts"])
    if full and architecture.startswith("NemotronH"):
        # A layer is attention, Mamba-2 or a feed-forward; there are as many Mamba-2 layers as feed-forwards.
        text.setdefault("mamba_num_heads", 64)
        text.setdefault("moe_shared_expert_intermediate_size", 2 * text.get("moe_intermediate_size", 0))
        text["layer_types"] = _spread(layers, full, LINEAR)
        rest = [i for i, kind in enumerate(text["layer_types"]) if kind != "full_attention"]
        for i in rest[1::2]:
            text["layer_types"][i] = "moe"
    elif full:
        text["layer_types"] = _spread(layers, full, SLIDING if "sliding" in other else LINEAR)
    if _number(row.get("kv_lora_rank")):
        text["kv_lora_rank"] = _number(row["kv_lora_rank"])
        text["qk_rope_head_dim"] = _number(row.get("qk_rope_head_dim")) or 64
    if _number(row.get("sliding_window")):
        text["sliding_window"] = _number(row["sliding_window"])
        text["use_sliding_window"] = "sliding" in other or architecture.startswith("Gemma")
    return text


def _spread(layers: int, full: int, other: str) -> list[str]:
    """Return `full` full-attention layers spread evenly over `layers`."""
    names = {SLIDING: "sliding_attention", LINEAR: "linear_attention"}
    marks = {round((k + 1) * layers / full) - 1 for k in range(full)}
    return ["full_attention" if i in marks else names[other] for i in range(layers)]


def with_quantization(shape: Shape, method: str, name: str = "") -> Shape:
    """Return the shape with the quantization that the engine applies; a model's `name` may state its bits."""
    if not method:
        return named_quantization(shape, name)
    bits = quantized_bits(method)
    if method == "gguf":
        bits = next((bits for word, bits in GGUF_BITS.items() if word in name.lower()), bits)
    bits = shape.bits if shape.quantization and shape.bits < 16 else bits
    return named_quantization(replace(shape, quantization=method, bits=bits), name)


def named_quantization(shape: Shape, name: str) -> Shape:
    """Return the shape with what a quantized model's name states, if no configuration does."""
    if not shape.quantization or shape.kept is not None:
        return shape
    fine = is_fine_awq(shape.quantization, name) or re.search(r"\bqat\b", name, re.IGNORECASE)
    bits = GROUP_32_BITS if fine and 4 <= shape.bits < GROUP_32_BITS else shape.bits
    return replace(shape, bits=bits, kept=usually_kept(shape.quantization, shape.moe, name))
