"""Whether a model directory is whole and whether adapters fit the model, before an engine is started on them."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

from .errors import PlanError
from .shape import shape_from_config
from .sources import LocalSource, read_json
from .tensors import gguf_header, model_tensors, safetensors_header, shard_names
from .vllm_start import LORA_RANKS

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "tekken.json")
# Files that name classes of the model's own code. Source: transformers, utils/hub.py and dynamic_module_utils.py.
WITH_CODE = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
# What git leaves in the place of a file that git-lfs did not fetch. Source: git-lfs, docs/spec.md.
POINTER = b"version https://git-lfs.github.com/spec/"
POINTER_SIZE = 1024  # bytes, at most
LORA_TENSOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(?:embedding_)?([AB])(?:\.[\w-]+)?(?:\.weight)?")
FLOATS = ("F16", "BF16", "F32", "F64")


def check_model(directory: str, trust_remote_code: bool = True) -> list[str]:
    """What is missing or damaged in a local model (a directory, or a GGUF file): sentences, empty when it is whole.

    Code that the model brings counts where ``trust_remote_code`` lets the engine run it.
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
        pointers = _pointers(source)
        if pointers:
            return [_pointer_problem(source, pointers)]
        return (
            _config_problems(source)
            + _weight_problems(source)
            + _json_problems(source)
            + (_code_problems(source) if trust_remote_code else [])
        )
    except PlanError as error:
        return [str(error)]


def _config_problems(source) -> list[str]:
    try:
        shape_from_config(read_json(source, "config.json"), source.label)
    except PlanError as error:
        return [str(error)]
    return []


def _weight_problems(source) -> list[str]:
    problems, names = [], shard_names(source)
    if not names and not any(name.endswith((".bin", ".pt", ".gguf")) for name in source.names()):
        problems.append(f"{source.label} has no weight files: download the model again.")
    for name in names:
        if not source.exists(name):
            problems.append(f"{name} is named by the index but is not in {source.label}: download it again.")
            continue
        try:
            safetensors_header(source, name)
        except PlanError as error:
            problems.append(str(error))
    return problems


def _json_problems(source) -> list[str]:
    """The tokenizer is there, and what is called JSON is."""
    problems = []
    if not any(source.exists(name) for name in TOKENIZERS):
        problems.append(f"{source.label} has no tokenizer files: download the model again.")
    for name in source.names():
        if name.endswith(".json") and name != "config.json" and not name.endswith(".index.json"):
            try:
                json.loads(source.read(name).decode("utf-8"))
            except ValueError:
                problems.append(f"{name} of {source.label} is not valid JSON: download it again.")
    return problems


def _pointers(source) -> list[str]:
    """Files that are only pointers to large files."""
    small = [name for name in source.names() if source.size(name) <= POINTER_SIZE]
    return [name for name in small if source.read(name, 0, len(POINTER)) == POINTER]


def _pointer_problem(source, names: list[str]) -> str:
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"{names[0]}{more} of {source.label} is a pointer of git-lfs and not the file: run git lfs pull "
        "there, or download the files from the hub."
    )


def _code_problems(source) -> list[str]:
    """Whether the code that a model brings is all in its directory: the engine asks no hub."""
    problems, files = [], set()
    for name in WITH_CODE:
        if not source.exists(name):
            continue
        for reference in _references(read_json(source, name).get("auto_map")):
            repository, elsewhere, path = reference.rpartition("--")
            if elsewhere:
                problems.append(
                    f"{name} of {source.label} takes code from the repository {repository}, which the engine does "
                    "not fetch: copy its files here and name them without the repository, or set trust_remote_code to "
                    "false."
                )
            else:
                files.add(f"{path.rpartition('.')[0]}.py")
    missing, looked = set(), set()
    while files - looked:
        file = (files - looked).pop()
        looked.add(file)
        if source.exists(file):
            files |= _relative_imports(source, file)
        else:
            missing.add(file)
    if missing:
        problems.append(
            f"{source.label} needs {', '.join(sorted(missing))} of the model's own code, which is not there: download "
            "the model again."
        )
    return sorted(set(problems))


def _references(auto_map) -> list[str]:
    """The classes of an auto_map, each ``module.Class`` or ``owner/repository--module.Class``."""
    values = auto_map.values() if isinstance(auto_map, dict) else []
    flat = [one for value in values for one in (value if isinstance(value, list) else [value])]
    return [one for one in flat if isinstance(one, str) and "." in one]


def _relative_imports(source, name: str) -> set[str]:
    """The files beside a module that it imports; `PlanError` where it is not Python."""
    try:
        tree = ast.parse(source.read(name))
    except (SyntaxError, ValueError):
        raise PlanError(f"{name} of {source.label} is not valid Python: download it again.") from None
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    modules = [node.module or alias.name for node in imports for alias in node.names]
    return {f"{module.replace('.', '/')}.py" for module in modules}


def check_adapter(base_directory: str, adapter_directory: str, max_lora_rank: int = 16) -> list[str]:
    """Why an adapter does not fit its base model: sentences, empty when it fits.

    Compared are the rank with `max_lora_rank`, the target modules with the base's tensors, and the shape of every A
    and B with the weight it changes. Only headers are read.
    """
    try:
        source = LocalSource(adapter_directory)
        pointers = _pointers(source)
        if pointers:
            return [_pointer_problem(source, pointers)]
        return adapter_problems(source, model_tensors(LocalSource(base_directory)), max_lora_rank)
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
    problems, declared = _adapter_config_problems(where, config)
    if declared > max_lora_rank:
        problems += _rank_problems(where, declared, max_lora_rank)
    if not adapter.exists("adapter_model.safetensors"):
        what = "only adapter_model.bin" if adapter.exists("adapter_model.bin") else "no weights"
        return [*problems, f"{where} has {what}: save it as adapter_model.safetensors."]
    tensors = safetensors_header(adapter, "adapter_model.safetensors")
    problems += _half_problems(where, tensors, max(declared, max_lora_rank))
    weights = {name: tensor.shape for name, tensor in base.items()}
    return problems + (_shape_problems(where, tensors, weights) if weights else [])


def _adapter_config_problems(where: str, config: dict) -> tuple[list[str], int]:
    """What the engine does not take of adapter_config.json, and the highest rank in it (0 where that is not known).

    Source: vLLM 0.15.1 to 0.33.0, vllm/lora/peft_helper.py.
    """
    problems = []
    kind = config.get("peft_type", "LORA")
    if kind != "LORA":
        problems.append(f"{where} is an adapter of type {kind}: only LORA is served.")
    for option in ("use_dora", "modules_to_save"):
        if config.get(option):
            problems.append(f"{where} uses {option}, which vLLM does not serve: train the adapter without it.")
    if config.get("bias", "none") != "none":
        problems.append(f"{where} trains biases ({config['bias']}), which vLLM does not serve: use bias none.")

    wrong = []
    words = {
        "r": "a whole number above 0",
        "lora_alpha": "a number above 0",
        "target_modules": "a name or a list of names",
    }
    for option, right in _REQUIRED.items():
        if config.get(option) is None:
            wrong.append(f"has no {'rank r' if option == 'r' else option}")
        elif not right(config[option]):
            wrong.append(f"has {option} {_shown(config[option])}, which must be {words[option]}")
    for option in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(option) or {}
        if not isinstance(pattern, dict) or not all(_is_number(value) for value in pattern.values()):
            wrong.append(f"has {option} {_shown(pattern)}, which must be a mapping of names to numbers")
    problems += [f"adapter_config.json of {where} {text}: save the adapter again." for text in wrong]
    ranks = [] if wrong else [config["r"], *(config.get("rank_pattern") or {}).values()]
    return problems, max(ranks, default=0)


def _is_number(value, *kinds: type) -> bool:
    """Whether it is a number above 0 of ``kinds``, any by default; true and false are no numbers."""
    return isinstance(value, kinds or (int, float)) and not isinstance(value, bool) and value > 0


def _is_names(value) -> bool:
    words = value if isinstance(value, list) else [value]
    return bool(words) and all(isinstance(word, str) and word for word in words)


_REQUIRED = {"r": lambda value: _is_number(value, int), "lora_alpha": _is_number, "target_modules": _is_names}


def _shown(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _rank_problems(where: str, rank: int, max_lora_rank: int) -> list[str]:
    fitting = next((each for each in LORA_RANKS if each >= rank), None)
    cure = f"set max_lora_rank to {fitting}" if fitting else "train it with a lower rank"
    return [f"{where} has rank {rank}, max_lora_rank is {max_lora_rank}: {cure}."]


def _half_problems(where: str, tensors: dict, max_lora_rank: int) -> list[str]:
    """Whether there are weights, each with both of its halves, of one rank and of a type that is computed with."""
    halves: dict[str, dict] = {}
    for name, tensor in sorted(tensors.items()):
        match = LORA_TENSOR.fullmatch(name)
        if match:
            halves.setdefault(match[1], {})[match[2]] = tensor
    file = f"adapter_model.safetensors of {where}"
    if not halves:
        return [f"{file} has no weights of an adapter: save the adapter again."]
    lonely = [(module, pair) for module, pair in halves.items() if len(pair) != 2]
    if lonely:
        module, pair = lonely[0]
        lacking = "B" if "A" in pair else "A"
        return [
            f"{file} has no lora_{lacking} of {module} ({len(lonely)} modules lack a half): save the adapter again."
        ]
    odd = [name for name, tensor in tensors.items() if tensor.dtype not in FLOATS]
    if odd:
        return [f"{file} has {odd[0]} as {tensors[odd[0]].dtype}, which is not a floating-point type: save it as BF16."]
    # Of an embedding A and B stand the same way as of other modules: A is rank wide outermost, B innermost.
    ranks = {module: (pair["A"].shape[:1], pair["B"].shape[-1:]) for module, pair in halves.items()}
    unlike = [module for module, (inner, outer) in ranks.items() if inner != outer]
    if unlike:
        one, other = (list(shape) for shape in ranks[unlike[0]])
        return [f"{file}: of {unlike[0]}, lora_A has rank {one} and lora_B {other}: save the adapter again."]
    highest = max((inner[0] for inner, _ in ranks.values() if inner), default=0)
    return [] if highest <= max_lora_rank else _rank_problems(file, highest, max_lora_rank)


def _shape_problems(where: str, tensors: dict, weights: dict) -> list[str]:
    """Compares the adapter's A and B with the base's matrices; at most one sentence a kind."""
    unknown, wrong = [], []
    for name, tensor in sorted(tensors.items()):
        match = LORA_TENSOR.fullmatch(name)
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
