"""Whether a model directory is whole and whether adapters fit the model, before an engine is started on them."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import PlanError
from .shape import shape_from_config
from .sources import LocalSource, read_json
from .tensors import gguf_header, model_tensors, safetensors_header, shard_names
from .vllm_start import LORA_RANKS

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "tekken.json")


def check_model(directory: str) -> list[str]:
    """What is missing or damaged in a local model (a directory, or a GGUF file): sentences, empty when it is whole."""
    try:
        if directory.endswith(".gguf"):
            file = Path(directory)
            if not file.is_file():
                return [f"Model file {directory} does not exist: give the path of the GGUF file."]
            gguf_header(LocalSource(str(file.parent)), file.name)
            return []
        source = LocalSource(directory)
        if not source.exists("config.json"):
            return [f"{directory} has no config.json: it is not a model directory, or the download is incomplete."]
        config = read_json(source, "config.json")
        problems = []
        try:
            shape_from_config(config, directory)
        except PlanError as error:
            problems.append(str(error))
        names = shard_names(source)
        if not names:
            other = [n for n in source.names() if n.endswith((".bin", ".pt", ".gguf"))]
            if not other:
                problems.append(f"{directory} has no weight files: download the model again.")
        for name in names:
            if not source.exists(name):
                problems.append(f"{name} is named by the index but is not in {directory}: download it again.")
                continue
            try:
                safetensors_header(source, name)
            except PlanError as error:
                problems.append(str(error))
        if not any(source.exists(name) for name in TOKENIZERS):
            problems.append(f"{directory} has no tokenizer files: download the model again.")
        return problems
    except PlanError as error:
        return [str(error)]


def check_adapter(base_directory: str, adapter_directory: str, max_lora_rank: int = 16) -> list[str]:
    """Why an adapter does not fit its base model: sentences, empty when it fits.

    Compared are the rank with `max_lora_rank`, the target modules with the base's tensors, and the shape of every A
    and B with the weight it changes. Only headers are read.
    """
    try:
        return adapter_problems(
            LocalSource(adapter_directory), model_tensors(LocalSource(base_directory)), max_lora_rank
        )
    except PlanError as error:
        return [str(error)]


def adapter_problems(adapter, base: dict, max_lora_rank: int) -> list[str]:
    """The same for an adapter's source and the base's tensors by name (none: shapes are not compared)."""
    where = adapter.label
    if max_lora_rank not in LORA_RANKS:
        return [f"max_lora_rank {max_lora_rank} is not one of {', '.join(map(str, LORA_RANKS))}."]
    if not adapter.exists("adapter_config.json"):
        return [f"{where} has no adapter_config.json: it is not an adapter, or the download is incomplete."]
    config = read_json(adapter, "adapter_config.json")
    problems = []
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        problems.append(f"{where} is an adapter of type {kind}: only LORA is served.")
    for option in ("use_dora", "modules_to_save"):
        if config.get(option):
            problems.append(f"{where} uses {option}, which vLLM does not serve: train the adapter without it.")
    if config.get("bias", "none") != "none":
        problems.append(f"{where} trains biases ({config['bias']}), which vLLM does not serve: use bias none.")
    rank = config.get("r")
    if not isinstance(rank, int) or rank < 1:
        return [*problems, f"adapter_config.json of {where} has no rank r: save the adapter again."]
    highest = max([rank, *(v for v in (config.get("rank_pattern") or {}).values() if isinstance(v, int))])
    if highest > max_lora_rank:
        fitting = next((r for r in LORA_RANKS if r >= highest), None)
        cure = f"set max_lora_rank to {fitting}" if fitting else "train it with a lower rank"
        problems.append(f"{where} has rank {highest}, max_lora_rank is {max_lora_rank}: {cure}.")
    if not adapter.exists("adapter_model.safetensors"):
        what = "only adapter_model.bin" if adapter.exists("adapter_model.bin") else "no weights"
        return [*problems, f"{where} has {what}: save it as adapter_model.safetensors."]
    tensors = safetensors_header(adapter, "adapter_model.safetensors")
    weights = {name: tensor.shape for name, tensor in base.items()}
    if not weights:
        return problems
    return problems + _shape_problems(where, tensors, weights)


def _shape_problems(where: str, tensors: dict, weights: dict) -> list[str]:
    """Compares the adapter's A and B with the base's matrices; at most one sentence a kind."""
    unknown, wrong = [], []
    for name, tensor in sorted(tensors.items()):
        match = re.match(r"(?:base_model\.model\.)?(.+)\.lora_(?:embedding_)?([AB])(?:\.weight)?$", name)
        if not match:
            unknown.append(name)
            continue
        module, half = match.groups()
        target = _base_shape(module, weights)
        if target is None:
            unknown.append(module)
            continue
        if target == () or len(tensor.shape) != 2 or "embed_tokens" in module:
            continue  # quantized weights are stored in another form: their shape says nothing
        have = tensor.shape[1] if half == "A" else tensor.shape[0]
        want = target[1] if half == "A" else target[0]
        if have != want:
            wrong.append(f"{module} lora_{half} is {have} wide, the model's is {want}")
    problems = []
    if wrong:
        problems.append(f"{where} does not fit the model's shape: {wrong[0]} ({len(wrong)} tensors differ).")
    if unknown:
        problems.append(f"{where} targets {unknown[0]}, which the model does not have ({len(unknown)} tensors).")
    return problems


def _base_shape(module: str, weights: dict) -> tuple | None:
    """(out, in) of the base weight a module name means, () where only a quantized form is there, None where none is."""
    candidates = [module]
    if module.startswith("model."):
        candidates += [module[len("model.") :], "language_model." + module, "model.language_model." + module[6:]]
    for candidate in candidates:
        plain = weights.get(f"{candidate}.weight")
        if plain is not None:
            return plain if len(plain) == 2 else ()
        if any(f"{candidate}.{suffix}" in weights for suffix in ("qweight", "weight_packed", "weight_scale")):
            return ()
    return None
