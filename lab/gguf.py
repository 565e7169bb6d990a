"""The tiny model and its adapters in llama.cpp's format: one GGUF file each, whose bytes depend only on the folder.

The format: magic, version, metadata, table of tensors, then the tensors' data, each at a multiple of ALIGNMENT bytes.
Source: docs/gguf.md of the ggml project, and convert_hf_to_gguf.py and convert_lora_to_gguf.py of llama.cpp.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

ALIGNMENT = 32
FLOAT32 = 0  # the type of a tensor
CONTROL, NORMAL = 3, 1  # the types of a token
# type of a value -> (its number in the format, its struct format)
KINDS = {"u32": (4, "<I"), "i32": (5, "<i"), "f32": (6, "<f"), "bool": (7, "<?")}
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}
OUTER = {
    "model.embed_tokens.weight": "token_embd.weight",
    "lm_head.weight": "output.weight",
    "model.norm.weight": "output_norm.weight",
}


def text(value: str) -> bytes:
    """Return a string in the format's encoding."""
    return struct.pack("<Q", len(value.encode())) + value.encode()


def pair(key: str, kind: str, value: Any) -> bytes:
    """Return one entry of the metadata; `kind` is str, one of KINDS, or a list of one of these, such as `[str]`."""
    if kind.startswith("["):
        item = kind[1:-1]
        number = 8 if item == "str" else KINDS[item][0]
        items = b"".join(text(each) if item == "str" else struct.pack(KINDS[item][1], each) for each in value)
        return text(key) + struct.pack("<IIQ", 9, number, len(value)) + items
    if kind == "str":
        return text(key) + struct.pack("<I", 8) + text(value)
    return text(key) + struct.pack("<I", KINDS[kind][0]) + struct.pack(KINDS[kind][1], value)


def write(path: Path, metadata: list[tuple[str, str, Any]], tensors: dict[str, np.ndarray]) -> None:
    """Write a GGUF file of float32 tensors."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + b"".join(pair(*entry) for entry in metadata)
    data = b""
    for name, tensor in tensors.items():
        sizes = tuple(reversed(tensor.shape))  # innermost first
        head += text(name) + struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
        head += struct.pack("<IQ", FLOAT32, len(data))
        data += padded(np.ascontiguousarray(tensor, dtype=np.float32).tobytes())
    path.write_bytes(padded(head) + data)
    path.chmod(0o644)


def padded(content: bytes) -> bytes:
    """Return bytes padded to the next multiple of ALIGNMENT."""
    return content + bytes(-len(content) % ALIGNMENT)


def turned(weights: np.ndarray, heads: int) -> np.ndarray:
    """Return the rows of a query or key in llama.cpp's order: the halves of a rotary pair are side by side."""
    return weights.reshape(heads, 2, len(weights) // heads // 2, -1).swapaxes(1, 2).reshape(weights.shape)


def named(tensor: str) -> str:
    """Return llama.cpp's name for a tensor of a Llama checkpoint."""
    if tensor in OUTER:
        return OUTER[tensor]
    _, _, layer, rest = tensor.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def write_model(source: Path, target: Path, name: str) -> None:
    """Write the model in the folder `source` as a GGUF file, with its tokenizer and chat template."""
    config = json.loads((source / "config.json").read_text())
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    words = sorted(vocabulary, key=vocabulary.get)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in tokenizer["model"]["merges"]]
    about = json.loads((source / "tokenizer_config.json").read_text())
    tensors = {}
    for tensor, weights in load_file(source / "model.safetensors").items():
        heads = config["num_attention_heads" if "q_proj" in tensor else "num_key_value_heads"]
        tensors[named(tensor)] = turned(weights, heads) if "q_proj" in tensor or "k_proj" in tensor else weights
    metadata = [
        ("general.architecture", "str", "llama"),
        ("general.type", "str", "model"),
        ("general.name", "str", name),
        ("general.file_type", "u32", 0),
        ("llama.context_length", "u32", config["max_position_embeddings"]),
        ("llama.embedding_length", "u32", config["hidden_size"]),
        ("llama.block_count", "u32", config["num_hidden_layers"]),
        ("llama.feed_forward_length", "u32", config["intermediate_size"]),
        ("llama.attention.head_count", "u32", config["num_attention_heads"]),
        ("llama.attention.head_count_kv", "u32", config["num_key_value_heads"]),
        ("llama.attention.key_length", "u32", config["head_dim"]),
        ("llama.attention.value_length", "u32", config["head_dim"]),
        ("llama.rope.dimension_count", "u32", config["head_dim"]),
        ("llama.rope.freq_base", "f32", config["rope_theta"]),
        ("llama.attention.layer_norm_rms_epsilon", "f32", config["rms_norm_eps"]),
        ("llama.vocab_size", "u32", config["vocab_size"]),
        ("tokenizer.ggml.model", "str", "gpt2"),
        ("tokenizer.ggml.pre", "str", "gpt-2"),
        ("tokenizer.ggml.tokens", "[str]", words),
        ("tokenizer.ggml.token_type", "[i32]", [CONTROL if word in special else NORMAL for word in words]),
        ("tokenizer.ggml.merges", "[str]", merges),
        ("tokenizer.ggml.bos_token_id", "u32", config["bos_token_id"]),
        ("tokenizer.ggml.eos_token_id", "u32", config["eos_token_id"]),
        ("tokenizer.ggml.unknown_token_id", "u32", 0),
        ("tokenizer.ggml.add_bos_token", "bool", False),
        ("tokenizer.chat_template", "str", about["chat_template"]),
    ]
    write(target, metadata, tensors)


def write_adapter(source: Path, target: Path, heads: int, kv_heads: int) -> None:
    """Write the PEFT adapter of q_proj and v_proj in the folder `source` as a GGUF file."""
    config = json.loads((source / "adapter_config.json").read_text())
    tensors = {}
    for tensor, weights in load_file(source / "adapter_model.safetensors").items():
        base, _, part = tensor.removeprefix("base_model.model.").rpartition(".lora_")
        turns = part.startswith("B") and ("q_proj" in base or "k_proj" in base)
        turned_weights = turned(weights, heads if "q_proj" in base else kv_heads) if turns else weights
        tensors[f"{named(f'{base}.weight')}.lora_{part[0].lower()}"] = turned_weights
    metadata = [
        ("general.architecture", "str", "llama"),
        ("general.type", "str", "adapter"),
        ("general.name", "str", source.name),
        ("adapter.type", "str", "lora"),
        ("adapter.lora.alpha", "f32", float(config["lora_alpha"])),
    ]
    write(target, metadata, tensors)
