"""Check a role's variables: their types and the kinds of their values, with one sentence per error.

Plain Python, tested alone. Types are those of ``meta/argument_specs.yml``; a *kind* is what a type cannot express, such
as a path that must be absolute. Roles see values as they were written, so a value that is right only after a conversion
(a word for a list, ``off`` without quotes for a text) is refused here. A secret, which its spec marks with ``no_log``,
must have been written as text: YAML reads ``0x12`` or ``0123`` as a different number. It is never shown.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from urllib.parse import urlsplit

from ansible.module_utils.common.parameters import DEFAULT_TYPE_VALIDATORS

from .redaction import HIDDEN, names_secret

WORDS = {
    "str": "text", "path": "text", "int": "a whole number", "float": "a number", "bool": "true or false",
    "list": "a list", "dict": "a mapping",
}  # fmt: skip
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
SERVED_NAME = re.compile(r"[A-Za-z0-9][\w.:@+-]*(/[A-Za-z0-9][\w.:@+-]*)*", re.ASCII)
# systemd, shells and .env files give these characters a meaning.
PATH = re.compile(r"(/[^\s/\"'\\%$]+)+/?")
# Names that useradd of Debian and Ubuntu accepts.
ACCOUNT = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
HOST_NAME = re.compile(r"(?!-)[\w-]{1,63}(\.(?!-)[\w-]{1,63})*", re.ASCII)
INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}")
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
ARGUMENT = re.compile(r"-{0,2}[A-Za-z][\w.-]*", re.ASCII)
MEMORY_MAX = re.compile(r"infinity|[1-9]\d*[KMGT]?|(100|[1-9]\d?)%")
# Variables of the inventory that are a default in several roles: {name: argument spec}, and their rules.
SHARED = {"download_mirror": {"type": "str"}}
SHARED_RULES = [{"variable": "download_mirror", "kind": "url", "optional": True}]
# Refused with the new name for one release. An entry of `engines` has the same names without the role's.
RENAMED = {
    "ai_server_environment_mib": "ai_server_build_mib",
    "ai_server_install_environment": "ai_server_build_environment",
    "ai_server_put_back": "ai_server_restore_command",
    "ai_server_take_out": "ai_server_drain_command",
    "install_environment": "build_environment",
    "llama_cpp_environment": "llama_cpp_service_environment",
    "llama_cpp_install_environment": "llama_cpp_build_environment",
    "llama_cpp_put_back": "llama_cpp_restore_command",
    "llama_cpp_take_out": "llama_cpp_drain_command",
    "profile_install_environment": "profile_build_environment",
    "rotation_put_back": "rotation_restore_command",
    "rotation_take_out": "rotation_drain_command",
    "uv_environment": "uv_build_environment",
    "vllm_environment": "vllm_service_environment",
    "vllm_environment_mib": "vllm_build_mib",
    "vllm_install_environment": "vllm_build_environment",
    "vllm_put_back": "vllm_restore_command",
    "vllm_take_out": "vllm_drain_command",
    "watchdog_night_put_back": "watchdog_night_restore_command",
    "watchdog_night_take_out": "watchdog_night_drain_command",
}
ENGINE_NAME = re.compile(r"[a-z][a-z0-9-]{0,30}")
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")


def is_ip_address(value) -> bool:
    try:
        ipaddress.ip_address(str(value))
    except ValueError:
        return False
    return True


def is_network(value) -> bool:
    try:
        ipaddress.ip_network(str(value))
    except ValueError:
        return False
    return True


def is_host(value) -> bool:
    """Return whether a value is an IP address or a name; digits alone (999.1.1.1) are a mistyped address."""
    return is_ip_address(value) or bool(HOST_NAME.fullmatch(value) and not value.rpartition(".")[2].isdigit())


def is_interface_or_address(value) -> bool:
    return is_ip_address(value) or bool(INTERFACE.fullmatch(value) and re.search("[A-Za-z]", value))


def is_absolute(value) -> bool:
    return bool(PATH.fullmatch(value)) and not {".", ".."} & set(value.split("/"))


def is_url(value) -> bool:
    if not re.fullmatch(r"[!-~]+", value):
        return False
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and is_host(parts.hostname or "") and parts.port != 0
    except ValueError:  # an invalid port, brackets without an address
        return False


def is_json_file(value) -> bool:
    try:
        return value.startswith("/") and isinstance(json.loads(Path(value).read_text(encoding="utf-8")), dict)
    except (OSError, ValueError):
        return False


# kind: (whether a value is of it, what it must be)
KINDS: dict[str, tuple[Callable, str]] = {
    "absolute_path": (
        is_absolute,
        "an absolute path without blanks, quotes, \\, %, $ and .., such as /srv/example",
    ),
    "url": (is_url, "an http(s) address, such as http://host.example:3100"),
    "listen_address": (
        lambda value: value == "localhost" or is_ip_address(value),
        "an IP address of the host or localhost, such as 127.0.0.1 or 0.0.0.0",
    ),
    "ip_address": (is_ip_address, "an IP address, such as 0.0.0.0 or 127.0.0.1"),
    "network": (is_network, "an IP address or a network, such as 10.0.0.4 or 10.0.0.0/8"),
    "host_name": (
        lambda value: is_host(value) and value == value.lower(),
        "a host's name in small letters or its address, without scheme and port, such as images.example",
    ),
    "interface_or_address": (is_interface_or_address, "an IP address or the name of an interface, such as 127.0.0.1"),
    "account": (
        ACCOUNT.fullmatch,
        "a name that Linux takes: at most 32 of a-z 0-9 _ -, a letter or _ first",
    ),
    "service_user": (
        lambda value: ACCOUNT.fullmatch(value) and value != "root",
        "the name of a system user of its own: at most 32 of a-z 0-9 _ -, a letter or _ first, and not root",
    ),
    "engine_name": (ENGINE_NAME.fullmatch, "a lowercase letter, then at most 30 lowercase letters, digits and dashes"),
    "served_name": (
        SERVED_NAME.fullmatch,
        "a name of letters, digits and . _ - : @ + /, each part with a letter or digit first",
    ),
    "model_source": (
        lambda value: HUB_NAME.fullmatch(value) or is_absolute(value),
        "owner/name on the hub or an absolute path on the host",
    ),
    "secret": (re.compile(r"[!-~]+").fullmatch, ""),
    "json_file": (is_json_file, "the absolute path of a file on the controller that holds a JSON mapping"),
    "positive": (lambda value: value > 0, "more than 0"),
    "oom_score": (
        lambda value: -1000 < value <= 1000,
        "from -999 to 1000 (-999 is killed last, 1000 first)",
    ),
    "memory_max": (
        MEMORY_MAX.fullmatch,
        "bytes, a number with K, M, G or T, a percentage of the host's memory, or infinity, such as 256M or 10%",
    ),
}


def kind_problems(
    name: str, value, kind: str, optional: bool | list[str] = False, places: Mapping | None = None
) -> list[str]:
    """Return why ``value`` (each element, if it is a list) is not of ``kind``; with ``optional`` "" is allowed.

    For the kinds in `MAPPINGS`, ``places`` are the names that a mapping must not have, each with the variable to set
    instead. There ``optional`` allows null for all other names, or for those that it lists.
    """
    if kind in MAPPINGS:
        return MAPPINGS[kind](name, value, optional, places or {})
    if isinstance(value, list):
        return [text for n, one in enumerate(value) for text in kind_problems(f"{name}[{n}]", one, kind)]
    if optional and value == "":
        return []
    fits, wanted = KINDS[kind]
    if fits(value):
        return []
    if kind == "secret":  # never shown
        return [
            f"{name} is empty or has a blank, a line break or what else a header cannot carry; "
            "write it in quotes on one line of the inventory's vault."
        ]
    return [f"{name} is {shown(value)}; it must be {wanted}."]


def _environment(name: str, variables: Mapping, optional, places: Mapping) -> list[str]:
    """Return the errors in environment variables: values must be text or numbers, and secrets text."""
    problems = []
    for key, value in variables.items():
        at = f"{name}.{key}"
        if not VARIABLE.fullmatch(str(key)):
            problems.append(f"{name} has {shown(key)}; the name of a variable has letters, digits and underscores.")
        elif value is None and _may_be_null(key, optional, places):
            continue
        elif key in places:
            problems.append(_elsewhere(name, key, places[key]))
        elif value is None:
            problems.append(f"{at} has no value (null); give it one, or take it out.")
        elif not isinstance(value, str) and names_secret(key):
            problems.append(_not_text(at, value))
        elif isinstance(value, bool) or not isinstance(value, (str, int, float)):
            problems.append(f"{at} is {_word(value)} and not text; write what the program is to read, in quotes.")
        elif CONTROL.search(str(value)):
            problems.append(f"{at} has a control character, which no variable can carry; take it out.")
        elif "\n" in str(value) and names_secret(key):
            problems.append(f"{at} has a line break, which a file of secrets cannot carry; write it on one line.")
    return problems


def _arguments(name: str, arguments: Mapping, optional, places: Mapping) -> list[str]:
    """Return the errors in arguments of a program; the same name may be written with dashes or underscores."""
    problems, seen = [], {}
    for key, value in arguments.items():
        if not ARGUMENT.fullmatch(str(key)):
            problems.append(f"{name} has {shown(key)}, which is no name of an argument; write it without blanks.")
            continue
        plain = key.lstrip("-").replace("_", "-")
        place = places.get(plain) or places.get(plain.removeprefix("no-"))
        if plain in seen:
            problems.append(f"{name} has {seen[plain]} and {key}, which are the same argument; leave one of them.")
        elif value is None and _may_be_null(plain, optional, places):
            pass
        elif place:
            problems.append(_elsewhere(name, key, place))
        elif value is None:
            problems.append(f"{name}.{key} has no value (null); give it one, or take it out.")
        elif not _plain(value):
            problems.append(f"{name}.{key} has what is no text, such as a date without quotes; write it in quotes.")
        seen.setdefault(plain, key)
    return problems


def _may_be_null(key: str, optional, places: Mapping) -> bool:
    return key in optional if isinstance(optional, list) else bool(optional) and key not in places


def _settings(name: str, settings: Mapping, optional, places: Mapping) -> list[str]:
    """Return which settings of a .env file have another variable, in any case, or are secrets but not text."""
    problems = []
    for key, value in settings.items():
        if str(key).upper() in places:
            problems.append(_elsewhere(name, key, places[str(key).upper()]))
        elif value is not None and not isinstance(value, str) and names_secret(str(key)):
            problems.append(_not_text(f"{name}.{key}", value))
    return problems


def _elsewhere(name: str, key: str, place: str) -> str:
    return f"{name} has {key}, whose place is {place}; set that, and take it out here."


def _plain(value) -> bool:
    """Return whether a value is of a JSON type: YAML has dates and more."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _plain(one) for key, one in value.items())
    if isinstance(value, list):
        return all(map(_plain, value))
    return value is None or isinstance(value, (str, bool, int, float))


MAPPINGS = {"arguments": _arguments, "environment": _environment, "settings": _settings}


def shown(value) -> str:
    """Return a value for a sentence, without the credentials of an address."""
    if isinstance(value, str) and "://" in value:
        value = re.sub(r"(?<=://).*@", f"{HIDDEN}@", re.sub(r"(?<=\?).+", HIDDEN, value, flags=re.S), flags=re.S)
    return json.dumps(value, ensure_ascii=False, default=str)


def _word(value) -> str:
    """Return the type that YAML made of a value, in one word, without showing the value."""
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    known = {str: "text", Mapping: "a mapping", list: "a list", date: "a date"}
    return next((word for kind, word in known.items() if isinstance(value, kind)), "something else")


def _not_text(name: str, value) -> str:
    return f"{name} is {_word(value)} and not text; write it in quotes."


def typed(name: str, spec: Mapping, value) -> tuple[object, list[str]]:
    """Return ``value`` in the type that ``spec`` declares, and one sentence for each error in it.

    Text in place of a list or a mapping is not shown: it may be a secret.
    """
    kind = spec.get("type", "str")
    if value is None:
        return None, [f"{name} has no value (null); give it one, or take it out."]
    if spec.get("no_log") and kind == "str" and not isinstance(value, str):
        return None, [_not_text(name, value)]
    if not _looks_like(kind, value):
        actual = _word(value) if spec.get("no_log") else _described(value, kind)
        return None, [f"{name} is {actual}; it must be {WORDS[kind]}{_such_as(spec)}."]
    if kind == "list":
        return _typed_list(name, spec, value)
    if kind == "dict":
        return _typed_dict(name, spec["options"], value) if spec.get("options") else (value, [])
    try:
        converted = DEFAULT_TYPE_VALIDATORS[kind](value)
    except (TypeError, ValueError):
        return None, [f"{name} is {shown(value)}; it must be {WORDS[kind]}."]
    if kind == "float" and not math.isfinite(converted):
        return None, [f"{name} is {shown(value)}; it must be a number."]
    if spec.get("choices") and converted not in spec["choices"]:
        return None, [f"{name} is {shown(converted)}; it must be one of {', '.join(map(str, spec['choices']))}."]
    return converted, []


def secrets(spec: Mapping, value) -> list[str]:
    """Return the texts in ``value`` that ``spec``, the option of an argument spec, marks with ``no_log``.

    If suboptions of a marked option are marked too, only these are secret, such as a caller's key without its last day.
    """
    if spec.get("no_log") and not any(map(marked, (spec.get("options") or {}).values())):
        return _texts(value)
    entries = [each for each in (value if isinstance(value, list) else [value]) if isinstance(each, Mapping)]
    options = (spec.get("options") or {}).items()
    return [text for name, one in options for entry in entries if name in entry for text in secrets(one, entry[name])]


def marked(spec: Mapping) -> bool:
    """Return whether ``spec`` or one of its suboptions is marked with ``no_log``."""
    return bool(spec.get("no_log")) or any(map(marked, (spec.get("options") or {}).values()))


def _texts(value) -> list[str]:
    if isinstance(value, Mapping):
        return _texts(list(value.values()))
    if isinstance(value, list):
        return [text for each in value for text in _texts(each)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


def _typed_list(name: str, spec: Mapping, value: list) -> tuple[list, list[str]]:
    element = {"type": spec.get("elements", "raw"), "options": spec.get("options"), "no_log": spec.get("no_log")}
    if element["type"] == "raw":
        return value, []
    pairs = [typed(f"{name}[{n}]", element, one) for n, one in enumerate(value)]
    return [one for one, _ in pairs], [text for _, problems in pairs for text in problems]


def _typed_dict(name: str, options: Mapping, value: Mapping) -> tuple[dict, list[str]]:
    known = ", ".join(options)
    problems = [f"{name} has {key}, which is not known; it takes {known}." for key in value if key not in options]
    problems += [
        f"{name} lacks {key}; give it one."
        for key, spec in options.items()
        if spec.get("required") and key not in value
    ]
    converted = {}
    for key in value:
        if key in options:
            converted[key], found = typed(f"{name}.{key}", options[key], value[key])
            problems += found
    return converted, problems


def _looks_like(kind: str, value) -> bool:
    if kind == "list":
        return isinstance(value, list)
    if kind == "dict":
        return isinstance(value, Mapping)
    if isinstance(value, (list, Mapping)):
        return False
    return kind == "bool" or not isinstance(value, bool)


def _described(value, kind: str) -> str:
    if isinstance(value, bool):
        return f"{shown(value)} without quotes" if kind in ("str", "path") else shown(value)
    if isinstance(value, list):
        return "a list"
    return "a mapping" if isinstance(value, Mapping) else "text" if isinstance(value, str) else shown(value)


def _such_as(spec: Mapping) -> str:
    if spec.get("type") == "list" and spec.get("options"):
        return f" of mappings, each with {', '.join(spec['options'])}"
    if spec.get("type") == "dict" and spec.get("options"):
        return f" with {', '.join(spec['options'])}"
    if spec.get("type", "str") == "str" and spec.get("choices"):
        return f", one of {', '.join(map(str, spec['choices']))}"
    return ""
