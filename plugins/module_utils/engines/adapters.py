"""Which LoRA adapters of an inventory do not say exactly what is to be loaded. Plain Python."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")


def local(source: str) -> bool:
    """Return whether a source is a path on the host; anything else is a name on the model hub."""
    return source.startswith("/")


def without_commit(adapters: Iterable[Mapping]) -> list[str]:
    """Return the names of the adapters of vLLM that are on the hub and have no full commit as their revision."""
    return [
        each["name"]
        for each in adapters
        if not local(each["source"]) and not COMMIT.fullmatch(str(each.get("revision", "")))
    ]


def without_file(adapters: Iterable[Mapping]) -> list[str]:
    """Return the names of the adapters of llama.cpp that are neither a .gguf file on the host nor one with a sha256."""
    return [
        each["name"]
        for each in adapters
        if not (
            each["source"].endswith(".gguf") if local(each["source"]) else SHA256.fullmatch(str(each.get("sha256", "")))
        )
    ]
