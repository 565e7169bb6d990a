"""Filters for what goes into a unit."""

from __future__ import annotations

import ipaddress

from ansible.errors import AnsibleFilterError


def exec_line(argv: list) -> str:
    """Return ``argv`` as the value of ExecStart=, quoted so that systemd hands over exactly these arguments.

    Source: systemd.service(5), "Command lines"; ``%`` and ``$`` would be expanded, so they are doubled.
    """
    return " ".join(_quoted(str(argument)) for argument in argv)


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


def flag_clashes(wanted: dict) -> list[str]:
    """Return one sentence for each flag that stands more than once in ``wanted``, names of flags by variable.

    Programs take a flag once, on or off.
    """
    places: dict[str, list[str]] = {}
    for variable, names in wanted.items():
        for name in names:
            places.setdefault(str(name).removeprefix("no-"), []).append(variable)
    told = []
    for name, variables in places.items():
        if len(variables) > 1:
            where = " and ".join(dict.fromkeys(variables))
            told.append(f"{where}: {name} is named more than once; name it in one place, once.")
    return told


def _quoted(argument: str) -> str:
    argument = argument.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("%", "%%")
    argument = argument.replace("$", "$$")
    return f'"{argument}"' if not argument or any(mark in argument for mark in " \t;'\"\\") else argument


def listen_address(value: str, facts: dict, variable: str) -> str:
    """Return the IP address that ``value`` stands for: itself, or the IPv4 address of the interface of that name."""
    try:
        return str(ipaddress.ip_address(value))
    except ValueError:
        pass
    interface = facts.get(value.replace("-", "_")) or {}
    address = (interface.get("ipv4") or {}).get("address")
    if not address:
        known = ", ".join(facts.get("interfaces") or [])
        raise AnsibleFilterError(
            f"{variable}: {value!r} is neither an IP address nor an interface with one (interfaces here: {known})"
        )
    return address


def host_port(address: str, port: int | str) -> str:
    """Return ``address:port``, with the brackets that an IPv6 address needs."""
    return f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"


def peers(address: str, clients: list | None = None) -> list:
    """Return with whom a service that listens on ``address`` may exchange packets; [] where that is anyone.

    One on loopback talks with this machine alone; one that is opened talks with its ``clients`` too, where any are
    declared, and with this machine by the address that it is reached by.
    """
    if address == "localhost" or ipaddress.ip_address(address).is_loopback:
        return ["localhost"]
    own = [] if ipaddress.ip_address(address).is_unspecified else [address]
    return ["localhost", *own, *clients] if clients else []


class FilterModule:
    def filters(self):
        return {
            "exec_line": exec_line,
            "flag_clashes": flag_clashes,
            "flags": flags,
            "host_port": host_port,
            "listen_address": listen_address,
            "peers": peers,
        }
