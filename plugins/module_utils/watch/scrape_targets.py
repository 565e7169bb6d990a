"""Which programs of a host have metrics, and the scrape configuration for them.

Plain Python, tested alone. The inventory's groups and the roles' own variables decide which programs there are; the
host is not asked. The configuration has Prometheus' format, which vmagent and VictoriaMetrics use.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, replace

LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}
TIMEOUT = "10s"
# Keys that a scrape configuration must not have as text: everyone who reads the file, or a diff of it, would see them.
SECRETS = {"password", "bearer_token", "credentials", "client_secret", "secret_key", "token"}


@dataclass(frozen=True)
class Program:
    """A program with metrics: its job, the group that installs it, its role's variables, and its unit."""

    job: str
    group: str
    address: str
    port: str
    service: str
    role: str
    # A variable without which it does not run.
    needs: str = ""


def _program(job: str, group: str, address: str = "listen_address", service: str = "") -> Program:
    return Program(job, group, f"{job}_{address}", f"{job}_port", service or job, job)


PROGRAMS = (
    _program("vllm", "vllm", "host"),
    _program("ai_server", "ai_server", "host", "ai-server"),
    _program("node_exporter", "monitoring"),
    _program("promtail", "monitoring"),
    _program("otel_collector", "monitoring"),
    _program("vmagent", "monitoring"),
    _program("dcgm_exporter", "gpu", service="dcgm-exporter"),
)
# The job of an engine is its kind. If there is a list of engines, it replaces the row above.
ENGINES = {"vllm": "vllm", "llama_cpp": "llamacpp"}
# One of them ships the logs of a host: the one that the inventory names, or else the first.
SHIPPER, SHIPPERS = "log_shipper", ("promtail", "otel_collector")
# Programs of a monitoring server are scraped by victoria_metrics itself, so that they are seen without an agent.
WATCHING = (
    _program("victoria_metrics", "watch"),
    _program("victoria_logs", "watch"),
    _program("vmalert", "watch"),
    # A separate process evaluates the rules about logs.
    replace(
        _program("vmalert", "watch", service="vmalert_logs"),
        job="vmalert_logs",
        port="vmalert_logs_port",
        needs="vmalert_logs_url",
    ),
    _program("alertmanager", "watch"),
)


def targets(programs: tuple[Program, ...], groups: list, variables: Mapping, defaults: Mapping, facts: Mapping) -> list:
    """Return ``[{job, service, target}]`` of the programs that a host of ``groups`` has.

    ``variables`` are the host's, ``defaults`` those of the roles. A role that is not in ``defaults``, or whose state on
    the host is absent, has no target. ``facts`` have the address of an interface.
    """
    found = []
    for program in programs:
        known = {**defaults.get(program.role, {}), **_set_in_inventory(program, variables)}
        if program.group not in groups or program.port not in known or known.get(f"{program.role}_state") == "absent":
            continue
        if program.needs and not known.get(program.needs):
            continue
        if program.role in SHIPPERS and program.role != (variables.get(SHIPPER) or SHIPPERS[0]):
            continue
        # With TLS the machine itself still connects by loopback, without TLS.
        listens = "" if variables.get(f"{program.role}_tls_certificate_path") else known.get(program.address)
        place = _place(listens or "127.0.0.1", int(known[program.port]), facts)
        found.append({"job": program.job, "service": program.service, "target": place})
    return found


def with_engines(found: list, engines: list, facts: Mapping) -> list:
    """Return ``found`` with the host's ``engines`` in place of the single engine of a host without a list.

    They are ``{name, kind, host, port, key}``. One with a key has ``bearer``, the file with it.
    """
    if not engines:
        return found
    result = []
    for one in engines:
        target = {
            "job": ENGINES[one["kind"]],
            "service": one["name"],
            "target": _place(one["host"], one["port"], facts),
        }
        result.append(target | ({"bearer": bearer_file(one["name"])} if one.get("key") else {}))
    return result + [each for each in found if each["job"] not in ENGINES.values()]


def bearer_file(name: str) -> str:
    """Return the file with the key for an engine's metrics."""
    return f"/etc/vmagent/{name}.key"


def _place(listens: str, port, facts: Mapping) -> str:
    address = _reached(str(listens), facts)
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _set_in_inventory(program: Program, variables: Mapping) -> dict:
    names = (program.address, program.port, program.needs, f"{program.role}_state")
    return {name: variables[name] for name in names if variables.get(name) is not None}


def _reached(listens: str, facts: Mapping) -> str:
    """Return the address at which a host reaches its own program that listens on an address or an interface."""
    try:
        ipaddress.ip_address(listens)
    except ValueError:
        interface = facts.get(listens.replace("-", "_")) or {}
        listens = (interface.get("ipv4") or {}).get("address") or listens
    return LOOPBACK.get(listens, listens)


def configuration(found: list, host: str, interval: str, extra: list, access: Mapping | None = None) -> dict:
    """Return a scrape configuration: one job per program of ``found``, then those of ``extra``.

    Each engine also has a job of its own; all engines of a kind have the same label ``job``.

    Every series has the label ``host``, and those of ``found`` have ``service``, the unit's name. ``access`` has
    additional keys of a job by its name, such as those for a password.
    """
    jobs = []
    for each in found:
        named = (
            each["job"] if each["job"] not in (job["job_name"] for job in jobs) else f"{each['job']}-{each['service']}"
        )
        job = {
            "job_name": named,
            "static_configs": [{"targets": [each["target"]], "labels": {"service": each["service"]}}],
            **((access or {}).get(each["job"]) or {}),
        }
        if named != each["job"]:
            job["relabel_configs"] = [{"target_label": "job", "replacement": each["job"]}]
        if each.get("bearer"):
            job["authorization"] = {"credentials_file": each["bearer"]}
        jobs.append(job)
    return {
        "global": {
            "scrape_interval": interval,
            # Prometheus refuses a timeout longer than the interval.
            "scrape_timeout": interval if interval.removesuffix("s") in map(str, range(1, 10)) else TIMEOUT,
            "external_labels": {"host": host},
        },
        "scrape_configs": jobs + [dict(one) for one in extra],
    }


def login(user: str, password_file: str) -> dict:
    """Return the keys of a job that log in to its target as ``user``; {} without a user."""
    return {"basic_auth": {"username": user, "password_file": password_file}} if user else {}


def problems(extra: list, found: list, variable: str) -> list[str]:
    """Return one sentence for each error in ``extra``, a user's own scrape configurations."""
    messages, seen = [], {each["job"] for each in found}
    for number, one in enumerate(extra):
        name = one.get("job_name")
        if not name:
            messages.append(f"{variable}[{number}] has no job_name; give it one.")
            continue
        if name in seen:
            messages.append(f"{variable}[{number}] has the job_name {name}, which another job has; choose another one.")
        seen.add(name)
        messages += [
            f"{variable}[{number}] has {key} in it, which everyone who reads the file would see; name a file of the "
            f"host instead, by {key}_file."
            for key in sorted(_secrets(one))
        ]
    return messages


def _secrets(value) -> set[str]:
    if isinstance(value, Mapping):
        own = {key for key, one in value.items() if key in SECRETS and isinstance(one, str) and one}
        return own.union(*(_secrets(one) for one in value.values()))
    return set().union(*map(_secrets, value)) if isinstance(value, list) else set()
