"""The kinds of layers in a model and the form of the cache that each keeps."""

from __future__ import annotations

from dataclasses import dataclass

FULL, SLIDING, LINEAR, MLA = "full", "sliding", "linear", "mla"
FEED_FORWARD = "feed_forward"  # a separate layer without a cache (Nemotron-H)

STATE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_PATTERN = {"M": LINEAR, "*": FULL, "E": FEED_FORWARD, "-": FEED_FORWARD}  # hybrid_override_pattern


@dataclass(frozen=True)
class LayerGroup:
    """Layers whose cache has the same form; widths in values.

    A linear layer keeps the last rows of its convolution, in the model's type, and a recurrent state, whose values take
    `state_bytes` (0: the engine's default).
    """

    kind: str
    count: int
    kv_heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    window: int = 0
    conv_rows: int = 0
    conv_width: int = 0
    state_values: int = 0
    state_bytes: int = 0
    chunk: int = 0  # tokens that the kernel of a Mamba-2 layer processes at once; 0: gated delta net

    def token_bytes(self, tp: int, bytes_per_value: float) -> float:
        """Cache bytes of one token in one of these layers on one of `tp` GPUs."""
        if self.kind == LINEAR:
            return 0
        if self.kind == MLA:
            return (self.key_dim + self.value_dim) * bytes_per_value
        return max(1, self.kv_heads // tp) * (self.key_dim + self.value_dim) * bytes_per_value

    def request_state(self, tp: int, conv_bytes: float, state_bytes: float, drafted: int = 0) -> float:
        """Bytes of one layer's state of one request; `drafted` tokens lengthen the convolution's rows.

        Source: vllm/model_executor/layers/mamba/mamba_utils.py of 0.19.0.
        """
        conv = (self.conv_rows + drafted) * self.conv_width * conv_bytes
        return (conv + self.state_values * (self.state_bytes or state_bytes)) / tp


@dataclass(frozen=True)
class Mixer:
    """A linear layer's dimensions: gated delta net, or Mamba-2 if `groups` are given."""

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int
    state_type: str = ""
    groups: int = 0
    chunk: int = 0

    @property
    def conv_width(self) -> int:
        if self.groups:
            return self.value_heads * self.value_dim + 2 * self.groups * self.key_dim
        return 2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim

    def parameters(self, hidden: int) -> float:
        """Weights of the input and output projections and of the convolution."""
        inner = self.value_heads * self.value_dim
        gates = self.value_heads * (1 if self.groups else 2)
        return hidden * (self.conv_width + inner + gates) + inner * hidden + self.conv_width * self.kernel

    def group(self, count: int) -> LayerGroup:
        return LayerGroup(
            LINEAR, count, conv_rows=self.kernel - 1, conv_width=self.conv_width,
            state_values=self.value_heads * self.key_dim * self.value_dim,
            state_bytes=STATE_BYTES.get(self.state_type, 0), chunk=self.chunk,
        )  # fmt: skip


def mixer(text: dict, architecture: str) -> Mixer:
    """Return the linear layers' dimensions from a configuration's fields; the usual ones if it has none."""

    def get(name: str, usual: int) -> int:
        return int(text.get(name) or usual)

    # All published configurations of Qwen3.5 and its successors have float32.
    usual = "float32" if architecture.startswith("Qwen3_5") else ""
    state = str(text.get("mamba_ssm_dtype") or text.get("mamba_ssm_cache_dtype") or usual)
    if text.get("mamba_num_heads") or text.get("ssm_state_size"):
        return Mixer(
            0, get("mamba_num_heads", 64), get("ssm_state_size", 128), get("mamba_head_dim", 64),
            get("conv_kernel", 4), state, get("n_groups", 8), get("chunk_size", 128),
        )  # fmt: skip
    return Mixer(
        get("linear_num_key_heads", 16), get("linear_num_value_heads", 32), get("linear_key_head_dim", 128),
        get("linear_value_head_dim", 128), get("linear_conv_kernel_dim", 4), state,
    )  # fmt: skip


def layer_kinds(text: dict, architecture: str, layers: int) -> list[str]:
    """Return one kind per layer, from the configuration or as known for the architecture."""
    pattern = text.get("hybrid_override_pattern")
    if isinstance(pattern, str) and len(pattern) == layers and set(pattern) <= set(_PATTERN):
        return [_PATTERN[mark] for mark in pattern]
    named = text.get("layer_types") or text.get("layers_block_type")
    if isinstance(named, list) and len(named) == layers:
        return [_named_kind(str(kind)) for kind in named]
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


def _named_kind(kind: str) -> str:
    if "sliding" in kind:
        return SLIDING
    if kind.startswith(("linear", "mamba")):
        return LINEAR
    return FEED_FORWARD if kind in ("moe", "mlp", "feed_forward") else FULL


def wider_heads(text: dict, architecture: str, layers: int, head_dim: int) -> int:
    """Return the head width that full layers have beyond the others', summed over them."""
    wide = int(text.get("global_head_dim") or head_dim)
    return (wide - head_dim) * layer_kinds(text, architecture, layers).count(FULL) if wide > head_dim else 0


def layer_groups(text: dict, architecture: str, layers: int, kv_heads: int, head_dim: int) -> tuple[LayerGroup, ...]:
    """Return the layers' caches by form, in order of first appearance."""
    if text.get("kv_lora_rank"):
        return (LayerGroup(MLA, layers, 1, int(text["kv_lora_rank"]), int(text.get("qk_rope_head_dim") or 64)),)
    kinds = layer_kinds(text, architecture, layers)
    # The last layers of Gemma's E models read the cache of earlier ones.
    kinds = kinds[: layers - int(text.get("num_kv_shared_layers") or 0)]
    window = int(text.get("sliding_window") or 0)
    value_dim = int(text.get("v_head_dim") or head_dim)
    groups = []
    for kind in dict.fromkeys(kinds):
        count = kinds.count(kind)
        if kind == LINEAR:
            groups.append(mixer(text, architecture).group(count))
        elif kind == FULL and text.get("global_head_dim"):
            wide = int(text["global_head_dim"])
            wide_heads = int(text.get("num_global_key_value_heads") or kv_heads)
            groups.append(LayerGroup(FULL, count, wide_heads, wide, wide))
        elif kind != FEED_FORWARD:
            groups.append(LayerGroup(kind, count, kv_heads, head_dim, value_dim, window if kind == SLIDING else 0))
    return tuple(groups)
