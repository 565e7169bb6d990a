"""Headers of weight files: names, types and shapes of tensors, never their data.

safetensors: eight bytes of length, then a JSON header. GGUF: magic, version, metadata, tensor table
(the format's description in the ggml project).
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field

from .errors import PlanError
from .sources import is_pointer, pointer_told, read_json

SAFETENSORS_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
INDEX = "model.safetensors.index.json"
HEADER_LIMIT = 100_000_000  # the format's own limit on the header's length

# GGML type number: (values in a block, bytes of a block)
GGML_TYPES = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 9: (32, 36),
    10: (256, 84), 11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292),
    16: (256, 66), 17: (256, 74), 18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82),
    23: (256, 136), 24: (1, 1), 25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2),
    34: (256, 54), 35: (256, 66), 39: (32, 17),
}  # fmt: skip
_SCALARS = {0: "B", 1: "b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_CHUNK = 1 << 20


@dataclass(frozen=True)
class Tensor:
    """One tensor: `dtype` as the file names it, `shape` outermost first, `size` in bytes, from byte `begin` on.

    The position is not compared: a single file has the tensor at another place than its shards.
    """

    dtype: str
    shape: tuple[int, ...]
    size: int
    begin: int = field(default=0, compare=False)


@dataclass
class Gguf:
    """Metadata and tensors of a GGUF file (all its parts); `size` in bytes."""

    metadata: dict = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    size: int = 0


def safetensors_header(source, name: str) -> dict[str, Tensor]:
    """Return the tensors of one safetensors file. Raises PlanError if it is truncated, damaged or of another format.

    The same rules as in the format's own reader: the tensors fill the file without gaps, each with the bytes of its
    shape.
    """
    other = f"{name} of {source.label} is truncated or not a safetensors file: download it again."
    head = source.read(name, 0, 8)
    length = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    if not 2 <= length <= HEADER_LIMIT:
        if is_pointer(source, name):
            raise PlanError(pointer_told(source, name, "a safetensors file"))
        raise PlanError(other)
    try:
        header = json.loads(source.read(name, 8, length))
        tensors = {key: _tensor(entry) for key, entry in header.items() if key != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise PlanError(other) from None
    end = 0
    for key, tensor in sorted(tensors.items(), key=lambda pair: (pair[1].begin, pair[1].size)):
        width = SAFETENSORS_BYTES.get(tensor.dtype)  # None for a newer type
        if tensor.begin != end or (width and math.prod(tensor.shape) * width != tensor.size):
            raise PlanError(f"{name} of {source.label} is damaged where {key} stands: download it again.")
        end += tensor.size
    total, wanted = source.size(name), 8 + length + end
    if total != wanted:
        what = "truncated" if total < wanted else "damaged"
        raise PlanError(f"{name} of {source.label} is {what}: it has {total} of {wanted} bytes, download it again.")
    return tensors


def _tensor(entry: dict) -> Tensor:
    """Return one entry of a header. Raises ValueError, KeyError or TypeError if it is not valid."""
    (begin, end), shape, dtype = entry["data_offsets"], entry["shape"], entry["dtype"]
    numbers = [begin, end, *shape]
    if not isinstance(dtype, str) or any(type(number) is not int or number < 0 for number in numbers) or end < begin:
        raise ValueError
    return Tensor(dtype, tuple(shape), end - begin, begin)


def shard_names(source) -> list[str]:
    """Return a model's safetensors files: those in the index, or the single file, or all files with that ending."""
    if source.exists(INDEX):
        return sorted(set(weight_map(source).values()))
    if source.exists("model.safetensors"):
        return ["model.safetensors"]
    # consolidated.* repeats the same weights in another layout.
    return [n for n in source.names() if n.endswith(".safetensors") and not n.startswith(("consolidated", "adapter_"))]


def weight_map(source) -> dict[str, str]:
    """Return the file of each tensor from the index. Raises PlanError if the index names no files."""
    files = read_json(source, INDEX).get("weight_map")
    if not isinstance(files, dict) or not files or not all(_is_file_name(name) for name in files.values()):
        raise PlanError(f"{INDEX} of {source.label} names no files: download it again.")
    return files


def _is_file_name(name) -> bool:
    return isinstance(name, str) and name != "" and not name.startswith("/") and ".." not in name.split("/")


def model_tensors(source) -> dict[str, Tensor]:
    """Return every tensor of a model, over all its shards; empty if it has no safetensors files."""
    tensors: dict[str, Tensor] = {}
    for name in shard_names(source):
        try:
            tensors.update(safetensors_header(source, name))
        except FileNotFoundError:
            raise PlanError(f"{name} is named by the index but is not in {source.label}: download it again.") from None
    return tensors


class _Reader:
    """Reads forward through a file in chunks, so that a header of unknown length costs little."""

    def __init__(self, source, name: str):
        self.source, self.name = source, name
        self.buffer, self.base, self.at = b"", 0, 0

    def take(self, count: int) -> bytes:
        while self.at + count > len(self.buffer):
            self.base += self.at
            self.buffer = self.buffer[self.at :]
            self.at = 0
            more = self.source.read(self.name, self.base + len(self.buffer), max(_CHUNK, count))
            if not more:
                raise PlanError(f"{self.name} of {self.source.label} is a truncated GGUF file: download it again.")
            self.buffer += more
        piece = self.buffer[self.at : self.at + count]
        self.at += count
        return piece

    def number(self, code: str):
        return struct.unpack(code, self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        length = self.number("<Q")
        if length > HEADER_LIMIT:
            raise PlanError(f"{self.name} of {self.source.label} is a damaged GGUF file: download it again.")
        return self.take(length).decode("utf-8", "replace")

    def value(self, kind: int):
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item, count = self.number("<I"), self.number("<Q")
            if item in _SCALARS:
                width = struct.calcsize(_SCALARS[item])
                raw = self.take(width * count)
                return list(struct.unpack(f"<{count}{_SCALARS[item].lstrip('<')}", raw))
            # Vocabularies are the long arrays: only their length matters.
            for _ in range(count):
                self.value(item)
            return [None] * count
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        raise PlanError(f"{self.name} of {self.source.label} is a damaged GGUF file: download it again.")


def gguf_header(source, name: str) -> Gguf:
    """Return metadata and tensors of a GGUF file and of the parts it was split into."""
    result = _gguf_part(source, name)
    parts = int(result.metadata.get("split.count", 0) or 0)
    if parts > 1:
        for number in range(2, parts + 1):
            part = name.replace(f"-00001-of-{parts:05d}", f"-{number:05d}-of-{parts:05d}")
            try:
                more = _gguf_part(source, part)
            except FileNotFoundError:
                raise PlanError(f"{part} is not in {source.label}: download all parts of the model.") from None
            result.tensors.update(more.tensors)
            result.size += more.size
    return result


def _gguf_part(source, name: str) -> Gguf:
    reader = _Reader(source, name)
    if reader.take(4) != b"GGUF":
        raise PlanError(f"{name} of {source.label} is not a GGUF file: give the path of one.")
    version = reader.number("<I")
    if version not in (2, 3):
        raise PlanError(f"{name} of {source.label} has GGUF version {version}, known are 2 and 3: convert it again.")
    tensor_count, pair_count = reader.number("<Q"), reader.number("<Q")
    result = Gguf()
    for _ in range(pair_count):
        key = reader.string()
        result.metadata[key] = reader.value(reader.number("<I"))
    end = 0
    for _ in range(tensor_count):
        key = reader.string()
        shape = tuple(reversed([reader.number("<Q") for _ in range(reader.number("<I"))]))
        kind, offset = reader.number("<I"), reader.number("<Q")
        if kind not in GGML_TYPES:
            raise PlanError(f"Tensor {key} of {name} has the unknown type {kind}: the file is newer than this planner.")
        values, width = GGML_TYPES[kind]
        count = 1
        for extent in shape:
            count *= extent
        size = count // values * width
        result.tensors[key] = Tensor(str(kind), shape, size)
        end = max(end, offset + size)
    alignment = int(result.metadata.get("general.alignment", 32))
    start = reader.base + reader.at
    start += -start % alignment
    result.size = source.size(name)
    if result.size < start + end:
        raise PlanError(
            f"{name} of {source.label} is truncated: it has {result.size} of {start + end} bytes, download it again."
        )
    return result
