"""Addresses of a host's own services, in the forms of URLs, systemd and Prometheus."""

from __future__ import annotations

import ipaddress

LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def host_port(address: str, port: int | str) -> str:
    """Return ``address:port``, with the brackets that an IPv6 address needs."""
    return f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"


def local_url(address: str, port: int | str) -> str:
    """Return the URL at which this host reaches its own service that listens on ``address``.

    A service that listens on all addresses is reached by loopback.
    """
    address = str(ipaddress.ip_address(address)) if is_ip(address) else address
    return f"http://{host_port(LOOPBACK.get(address, address), port)}"


def is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
