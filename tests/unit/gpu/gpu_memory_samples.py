"""Model files with real headers and sparse weights: complete for a reader of headers, without using disk space."""

import json
import struct
from pathlib import Path

MISTRAL = {
    "architectures": ["MistralForCausalLM"], "num_hidden_layers": 32, "hidden_size": 4096, "num_attention_heads": 32,
    "num_key_value_heads": 8, "intermediate_size": 14336, "vocab_size": 32768, "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16", "tie_word_embeddings": False, "sliding_window": None,
}  # fmt: skip
EXAONE = {
    "architectures": ["ExaoneForCausalLM"], "num_layers": 30, "hidden_size": 2560, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 80, "intermediate_size": 7168, "vocab_size": 102400,
    "max_position_embeddings": 32768, "torch_dtype": "bfloat16", "tie_word_embeddings": True,
}  # fmt: skip
QWEN_14B = {
    "architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 48, "hidden_size": 5120, "num_attention_heads": 40,
    "num_key_value_heads": 8, "intermediate_size": 13824, "vocab_size": 152064, "max_position_embeddings": 32768,
    "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
QWEN_32B = {**QWEN_14B, "num_hidden_layers": 64, "intermediate_size": 27648}
TINY = {
    "architectures": ["LlamaForCausalLM"], "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 32, "intermediate_size": 128, "vocab_size": 384,
    "max_position_embeddings": 512, "torch_dtype": "float32", "tie_word_embeddings": False,
}  # fmt: skip
WIDTH = {"F32": 4, "BF16": 2, "F16": 2, "I32": 4}

L4 = {"name": "NVIDIA L4", "total_mib": 23034, "free_mib": 22568}


def llama_tensors(config: dict) -> dict:
    """Return names and shapes of a Llama-like model's tensors."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    dim = config.get("head_dim") or hidden // heads
    query, kv = heads * dim, config["num_key_value_heads"] * dim
    wide = config["intermediate_size"]
    out = {"model.embed_tokens.weight": (config["vocab_size"], hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        out["lm_head.weight"] = (config["vocab_size"], hidden)
    for layer in range(config.get("num_hidden_layers") or config["num_layers"]):
        at = f"model.layers.{layer}."
        out |= {
            f"{at}self_attn.q_proj.weight": (query, hidden), f"{at}self_attn.k_proj.weight": (kv, hidden),
            f"{at}self_attn.v_proj.weight": (kv, hidden), f"{at}self_attn.o_proj.weight": (hidden, query),
            f"{at}mlp.gate_proj.weight": (wide, hidden), f"{at}mlp.up_proj.weight": (wide, hidden),
            f"{at}mlp.down_proj.weight": (hidden, wide), f"{at}input_layernorm.weight": (hidden,),
            f"{at}post_attention_layernorm.weight": (hidden,),
        }  # fmt: skip
    return out


def write_safetensors(path: Path, tensors: dict, dtype: str = "BF16") -> int:
    """Write a sparse file with these tensors; return its size in bytes."""
    header, at = {}, 0
    for name, shape in tensors.items():
        size = WIDTH[dtype]
        for extent in shape:
            size *= extent
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        handle.truncate(8 + len(text) + at)
    return 8 + len(text) + at


def write_model(directory: Path, config: dict, dtype: str = "BF16", shards: int = 1) -> Path:
    """Write a complete model directory."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer.json").write_text("{}")
    tensors = llama_tensors(config)
    if shards == 1:
        write_safetensors(directory / "model.safetensors", tensors, dtype)
        return directory
    names = list(tensors)
    weight_map = {}
    for number in range(shards):
        part = names[number::shards]
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        write_safetensors(directory / file, {name: tensors[name] for name in part}, dtype)
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def write_adapter(directory: Path, config: dict, rank: int = 8, modules=("q_proj", "v_proj"), **changes) -> Path:
    """Write a LoRA adapter for a Llama-like model; `changes` go into adapter_config.json."""
    directory.mkdir(parents=True, exist_ok=True)
    base = llama_tensors(config)
    tensors = {}
    for name, shape in base.items():
        module = name.removesuffix(".weight")
        if module.rsplit(".", 1)[-1] in modules:
            tensors[f"base_model.model.{module}.lora_A.weight"] = (rank, shape[1])
            tensors[f"base_model.model.{module}.lora_B.weight"] = (shape[0], rank)
    write_safetensors(directory / "adapter_model.safetensors", tensors, "F32")
    adapter = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "target_modules": list(modules), "bias": "none"}
    adapter |= changes
    (directory / "adapter_config.json").write_text(json.dumps(adapter))
    return directory


GGUF_TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "Q4_K": (12, 256, 144), "Q6_K": (14, 256, 210)}


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def _pair(key: str, value) -> bytes:
    if isinstance(value, str):
        return _text(key) + struct.pack("<I", 8) + _text(value)
    if isinstance(value, list):
        body = b"".join(_text(item) for item in value)
        return _text(key) + struct.pack("<IIQ", 9, 8, len(value)) + body
    return _text(key) + struct.pack("<II", 4, value)


def write_gguf(path: Path, metadata: dict, tensors: dict) -> int:
    """Write a sparse GGUF file; `tensors` maps names to (type, shape); return its size in bytes."""
    body, at = b"", 0
    for name, (kind, shape) in tensors.items():
        number, values, width = GGUF_TYPES[kind]
        count = 1
        for extent in shape:
            count *= extent
        body += _text(name) + struct.pack("<I", len(shape))
        body += b"".join(struct.pack("<Q", extent) for extent in reversed(shape)) + struct.pack("<IQ", number, at)
        at += count // values * width
        at += -at % 32
    pairs = b"".join(_pair(key, value) for key, value in metadata.items())
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + pairs + body
    start = len(head) + -len(head) % 32
    with path.open("wb") as handle:
        handle.write(head)
        handle.truncate(start + at)
    return start + at


def qwen_gguf(path: Path, size: str) -> int:
    """Write Qwen2.5 as Q4_K_M: half of the value and down matrices in Q6_K, as in the published files."""
    layers, hidden, heads, kv, wide, vocab, tied = {
        "3B": (36, 2048, 16, 2, 11008, 151936, True),
        "7B": (28, 3584, 28, 4, 18944, 152064, False),
        "14B": (48, 5120, 40, 8, 13824, 152064, False),
    }[size]
    metadata = {
        "general.architecture": "qwen2", "qwen2.block_count": layers, "qwen2.embedding_length": hidden,
        "qwen2.attention.head_count": heads, "qwen2.attention.head_count_kv": kv, "qwen2.feed_forward_length": wide,
        "qwen2.context_length": 32768, "tokenizer.ggml.tokens": [f"t{i}" for i in range(vocab)],
    }  # fmt: skip
    kind = "Q4_K" if not tied else "Q6_K"
    tensors = {"token_embd.weight": (kind, (vocab, hidden)), "output_norm.weight": ("F32", (hidden,))}
    if not tied:
        tensors["output.weight"] = ("Q6_K", (vocab, hidden))
    for i in range(layers):
        better = "Q6_K" if i < layers // 8 or i >= 7 * layers // 8 or i % 3 == 2 else "Q4_K"
        dim = kv * 128
        tensors |= {
            f"blk.{i}.attn_q.weight": ("Q4_K", (hidden, hidden)), f"blk.{i}.attn_k.weight": ("Q4_K", (dim, hidden)),
            f"blk.{i}.attn_v.weight": (better, (dim, hidden)),
            f"blk.{i}.attn_output.weight": ("Q4_K", (hidden, hidden)),
            f"blk.{i}.ffn_gate.weight": ("Q4_K", (wide, hidden)), f"blk.{i}.ffn_up.weight": ("Q4_K", (wide, hidden)),
            f"blk.{i}.ffn_down.weight": (better, (hidden, wide)), f"blk.{i}.attn_norm.weight": ("F32", (hidden,)),
        }  # fmt: skip
    return write_gguf(path, metadata, tensors)
