"""Whether a model directory is complete and whether adapters match the model, before an engine is started."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import PlanError
from .shape import shape_from_config
from .sources import LocalSource, is_pointer, pointer_told, read_json
from .tensors import INDEX, gguf_header, model_tensors, safetensors_header, shard_names, weight_map
from .vllm_start import LORA_RANKS

VOCABULARIES = (
    "tokenizer.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "vocab.txt", "tekken.json",
)  # fmt: skip
# What the engine reads in addition to the weights, by the end of its name.
READ = (".json", ".jinja", ".model", ".py", ".tiktoken", ".txt")
JSON_OBJECTS = (
    "adapter_config.json", "added_tokens.json", "chat_template.json", "config.json", "generation_config.json",
    "preprocessor_config.json", "processor_config.json", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json", "vocab.json",
)  # fmt: skip
CODE = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
ADAPTER_WEIGHTS = "adapter_model.safetensors"
FLOATS = ("F16", "BF16", "F32", "F64", "F8_E4M3", "F8_E5M2")


def check_model(directory: str, trust_remote_code: bool = True) -> list[str]:
    """Return what is missing or damaged in a local model (a directory or a GGUF file); empty if it is complete.

    If `trust_remote_code` is set, the code that its configuration names must exist; otherwise it is not read.
    """
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
        problems = _damaged_files(source)
        if problems:
            return problems
        try:
            shape_from_config(read_json(source, "config.json"), directory)
        except PlanError as error:
            problems.append(str(error))
        if trust_remote_code:
            problems += _code_problems(source)
        return problems + _weight_problems(source) + _tokenizer_problems(source)
    except PlanError as error:
        return [str(error)]


def own_model_type(directory: str) -> str:
    """Return the type of a model whose configuration has a class of its own for it; "" if it has none."""
    config = read_json(LocalSource(directory), "config.json")
    auto_map = config.get("auto_map")
    return str(config.get("model_type") or "") if isinstance(auto_map, dict) and "AutoConfig" in auto_map else ""


def _damaged_files(source) -> list[str]:
    """Return which of the small files are pointers, empty or not JSON; the weights are checked by their headers."""
    problems = []
    for name in source.names():
        if not source.exists(name) or not name.endswith(READ):
            continue
        if is_pointer(source, name):
            problems.append(pointer_told(source, name))
        elif name in JSON_OBJECTS:
            try:
                read_json(source, name)
            except PlanError as error:
                problems.append(str(error))
        elif not source.size(name) and (name in VOCABULARIES or name.endswith((".jinja", ".tiktoken"))):
            problems.append(f"{name} of {source.label} is empty: download it again.")
    return problems


def _weight_problems(source) -> list[str]:
    where, problems = source.label, []
    names = shard_names(source)
    if not names:
        other = [n for n in source.names() if n.endswith((".bin", ".pt", ".gguf"))]
        if not other:
            return [f"{where} has no weight files: download the model again."]
        return [pointer_told(source, name) for name in other if source.exists(name) and is_pointer(source, name)]
    listed: dict[str, set] = {}
    for tensor, name in weight_map(source).items() if source.exists(INDEX) else ():
        listed.setdefault(name, set()).add(tensor)
    for name in names:
        if not source.exists(name):
            problems.append(f"{name} is named by the index but is not in {where}: download it again.")
            continue
        try:
            absent = listed.get(name, set()) - safetensors_header(source, name).keys()
        except PlanError as error:
            problems.append(str(error))
            continue
        if absent:
            problems.append(f"{name} of {where} has no {min(absent)}, which the index says it has: download it again.")
    return problems


def _tokenizer_problems(source) -> list[str]:
    names = [name for name in source.names() if source.exists(name)]
    if any(name in VOCABULARIES or name.endswith(".tiktoken") for name in names) or _references(source, CODE[1]):
        return []
    if "vocab.json" not in names:
        return [f"{source.label} has no tokenizer files: download the model again."]
    missing = "merges.txt" not in names
    return [f"{source.label} has vocab.json and no merges.txt: download the model again."] if missing else []


def _code_problems(source) -> list[str]:
    """Return which of a model's own code is not next to its configuration; the engine requests none from a hub."""
    problems = []
    for name in CODE:
        for reference in _references(source, name):
            origin, _, local = reference.rpartition("--")
            if origin:
                problems.append(
                    f"auto_map in {name} of {source.label} takes {local} from {origin}, which the engine cannot fetch: "
                    "put that code beside it and name it there, or take a model that has its own."
                )
            elif not re.fullmatch(r"\w+\.\w+", local):
                problems.append(f"auto_map in {name} of {source.label} names no class of a file: download it again.")
            else:
                problems += _missing_code(source, local.partition(".")[0], f"auto_map in {name}", set())
    return list(dict.fromkeys(problems))


def _references(source, name: str) -> list[str]:
    """Return the classes in a configuration's auto_map, each as ``file.Class`` or ``owner/model--file.Class``."""
    auto_map = read_json(source, name).get("auto_map") if source.exists(name) else None
    found = list(auto_map.values()) if isinstance(auto_map, dict) else [auto_map]
    found = [one for value in found for one in (value if isinstance(value, list) else [value])]
    return [str(one) for one in found if one is not None]


def _missing_code(source, module: str, by: str, seen: set) -> list[str]:
    """Return what is missing of a module of code and of the local modules that it imports."""
    if module in seen:
        return []
    seen.add(module)
    file = f"{module}.py"
    if not source.exists(file) or not source.size(file):
        return [f"{by} names {file}, which is not in {source.label} or empty: download it again."]
    text = source.read(file).decode("utf-8", "replace")
    beside = re.findall(r"^\s*(?:from\s+\.(\w+)\s+import|import\s+\.(\w+)\s*$)", text, re.MULTILINE)
    return [text for pair in beside for text in _missing_code(source, pair[0] or pair[1], file, seen)]


def check_adapter(base_directory: str, adapter_directory: str, max_lora_rank: int = 16) -> list[str]:
    """Return why an adapter does not match its base model: sentences, empty if it matches.

    Compared are the rank with `max_lora_rank`, the target modules with the base's tensors, and the shape of every A
    and B with the weight it changes. Only headers are read.
    """
    try:
        adapter = LocalSource(adapter_directory)
        return _damaged_files(adapter) or adapter_problems(
            adapter, model_tensors(LocalSource(base_directory)), max_lora_rank
        )
    except PlanError as error:
        return [str(error)]


def adapter_problems(adapter, base: dict, max_lora_rank: int) -> list[str]:
    """Return the same for an adapter's source and the base's tensors by name (none: shapes are not compared)."""
    where = adapter.label
    if max_lora_rank not in LORA_RANKS:
        return [f"max_lora_rank {max_lora_rank} is not one of {', '.join(map(str, LORA_RANKS))}."]
    if not adapter.exists("adapter_config.json"):
        return [f"{where} has no adapter_config.json: it is not an adapter, or the download is incomplete."]
    config = read_json(adapter, "adapter_config.json")
    problems = _unserved(config, where)
    lacking = _lacking(config)
    if lacking:
        return [*problems, f"adapter_config.json of {where} has no {lacking}: save the adapter again."]
    ranks = config.get("rank_pattern") or {}
    highest = max(config["r"], *ranks.values(), 1)
    if highest > max_lora_rank:
        fitting = next((r for r in LORA_RANKS if r >= highest), None)
        cure = f"set max_lora_rank to {fitting}" if fitting else "train it with a lower rank"
        problems.append(f"{where} has rank {highest}, max_lora_rank is {max_lora_rank}: {cure}.")
    if not adapter.exists(ADAPTER_WEIGHTS):
        what = "only adapter_model.bin" if adapter.exists("adapter_model.bin") else "no weights"
        problems.append(f"{where} has {what}: save it as {ADAPTER_WEIGHTS}.")
    if problems:  # checks of the weights would only repeat them
        return problems
    tensors = safetensors_header(adapter, ADAPTER_WEIGHTS)
    weights = {name: tensor.shape for name, tensor in base.items()}
    problems = _half_problems(where, tensors, config, weights)
    return problems if problems or not weights else _shape_problems(where, tensors, weights)


def _unserved(config: dict, where: str) -> list[str]:
    """Return what the adapter's configuration requires and vLLM does not support."""
    problems = []
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        problems.append(f"{where} is an adapter of type {kind}: only LORA is served.")
    for option in ("use_dora", "modules_to_save"):
        if config.get(option):
            problems.append(f"{where} uses {option}, which vLLM does not serve: train the adapter without it.")
    if config.get("bias", "none") != "none":
        problems.append(f"{where} trains biases ({config['bias']}), which vLLM does not serve: use bias none.")
    return problems


def _lacking(config: dict) -> str:
    """Return the fields that an adapter's configuration lacks or has in another form; "" if all are right.

    The engine requires r, lora_alpha and target_modules (vllm/lora/peft_helper.py of 0.23.0).
    """
    if not _is_number(config.get("r"), whole=True):
        return "rank r, a whole number above 0"
    if not _is_number(config.get("lora_alpha")):
        return "lora_alpha, a number above 0"
    targets = config.get("target_modules")
    if not targets or not (isinstance(targets, str) or _are_texts(targets)):
        return "target_modules, a list of the modules' names"
    for name, whole in (("rank_pattern", True), ("alpha_pattern", False)):
        pattern = config.get(name) or {}
        if not isinstance(pattern, dict) or not all(_is_number(value, whole) for value in pattern.values()):
            return f"{name} that maps modules' names to numbers"
    return ""


def _is_number(value, whole: bool = False) -> bool:
    kinds = (int,) if whole else (int, float)
    return isinstance(value, kinds) and not isinstance(value, bool) and 0 < value < float("inf")


def _are_texts(value) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) and one for one in value)


def _half_problems(where: str, tensors: dict, config: dict, weights: dict) -> list[str]:
    """Return the errors within the adapter's weights: each module needs an A and a B, of its rank."""
    halves: dict[str, dict] = {}
    for name, tensor in tensors.items():
        module, half = _half(name)
        if half:
            halves.setdefault(module, {})[half] = tensor
    if not halves:
        return [f"{ADAPTER_WEIGHTS} of {where} has no LoRA weights (lora_A and lora_B): save the adapter again."]
    wrong = [text for module, pair in sorted(halves.items()) for text in _pair_problems(module, pair, config)]
    if wrong:
        return [f"{ADAPTER_WEIGHTS} of {where} has {wrong[0]} ({len(wrong)} in all): save the adapter again."]
    targets = config["target_modules"]
    if isinstance(targets, str) or config.get("layers_to_transform") is not None or config.get("exclude_modules"):
        return []
    # Training tools also skip names that the model does not have.
    trained, known = {_last(module) for module in halves}, {_last(name.removesuffix(".weight")) for name in weights}
    absent = [name for name in map(_last, targets) if name in known - trained]
    if absent:
        return [f"{ADAPTER_WEIGHTS} of {where} has nothing for the target module {absent[0]}: save the adapter again."]
    return []


def _pair_problems(module: str, pair: dict, config: dict) -> list[str]:
    if len(pair) < 2:
        have, missing = ("A", "B") if "A" in pair else ("B", "A")
        return [f"the lora_{have} of {module} and not its lora_{missing}"]
    rank = _rank_of(module, config)
    for half, tensor in sorted(pair.items()):
        if tensor.dtype not in FLOATS:
            return [f"weights of type {tensor.dtype} for {module}"]
        if len(tensor.shape) != 2 or 0 in tensor.shape:
            return [f"a lora_{half} of {module} that is no matrix"]
        own = tensor.shape[0] if half == "A" else tensor.shape[1]
        if own != rank and ".experts" not in module:  # several experts' ranks are in one matrix
            return [f"rank {own} for {module}, and adapter_config.json says {rank}"]
    return []


def _rank_of(module: str, config: dict) -> int:
    """Return the rank that the configuration gives a module; its patterns are regular expressions."""
    for pattern, rank in (config.get("rank_pattern") or {}).items():
        try:
            found = re.fullmatch(rf"(.*\.)?({pattern})", module)
        except re.error:
            found = _last(module) == pattern
        if found:
            return rank
    return config["r"]


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _half(name: str) -> tuple[str, str]:
    """Return the module and the half (A or B) of an adapter's tensor; (name, "") if it is neither."""
    match = re.fullmatch(r"(?:base_model\.model\.)?(.+)\.(?:lora_([AB])\.weight|lora_embedding_([AB]))", name)
    return (match[1], match[2] or match[3]) if match else (name, "")


def _shape_problems(where: str, tensors: dict, weights: dict) -> list[str]:
    """Compare the adapter's A and B with the base's matrices; return at most one sentence per kind."""
    unknown, wrong = [], []
    for name, tensor in sorted(tensors.items()):
        module, half = _half(name)
        if not half:
            # The embedding that was trained on is saved next to its halves.
            unknown += [] if name.endswith(".base_layer.weight") else [name]
            continue
        target = _base_shape(module, weights)
        if target is None:
            unknown.append(module)
            continue
        if target == () or len(tensor.shape) != 2 or "embed_tokens" in module:
            continue  # quantized weights are stored in another form, so their shape cannot be compared
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
    """Return (out, in) of a module's base weight, () if only a quantized form exists, None if there is none."""
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
