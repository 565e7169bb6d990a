"""Filters for the content of units, and for the addresses that services listen on."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import SplitResult, urlsplit

from ansible.errors import AnsibleFilterError

from ..module_utils.addresses import host_port, is_ip, local_url
from ..module_utils.quiet_module import secrets_of
from ..module_utils.release import systemd_unit

# Flags of Go programs whose value is a secret; flags that name a file with it end in File.
SECRET_FLAG = re.compile(r"(password|token|secret|authkey|accesskey|secretkey|headers)$", re.IGNORECASE)


def exec_line(argv: list) -> str:
    """Return ``argv`` as the value of ExecStart=, quoted so that systemd passes exactly these arguments.

    Source: systemd.service(5), "Command lines"; ``$`` would be expanded, so it is doubled. ``%`` is doubled in every
    value when the unit is rendered.
    """
    return " ".join(_quoted(str(argument)).replace("$", "$$") for argument in argv)


def environment_lines(variables: dict) -> list[str]:
    """Return the values of Environment= for all variables that are not secrets; null leaves one out.

    Everyone can read a unit; see `secret_environment` for the others.
    """
    return [f'"{_escaped(f"{name}={value}")}"' for name, value in _defined(variables) if not secrets_of(name, value)]


def secret_environment(variables: dict) -> str:
    """Return the lines of an EnvironmentFile= with the variables that are secrets, such as a proxy with a password.

    Source: systemd.exec(5), "EnvironmentFile="; within double quotes ``\\`` is put before special characters.
    """
    lines = [(name, value) for name, value in _defined(variables) if secrets_of(name, value)]
    special = str.maketrans({mark: f"\\{mark}" for mark in '"\\`$'})
    return "".join(f'{name}="{value.translate(special)}"\n' for name, value in lines)


def _defined(variables: dict) -> list[tuple[str, str]]:
    named = sorted(variables.items(), key=lambda pair: pair[0].lower())
    return [(name, str(value)) for name, value in named if value is not None]


def flags(arguments: dict) -> list[str]:
    """Return ``arguments`` as flags: true is ``--name``, false ``--no-name``, a list repeats the flag.

    Programs refuse ``--name=True``.
    """
    found = []
    for name, values in sorted(arguments.items()):
        for value in values if isinstance(values, list) else [values]:
            if isinstance(value, bool):
                found.append(f"--{name}" if value else f"--no-{name}")
            else:
                found.append(f"--{name}={value}")
    return found


def go_flags(arguments: dict) -> list[str]:
    """Return ``arguments`` as flags of Go's own package: a switch is ``-name=true``, a list repeats the flag."""
    return [
        f"-{name}={str(value).lower() if isinstance(value, bool) else value}"
        for name, values in sorted(arguments.items())
        for value in (values if isinstance(values, list) else [values])
    ]


def flag_secrets(arguments: dict) -> list[str]:
    """Return the names of ``arguments`` whose value is the secret itself, not a file with it."""
    return sorted(
        name for name, value in arguments.items() if SECRET_FLAG.search(name) and not str(value).startswith("file://")
    )


def flag_clashes(wanted: dict) -> list[str]:
    """Return one sentence for each flag that is in ``wanted`` (names of flags by variable) more than once.

    Programs accept a flag once, on or off.
    """
    places: dict[str, list[str]] = {}
    for variable, names in wanted.items():
        for name in names:
            places.setdefault(str(name).removeprefix("no-"), []).append(variable)
    problems = []
    for name, variables in places.items():
        if len(variables) > 1:
            where = " and ".join(dict.fromkeys(variables))
            problems.append(f"{where}: {name} is named more than once; name it in one place, once.")
    return problems


def _quoted(word: str) -> str:
    escaped = _escaped(word)
    return f'"{escaped}"' if not word or any(mark in escaped for mark in " \t;'\"\\") else escaped


def _escaped(word: str) -> str:
    """Return ``word`` escaped for systemd's double quotes; a carriage return ends its lines too."""
    for mark, escape in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r")):
        word = word.replace(mark, escape)
    return word


def listen_address(value: str, facts: dict, variable: str) -> str:
    """Return the IP address that ``value`` means: itself, or the IPv4 address of the interface of that name."""
    if is_ip(value):
        return str(ipaddress.ip_address(value))
    interface = facts.get(value.replace("-", "_")) or {}
    address = (interface.get("ipv4") or {}).get("address")
    if not address:
        known = ", ".join(facts.get("interfaces") or [])
        raise AnsibleFilterError(
            f"{variable}: {value!r} is neither an IP address nor an interface with one (interfaces here: {known})"
        )
    return address


def peers(address: str, clients: list | None = None) -> list:
    """Return the peers with which a service that listens on ``address`` may exchange packets; [] means anyone.

    A service on loopback talks only to this machine. An exposed service with declared ``clients`` talks to those too,
    and to this machine by the address at which it is reached.
    """
    if address == "localhost" or ipaddress.ip_address(address).is_loopback:
        return ["localhost"]
    own = [] if ipaddress.ip_address(address).is_unspecified else [address]
    return ["localhost", *own, *clients] if clients else []


def astray(urls: list, address: str, port: int | str) -> list[str]:
    """Return the ``urls`` on this host that do not match a service listening on ``address`` and ``port``."""
    return [url for url in urls if _is_loopback(url) and not _reaches(urlsplit(url), address, int(port))]


def sources_astray(sources: list[dict], engines: list[dict]) -> list[str]:
    """Return the addresses of those ``sources`` of an engine's series that point to this host but to no engine.

    An engine has ``host`` and ``port``; on a host without ``engines``, nothing is known.
    """
    urls = [one["url"] for one in sources if any(":" in name for name in one["counters"] + one["gauges"])]
    return [url for url in urls if engines and all(astray([url], one["host"], one["port"]) for one in engines)]


def engines_unasked(engines: list[dict], sources: list[dict]) -> list[str]:
    """Return the names of the ``engines`` whose port none of the ``sources`` uses."""
    polled = {urlsplit(one["url"]).port for one in sources}
    return [one["name"] for one in engines if int(one["port"]) not in polled]


def elsewhere(urls: list) -> list[str]:
    """Return the ``urls`` of other machines, which an address filter for this machine would not include."""
    return [url for url in urls if url and not _is_loopback(url)]


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == "localhost" or (is_ip(host) and ipaddress.ip_address(host).is_loopback)


def _reaches(url: SplitResult, address: str, port: int) -> bool:
    if (url.port or 80) != port:
        return False
    if not is_ip(url.hostname) or not is_ip(address):  # a name may resolve to either family
        return True
    bound = ipaddress.ip_address(address)
    return bound.is_unspecified or bound == ipaddress.ip_address(url.hostname)


def memory_mib(limit: str) -> float:
    """Return a memory limit in MiB; a percentage, whose size only the host knows, counts as no limit."""
    return float("inf") if str(limit).endswith("%") else systemd_unit.memory_mib(str(limit))


class FilterModule:
    def filters(self):
        return {
            "astray": astray,
            "elsewhere": elsewhere,
            "engines_unasked": engines_unasked,
            "environment_lines": environment_lines,
            "exec_line": exec_line,
            "flag_clashes": flag_clashes,
            "flags": flags,
            "flag_secrets": flag_secrets,
            "go_flags": go_flags,
            "host_port": host_port,
            "listen_address": listen_address,
            "local_url": local_url,
            "memory_mib": memory_mib,
            "peers": peers,
            "sources_astray": sources_astray,
            "secret_environment": secret_environment,
        }
