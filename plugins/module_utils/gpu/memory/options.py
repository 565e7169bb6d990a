"""The options of a service in a plan. A new engine argument that matters to memory is one row here.

Argument spec and documentation of the module gpu_memory_plan, the command line, the arguments that count in
`engine_arguments`, the roles' variables in a plan and the fingerprint come from these tables. The planner passes an
argument to the field of the same name in `VllmService` or `LlamaService`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Option:
    """One option: its type, its description in Ansible's markup, and further keys of its argument spec.

    Without a description it is no option, but an argument that counts in `engine_arguments`.
    """

    type: str
    description: str = ""
    variable: bool = False  # the engine's role has a variable of this name and passes it on unchanged
    fingerprint: bool = False  # a start that was measured with another value says nothing about this one
    more: Mapping = field(default_factory=dict)
    options: Mapping[str, Option] = field(default_factory=dict)


VLLM = {
    "dtype": Option("str", "Data type of the weights and activations, as in C(--dtype).", True, True),
    "quantization": Option("str", "Quantization while loading, as in C(--quantization).", True, True),
    "kv_cache_dtype": Option(
        "str", "Type of the KV cache; llama.cpp: f16, q8_0 or key/value as q8_0/q4_0.", fingerprint=True
    ),
    "gpu_memory_utilization": Option("float", "Share of the GPU that vLLM takes.", variable=True),
    "max_model_len": Option("int", "Context length in tokens.", variable=True),
    "max_num_seqs": Option("int", "Concurrent sequences."),
    "max_num_batched_tokens": Option("int", "Maximum tokens per step.", more={"no_log": False}),
    "enforce_eager": Option("bool", "Whether vLLM runs without CUDA graphs.", True, True),
    "tensor_parallel_size": Option("int", "Number of GPUs that share the model.", fingerprint=True),
    "max_loras": Option("int", "Adapters that can be used at the same time."),
    "max_lora_rank": Option("int", "Largest rank of an adapter.", True, True),
    "block_size": Option("int"),
    "enable_lora": Option("bool"),
    "enable_prefix_caching": Option("bool"),
    "kv_cache_memory_bytes": Option("int", fingerprint=True),
    "language_model_only": Option("bool"),
    "max_cudagraph_capture_size": Option("int"),
    "no_enable_prefix_caching": Option("bool"),
    "pipeline_parallel_size": Option("int"),
    "speculative_config": Option("dict"),
}
LLAMA_CPP = {
    "gpu_layers": Option("int", "llama.cpp: layers on the GPU, as in C(--n-gpu-layers).", True, True),
    "context": Option("int", "llama.cpp: context in tokens.", True, True),
    "batch": Option("int", "llama.cpp: batch size.", variable=True),
    "ubatch": Option("int", "llama.cpp: physical batch size.", variable=True),
    "flash_attention": Option("bool", "llama.cpp: whether flash attention is on."),
    "parallel": Option("int", "llama.cpp: slots.", variable=True),
}
ARGUMENTS = {**VLLM, **LLAMA_CPP}
ENGINES = ("vllm", "llamacpp", "reserved")
SERVICE = {
    "name": Option("str", "Name in the plan.", more={"required": True}),
    "engine": Option(
        "str", "V(reserved) stands for another process that will use O(services[].memory_mib).",
        more={"choices": list(ENGINES), "default": "vllm"},
    ),
    "group": Option(
        "str",
        "Services of one group are never in memory together. Each must be able to start while all other services run.",
    ),
    "asleep_mib": Option("int", "Memory it keeps while another service of its group runs; 0 if it is stopped."),
    "version": Option("str", "Version of the engine, needed for vLLM."),
    "model": Option("str", "Path of a directory or GGUF file, or the name of a model in the cache or on the hub."),
    "revision": Option("str", "Commit or branch of a model given by name.", fingerprint=True),
    "hf_home": Option("path", "Hugging Face cache searched before the hub for a model given by name."),
    "config": Option("dict", "Content of C(config.json), to plan without the files of the model."),
    "model_size_mib": Option("int", "Size of the weights in MiB if no file is available."),
    "unit": Option("str", "systemd unit whose GPU memory counts as free and whose journal is compared."),
    "memory_mib": Option("int", "Memory that a V(reserved) service takes."),
    "adapters": Option(
        "list", "LoRA adapters. If their files are available, the plan checks that they match the model.",
        more={"elements": "dict"},
        options={
            "name": Option("str", "Name under which it is served."),
            "source": Option("str", "Its directory, or its name in the cache or on the hub."),
            "revision": Option("str", "Commit or branch of an adapter given by name."),
            "path": Option("str", "Its directory, if it differs from the source."),
        },
    ),
    "engine_arguments": Option(
        "dict", "Other arguments of C(vllm serve) by their own names; the plan uses those that matter to memory."
    ),
    **ARGUMENTS,
}  # fmt: skip


def argument_spec(options: Mapping[str, Option]) -> dict:
    """Return Ansible's argument spec of options."""
    return {
        name: {"type": one.type, **one.more, **({"options": argument_spec(one.options)} if one.options else {})}
        for name, one in options.items()
        if one.description
    }


def documentation(options: Mapping[str, Option]) -> dict:
    """Return the documentation of options, as in a module's DOCUMENTATION."""
    return {
        name: {
            "description": one.description,
            "type": one.type,
            **{key: value for key, value in one.more.items() if key != "no_log"},
            **({"suboptions": documentation(one.options)} if one.options else {}),
        }
        for name, one in options.items()
        if one.description
    }


def role_variables(options: Mapping[str, Option]) -> tuple[str, ...]:
    """Return the names of the options that are variables of the engine's role, without its prefix."""
    return tuple(name for name, one in options.items() if one.variable)
