"""Say what is wrong with a role's variables, one sentence each: their types, and what kind of value they hold.

Plain Python, tested alone. Types are those of ``meta/argument_specs.yml``; a *kind* is what a type cannot say, such as
a path that must be absolute. Roles see values as they were written, so what only a conversion would make right (a word
for a list, ``off`` without quotes for a text) is refused here.
"""

from __future__ import annotations

import ipaddress
import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from ansible.module_utils.common.parameters import DEFAULT_TYPE_VALIDATORS

WORDS = {
    "str": "text", "path": "text", "int": "a whole number", "float": "a number", "bool": "true or false",
    "list": "a list", "dict": "a mapping",
}  # fmt: skip
HIDDEN = "********"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
SERVED_NAME = re.compile(r"[A-Za-z0-9][\w.:@+-]*(/[A-Za-z0-9][\w.:@+-]*)*", re.ASCII)
# systemd, shells and .env files read more than a path into these.
PATH = re.compile(r"(/[^\s/\"'\\%$]+)+/?")
# What useradd of Debian and Ubuntu takes.
ACCOUNT = re.compile(r"[a-z_][a-z0-9_-]{0,31}")
HOST_NAME = re.compile(r"(?!-)[\w-]{1,63}(\.(?!-)[\w-]{1,63})*", re.ASCII)
INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}")


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
    """An IP address or a name; digits alone (999.1.1.1) are an address that was mistyped."""
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
    except ValueError:  # a port that is none, brackets without an address
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
    "interface_or_address": (is_interface_or_address, "an IP address or the name of an interface, such as 127.0.0.1"),
    "account": (
        ACCOUNT.fullmatch,
        "a name that Linux takes: at most 32 of a-z 0-9 _ -, a letter or _ first",
    ),
    "service_user": (
        lambda value: ACCOUNT.fullmatch(value) and value != "root",
        "the name of a system user of its own: at most 32 of a-z 0-9 _ -, a letter or _ first, and not root",
    ),
    "served_name": (
        SERVED_NAME.fullmatch,
        "a name of letters, digits and . _ - : @ + /, each part with a letter or digit first",
    ),
    "model_source": (
        lambda value: HUB_NAME.fullmatch(value) or is_absolute(value),
        "owner/name on the hub or an absolute path on the host",
    ),
    "secret": (re.compile(r"(?!.*\$\{)[!-~]+").fullmatch, ""),
    "json_file": (is_json_file, "the absolute path of a file on the controller that holds a JSON mapping"),
    "positive": (lambda value: value > 0, "more than 0"),
}


def kind_problems(name: str, value, kind: str, optional: bool = False) -> list[str]:
    """Return what keeps ``value`` (of each element, where it is a list) from being of ``kind``; "" may be optional."""
    if isinstance(value, list):
        return [text for n, one in enumerate(value) for text in kind_problems(f"{name}[{n}]", one, kind)]
    if optional and value == "":
        return []
    fits, wanted = KINDS[kind]
    if fits(value):
        return []
    if kind == "secret":  # never shown
        return [
            f"{name} is empty or has a blank, a line break or what else a header or a .env file cannot carry; "
            "write it in quotes on one line of the inventory's vault."
        ]
    return [f"{name} is {shown(value)}; it must be {wanted}."]


def shown(value) -> str:
    """Return a value for a sentence, without the credentials of an address."""
    if isinstance(value, str) and "://" in value:
        value = re.sub(r"(?<=://).*@", f"{HIDDEN}@", re.sub(r"(?<=\?).+", HIDDEN, value, flags=re.S), flags=re.S)
    return json.dumps(value, ensure_ascii=False, default=str)


def without_credentials(text: str) -> str:
    """Return a sentence whose addresses have no user, password or query: these may be secrets."""
    text = re.sub(r"(://[^\s?\"']*\?)[^\s\"']+", rf"\1{HIDDEN}", text)
    return re.sub(r"(?<=://)(?:[^/\s]+|[^\s:]+:\S*)@", f"{HIDDEN}@", text)


def typed(name: str, spec: Mapping, value) -> tuple[object, list[str]]:
    """Return ``value`` in the type that ``spec`` declares, and one sentence for each thing that is wrong with it.

    A text where a list or a mapping should be is not shown: it may be a secret.
    """
    kind = spec.get("type", "str")
    if value is None:
        return None, [f"{name} has no value (null); give it one, or take it out."]
    if not _looks_like(kind, value):
        return None, [f"{name} is {_described(value, kind)}; it must be {WORDS[kind]}{_such_as(spec)}."]
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


def _typed_list(name: str, spec: Mapping, value: list) -> tuple[list, list[str]]:
    element = {"type": spec.get("elements", "raw"), "options": spec.get("options")}
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
