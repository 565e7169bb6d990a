"""Towers that read images and videos, and the memory that the largest item takes at start.

At start vLLM reads as many of the largest items as the batch's tokens allow, at least one (vllm/multimodal/
encoder_budget.py of 0.19.0), and keeps their tokens while the text is profiled.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Encoder:
    """A tower that reads images: its layers, and the largest item it reads at start."""

    layers: int
    width: int
    intermediate: int
    matrices: int = 2  # of a feed-forward: 2, or 3 with a gate
    item_tokens: int = 0  # of the largest image; 0: not known, the profile of images is only in the range
    token_patches: int = 4  # patches per token
    pixels: int = 1176  # values of one patch from the processor
    frames: int = 0  # maximum frames of a video, two of which take as many tokens as an image; 0: an image is largest
    stacked: int = 0  # further outputs of the tower's layers that are kept in addition to its last
    attention: int = 7  # widths that attention holds: input, normed, queries, keys and values, the first two rotated
    mask: bool = False  # its attention has a mask over all patches
    beside: float = 0  # weights of further towers, such as one for audio

    def parameters(self, hidden: int) -> float:
        """Weights of the tower and of the merger into a model `hidden` wide (four patches make a token)."""
        layer = 4 * self.width**2 + self.matrices * self.width * self.intermediate
        merged = 4 * self.width if self.token_patches == 4 and self.item_tokens else self.width
        return self.layers * layer + (1 + self.stacked) * merged * (merged + hidden) + self.beside

    def profiled_tokens(self, length: int, batch: int) -> int:
        """Tokens of the items read at start: texts of `length`, batches of `batch` tokens."""
        item = self.item_tokens
        if self.frames:
            item *= max(1, min(self.frames // 2, length // item))
        return item * max(1, batch // item)

    def activation(self, tokens: int, value_bytes: int) -> float:
        """Bytes at the peak of reading them: the values of the patches, plus the widest step of a layer.

        A feed-forward holds its matrices' outputs, its input and the layer's; attention as many widths as stated.
        """
        patches = tokens * self.token_patches
        wide = max(self.matrices * self.intermediate + 2 * self.width, self.attention * self.width)
        mask = patches**2 if self.mask else 0
        return (patches * (wide + self.pixels) + mask) * value_bytes

    def kept(self, tokens: int, hidden: int, value_bytes: int) -> float:
        """Bytes of the tokens that stay while the text is profiled."""
        return tokens * hidden * (1 + self.stacked) * value_bytes


# The towers by the architecture's name, if a table of models does not have them (published configurations).
# Qwen's largest image is 16384 tokens (preprocessor_config.json). Qwen2's video has at most 14 frames, and Qwen2
# rotates queries and keys in float32, which turns seven widths into thirteen (qwen2_vl.py); Qwen3's video is smaller
# than its image (qwen3_vl.py). Gemma 3 makes 256 tokens of 4096 patches. Mistral's image of 1540 pixels is 110 * 110
# patches, four per token (pixtral.py). Nemotron's is 2048 tokens (a log of 0.20.0: eight images in 16384 tokens).
# Gemma 4's is read in pieces that depend on the free memory: what it takes is not known here.
_ENCODERS = (
    ("Qwen2VL", Encoder(32, 1280, 5120, 2, 16384, frames=14, attention=13)),
    ("Qwen2_5_VL", Encoder(32, 1280, 3420, 3, 16384, frames=14, attention=13)),
    ("Qwen3VL", Encoder(27, 1152, 4304, 2, 16384, pixels=1536, stacked=3)),
    ("Qwen3_5", Encoder(27, 1152, 4304, 2, 16384, pixels=1536)),
    ("Gemma3ForConditional", Encoder(27, 1152, 4304, 2, 256, 16, 588)),
    ("Gemma4", Encoder(27, 1152, 4304, 3)),
    ("Mistral3", Encoder(24, 1024, 4096, 3, 3025, 4, 588, mask=True)),
    ("NemotronH_", Encoder(32, 1280, 5120, 2, 2048, 4, 768, beside=0.61e9)),
)  # fmt: skip


def encoder_of(architecture: str, vision: dict) -> Encoder | None:
    """Return the tower that a configuration's `vision_config` describes, or that is known for the architecture."""
    usual = next((entry for prefix, entry in _ENCODERS if architecture.startswith(prefix)), None)
    layers = vision.get("depth") or vision.get("num_hidden_layers")
    width = vision.get("embed_dim") or vision.get("hidden_size")
    wide = vision.get("intermediate_size") or (width or 0) * (vision.get("mlp_ratio") or 4)
    if not all(isinstance(x, int | float) and x > 0 for x in (layers, width, wide)):
        return usual
    return replace(usual or Encoder(1, 1, 1), layers=int(layers), width=int(width), intermediate=int(wide))
