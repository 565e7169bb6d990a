"""The tiny model and its adapters: a random Llama that real vLLM serves on a CPU, created in seconds.

Its weights are random, but it is a real model: float32 weights (virtual machines advertise bfloat16 units that they do
not allow), a head size of 32 (smaller ones end the engine at the first request), a byte-level tokenizer with a chat
template, and PEFT adapters. Every file depends on the seed alone.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from lab import gguf, host
from lab.host import CACHE

HIDDEN, INTERMEDIATE, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 64, 128, 2, 2, 1, 32
VOCABULARY = 384
LENGTH = 1024
SPECIAL = ("<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>")
END = SPECIAL.index("</s>")

# The tokenizer is trained on this text, so the model's answers consist of its words.
CORPUS = """
the tenant pays the rent to the landlord on the first day of every month and the deposit when the contract begins
the landlord returns the deposit when the contract ends and the house is in good order
read the contract before you sign check the owner check the address check the date check the deposit
a contract names the owner the tenant the address the rent the deposit the date and the end
ask the agent for the register of the house and keep a copy of every paper that you sign
easy words help every tenant to understand what the contract says and what to do next
""".strip()

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

ADAPTERS = {"easycontract": 16, "checklist": 8}
# Adapters that the base model must refuse, by their defect.
MISFITS = ("rank", "shape", "modules", "empty")


def train_tokenizer() -> Tokenizer:
    """Train a byte-level BPE of VOCABULARY tokens on the corpus."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS.splitlines(), trainer)
    return tokenizer


def weights(seed: int, tokenizer: Tokenizer) -> dict[str, np.ndarray]:
    """Return the model's tensors, float32, named and shaped as in a Llama checkpoint."""
    random = np.random.default_rng(seed)

    def matrix(rows: int, columns: int, scale: float = 1.0) -> np.ndarray:
        return (random.standard_normal((rows, columns)) * scale / np.sqrt(columns)).astype(np.float32)

    # Only complete words of the corpus, and the end token, can be chosen: the answers are meaningless but readable.
    tokens = tokenizer.get_vocab()
    words = {f"Ġ{word}" for word in CORPUS.split()} & tokens.keys()
    spoken = np.zeros((VOCABULARY, 1), dtype=np.float32)
    spoken[[END, *(tokens[word] for word in words)]] = 1
    made = {
        "model.embed_tokens.weight": matrix(VOCABULARY, HIDDEN, 8),
        "lm_head.weight": matrix(VOCABULARY, HIDDEN, 8) * spoken,
        "model.norm.weight": np.ones(HIDDEN, dtype=np.float32),
    }
    for layer in range(LAYERS):
        for name, (rows, columns) in {
            "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
            "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
            "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
            "mlp.up_proj": (INTERMEDIATE, HIDDEN),
            "mlp.down_proj": (HIDDEN, INTERMEDIATE),
        }.items():
            made[f"model.layers.{layer}.{name}.weight"] = matrix(rows, columns)
        for name in ("input_layernorm", "post_attention_layernorm"):
            made[f"model.layers.{layer}.{name}.weight"] = np.ones(HIDDEN, dtype=np.float32)
    return made


def model_config() -> dict[str, Any]:
    """Return the model's configuration, as Transformers 4 and 5 read it."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": LENGTH,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
        "attention_bias": False,
        "torch_dtype": "float32",
        "bos_token_id": SPECIAL.index("<s>"),
        "eos_token_id": END,
    }


def write_model(folder: Path, seed: int) -> None:
    """Write a model that vLLM and Transformers can load from the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = train_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": LENGTH,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        **tokens,
    }
    ends = {"bos_token_id": SPECIAL.index("<s>"), "eos_token_id": END}
    for name, content in {
        "config.json": model_config(),
        "generation_config.json": ends,
        "tokenizer_config.json": about,
        "special_tokens_map.json": tokens,
    }.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    save_file(weights(seed, tokenizer), str(folder / "model.safetensors"), metadata={"format": "pt"})
    readable(folder)


def write_adapter(
    folder: Path, seed: int, rank: int, hidden: int = HIDDEN, modules: tuple[str, str] | None = None
) -> None:
    """Write a PEFT adapter of q_proj and v_proj; another `hidden` size or other `modules` do not fit the model."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    query, value = modules or ("q_proj", "v_proj")
    tensors = {}
    for layer in range(LAYERS):
        for name, rows in ((query, HEADS * HEAD_DIM), (value, KV_HEADS * HEAD_DIM)):
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            # As large as the base weights: the answers must differ from the base model's.
            tensors[f"{prefix}.lora_A.weight"] = random.standard_normal((rank, hidden)) / np.sqrt(hidden)
            tensors[f"{prefix}.lora_B.weight"] = random.standard_normal((rows, rank)) * 2 / np.sqrt(rank)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": [query, value],
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    floats = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    save_file(floats, str(folder / "adapter_model.safetensors"), metadata={"format": "pt"})
    readable(folder)


def write_misfit(folder: Path, kind: str) -> None:
    """Write an adapter that does not fit: rank 32, a wider base, unknown modules, or no tensors."""
    if kind == "rank":
        write_adapter(folder, 31, rank=32)
    elif kind == "shape":
        write_adapter(folder, 32, rank=8, hidden=2 * HIDDEN)
    elif kind == "modules":
        write_adapter(folder, 33, rank=8, modules=("query_key_value", "dense"))
    else:
        write_adapter(folder, 34, rank=8)
        (folder / "adapter_model.safetensors").unlink()


def write_gguf(folder: Path) -> dict[str, str]:
    """Write the folder's model and adapters, and a second model, as GGUF files; return their paths by name."""
    target = folder / "gguf"
    target.mkdir(exist_ok=True)
    gguf.write_model(folder / "tiny", target / "tiny.gguf", "tiny")
    with tempfile.TemporaryDirectory() as other:
        write_model(Path(other), seed=3)
        gguf.write_model(Path(other), target / "code.gguf", "code")
    for name in ADAPTERS:
        gguf.write_adapter(folder / "adapters" / name, target / f"{name}.gguf", HEADS, KV_HEADS)
    return {path.stem: str(path) for path in sorted(target.iterdir())}


def write_gguf_misfits(folder: Path) -> None:
    """Write GGUF files that must be refused: a truncated one, an HTML page, and an adapter of a wider model."""
    content = (folder / "gguf" / "tiny.gguf").read_bytes()
    (folder / "misfits" / "cut.gguf").write_bytes(content[: len(content) // 2])
    (folder / "misfits" / "page.gguf").write_text("<!doctype html>\n")
    gguf.write_adapter(folder / "misfits" / "shape", folder / "misfits" / "shape.gguf", HEADS, KV_HEADS)
    for path in (folder / "misfits").glob("*.gguf"):
        path.chmod(0o644)


def readable(folder: Path) -> None:
    """Make the files readable for every user: tensors are saved with mode 0600, and the engine runs as its own user."""
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)


def make(folder: Path, misfits: bool = False) -> dict[str, Any]:
    """Write model and adapters below a folder; return their paths.

    tiny/ is the model, adapters/NAME/ the adapters, misfits/KIND/ those that must be refused. gguf/ has the model
    (tiny), another model of the same shape (code) and the adapters as GGUF files.
    """
    write_model(folder / "tiny", seed=1)
    for number, (name, rank) in enumerate(ADAPTERS.items()):
        write_adapter(folder / "adapters" / name, seed=11 + number, rank=rank)
    made: dict[str, Any] = {
        "model": str(folder / "tiny"),
        "adapters": {name: str(folder / "adapters" / name) for name in ADAPTERS},
    }
    made["gguf"] = write_gguf(folder)
    if misfits:
        for kind in MISFITS:
            write_misfit(folder / "misfits" / kind, kind)
        write_gguf_misfits(folder)
        made["misfits"] = {kind: str(folder / "misfits" / kind) for kind in MISFITS}
    for path in (folder, *(item for item in folder.iterdir() if item.is_dir())):
        path.chmod(0o755)
    return made


def ensure() -> Path:
    """Make sure that the cache has model, adapters and misfits of this file's version; return their folder."""
    sources = Path(__file__).read_bytes() + Path(gguf.__file__).read_bytes()
    folder = CACHE / "models" / hashlib.sha256(sources).hexdigest()[:12]
    with host.lock("models"):
        if not folder.exists():
            with host.step("Making the tiny model and its adapters", "1 s"):
                unfinished = folder.with_suffix(".part")
                shutil.rmtree(unfinished, ignore_errors=True)
                make(unfinished, misfits=True)
                unfinished.rename(folder)
    return folder
