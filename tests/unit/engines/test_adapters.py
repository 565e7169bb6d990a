"""An adapter states exactly what is loaded: a path, a commit, a file with its checksum."""

from __future__ import annotations

import pytest

from plugins.module_utils.engines import adapters


@pytest.mark.parametrize(
    ("adapter", "named"),
    [
        ({"source": "/srv/adapter"}, False),
        ({"source": "org/adapter", "revision": "a" * 40}, False),
        ({"source": "org/adapter"}, True),
        ({"source": "org/adapter", "revision": "main"}, True),
        ({"source": "org/adapter", "revision": "a" * 41}, True),
        ({"source": "org/adapter", "revision": "a" * 40 + "\n"}, True),
        ({"source": "org/adapter", "revision": None}, True),
    ],
)
def test_an_adapter_of_vllm(adapter, named):
    assert adapters.without_commit([{"name": "x", **adapter}]) == ["x"] * named


@pytest.mark.parametrize(
    ("adapter", "named"),
    [
        ({"source": "/srv/adapter.gguf"}, False),
        ({"source": "/srv/adapter"}, True),
        ({"source": "/srv/adapter.gguf\n"}, True),
        ({"source": "org/adapter", "sha256": "a" * 64}, False),
        ({"source": "org/adapter", "sha256": "a" * 63}, True),
        ({"source": "org/adapter.gguf"}, True),
    ],
)
def test_an_adapter_of_llama_cpp(adapter, named):
    assert adapters.without_file([{"name": "x", **adapter}]) == ["x"] * named
