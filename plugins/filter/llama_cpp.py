"""Filters that turn the variables of the llama_cpp role into what llama-server reads."""

from __future__ import annotations

from pathlib import PurePosixPath

from ..module_utils.engines import adapters, llama_cpp_build


def llama_cpp_words(arguments: dict) -> list[str]:
    """Return ``arguments`` as command-line words: true is ``--name``, false ``--no-name``, a list repeats the argument.

    Null leaves an argument out. The program takes a value as a separate word, not with ``=``.
    """
    words: list[str] = []
    for name, values in arguments.items():
        plain = name.lstrip("-").replace("_", "-")
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, bool):
                words.append(f"--{plain}" if value else f"--no-{plain}")
            elif value is not None:
                words += [f"--{plain}", str(value)]
    return words


def llama_cpp_names(arguments: dict) -> list[str]:
    """Return the names of ``arguments`` as on the program's help page, with ``no-`` for those that are turned off."""
    return [
        f"no-{plain}" if value is False else plain
        for plain, value in ((name.lstrip("-").replace("_", "-"), value) for name, value in arguments.items())
        if value is not None
    ]


def llama_cpp_loras(wanted: list, paths: dict) -> str | None:
    """Return the value of ``--lora-scaled``: each adapter's file with its scale, by default 0; None without adapters.

    With 0 an adapter is loaded and has no effect until a request names it. ``--lora-init-without-apply`` does not do
    that in 0.7.0.
    """
    scaled = [f"{paths[each['name']]}:{float(each.get('scale', 0)):g}" for each in wanted]
    return ",".join(scaled) or None


def llama_cpp_kv_types(kv_type: str) -> dict:
    """Return the arguments for a type of the KV cache: one, or two as ``key/value``."""
    key, _, value = kv_type.partition("/")
    return {"cache-type-k": key.strip(), "cache-type-v": (value or key).strip()}


def llama_cpp_supported(arguments: dict, known: list) -> dict:
    """Return those of ``arguments`` that the program knows; all of them if its arguments are not known yet."""
    return {name: value for name, value in arguments.items() if not known or name in known}


def llama_cpp_alias(model: str, file: str) -> str:
    """Return the default name under which a model is served: the file's name without its extension."""
    return PurePosixPath(file or model).name.removesuffix(".gguf")


class FilterModule:
    def filters(self):
        return {
            "llama_cpp_alias": llama_cpp_alias,
            "llama_cpp_kv_types": llama_cpp_kv_types,
            "llama_cpp_loras": llama_cpp_loras,
            "llama_cpp_names": llama_cpp_names,
            "llama_cpp_supported": llama_cpp_supported,
            "llama_cpp_unpinned": adapters.without_file,
            "llama_cpp_words": llama_cpp_words,
            "llama_cpp_build_options": llama_cpp_build.options_of,
        }
