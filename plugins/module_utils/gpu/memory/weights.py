"""Bytes of weights on one GPU: read from headers if files are available, otherwise computed from the shape."""

from __future__ import annotations

import re

from .errors import PlanError
from .figures import COMPUTED, ESTIMATED, GIB, READ, Figure, estimate
from .quantization import BESIDE_EXPERTS, FINE_BITS
from .shape import DTYPE_BYTES, Shape
from .tensors import SAFETENSORS_BYTES, Tensor

# The allocator rounds up and the engine adds its own tables: logs are 0.01 to 0.09 GiB above the files.
ALLOCATOR, TABLES = 1.002, int(0.015 * GIB)


def dtype_bytes(name: str) -> int:
    """Return the bytes of one value of a type as engines name it."""
    key = str(name).replace("torch.", "")
    if key not in DTYPE_BYTES:
        raise PlanError(f"dtype {name} is not known: use auto, bfloat16, float16 or float32.")
    return DTYPE_BYTES[key]


def from_tensors(tensors: dict[str, Tensor], shape: Shape, dtype: str, quantization: str, tp: int, pp: int) -> Figure:
    """Return the weights from the headers: what is stored, in the type in which it is loaded."""
    target = dtype_bytes(dtype)
    in_flight = quantization and not shape.quantization
    total = 0.0
    for name, tensor in tensors.items():
        if shape.tied and name == "lm_head.weight":
            continue  # the engine shares the embedding
        size = tensor.size
        width = SAFETENSORS_BYTES.get(tensor.dtype, 2)
        floating = tensor.dtype in ("F32", "BF16", "F16")
        if floating and not shape.quantization:
            size = size // width * target
        if in_flight and floating and len(tensor.shape) == 2 and not _keeps_type(name):
            size = size // target * shape.bits / 8
        total += size
    total = total * ALLOCATOR / (tp * pp) + TABLES
    note = "tensors in the safetensors headers"
    if in_flight:
        return estimate(total, total * 0.97, total * 1.06, f"{note}, quantized to {quantization} while loading")
    return Figure(total, READ if tp * pp == 1 else COMPUTED, total * 0.995, total * 1.01, note)


def _keeps_type(name: str) -> bool:
    return "embed" in name or "lm_head" in name or "norm" in name


def from_shape(shape: Shape, dtype: str, name: str, tp: int, pp: int, ep: int | None = None) -> Figure:
    """Return the weights from the dimensions, or, if incomplete, from the parameter count in the model's name."""
    plain = dtype_bytes(dtype)
    complete = (shape.expert_intermediate if shape.moe else shape.intermediate) and shape.hidden and shape.vocab
    if complete:
        total = shape.weight_bytes(plain, tp, ep) * ALLOCATOR / pp + TABLES
        spread = 0.02 if shape.known else 0.10
        low, high, note = total * (1 - spread), total * (1 + 2 * spread), "dimensions in the configuration"
        if shape.quantization and not shape.kept_known and shape.quantization != "gguf":
            # It is not stated which parts are quantized, nor in how large groups.
            fine = FINE_BITS if shape.bits < FINE_BITS else 0
            low = min(low, shape.weight_bytes(plain, tp, ep, frozenset()) * ALLOCATOR / pp)
            high = max(high, shape.weight_bytes(plain, tp, ep, BESIDE_EXPERTS & _mostly(shape), fine) * ALLOCATOR / pp)
            note += "; which parts are quantized is in the files"
        return Figure(total, COMPUTED, low, high, note)
    return _from_name(shape, plain, name, tp * pp)


def _mostly(shape: Shape) -> frozenset[str]:
    """Return the parts that a useful quantization may leave unquantized: not the one with most of the weights."""
    parts = shape.parts()
    return frozenset(part for part, size in parts.items() if size < 0.5 * sum(parts.values()))


def _from_name(shape: Shape, plain: int, name: str, share: int) -> Figure:
    """Return the weights from the parameter count that a model's name states, spread over `share` GPUs."""
    stated = parameters_in_name(name)
    if not stated:
        raise PlanError(
            f"The weights of {name} cannot be computed: its configuration has no sizes of experts and its files are "
            "absent."
        )
    linear_bytes = shape.bits / 8 if shape.quantization else plain
    embedding = min(shape.embedding_parameters(), stated / 2)
    total = ((stated - embedding) * linear_bytes + embedding * plain) * ALLOCATOR / share
    high = 1.22 if shape.quantization else 1.08
    return Figure(total, ESTIMATED, total * 0.94, total * high, f"{stated / 1e9:g} billion parameters by its name")


def parameters_in_name(name: str) -> float:
    """Return the parameters in a model's name (`7B`, `235B-A22B`, `0.5b`, `8x7B`, `360M`); 0 if it states none."""
    many = re.search(r"(?<![\w.])(\d+)x(\d+(?:\.\d+)?)b(?![a-z])", name, re.IGNORECASE)
    if many:
        return int(many.group(1)) * float(many.group(2)) * 1e9 * 0.83  # experts share attention
    found = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", name, re.IGNORECASE)
    if not found:
        return 0
    return float(found.group(1)) * (1e9 if found.group(2).lower() == "b" else 1e6)
