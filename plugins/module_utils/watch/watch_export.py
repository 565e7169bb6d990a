"""What another Prometheus and Alertmanager need to monitor these hosts. Plain Python, tested alone.

A host whose vmagent pushes is not scraped by others, or every series would exist twice. A program that listens only on
loopback cannot be scraped: it is reported, with the variable and the port that would open it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from ..engines import engines
from . import alertmanager, scrape_targets

LOOPBACK = ("127.", "::1", "localhost")
ANYWHERE = ("0.0.0.0", "::", "*")
PUSHES = "vmagent_url"
ADDRESS = re.compile(r"[0-9.]+|[0-9a-fA-F:]*:[0-9a-fA-F:.]*")
ALERTING = {
    "group_by": ["alertname", "host"],
    "group_wait": "30s",
    "group_interval": "5m",
    "repeat_interval": "4h",
    "slack": "",
    "email_to": [],
    "heartbeat": False,
    "heartbeat_interval": "1m",
    "inhibit_rules": [],
}


def targets(hosts: Mapping, defaults: Callable[[str], Mapping]) -> dict:
    """Return ``{"targets", "expected", "told"}``: file_sd groups, hosts that send metrics, sentences.

    ``hosts`` are variables by name, including ``group_names``; ``defaults`` returns those of a role.
    """
    found: list[dict] = []
    expected: list[str] = []
    messages: list[str] = []
    for name in sorted(hosts):
        variables = hosts[name]
        if variables.get(PUSHES):
            expected.append(name)
            messages.append(f"{name}: its vmagent pushes to {variables[PUSHES]}, so it is not scraped.")
            continue
        own = list(_targets_of(name, variables, defaults))
        found += [each for each in own if isinstance(each, dict)]
        messages += [each for each in own if isinstance(each, str)]
        expected += [name] if any(isinstance(each, dict) for each in own) else []
    return {"targets": found, "expected": expected, "told": messages}


def _targets_of(name: str, variables: Mapping, defaults: Callable[[str], Mapping]):
    """Yield a file_sd group for each program of a host that can be reached, a sentence for each that cannot."""
    yield from _engines_of(name, variables, defaults)
    for program in scrape_targets.PROGRAMS:
        if program.job in scrape_targets.ENGINES and _listed(variables):
            continue
        own = defaults(program.role)
        seen = scrape_targets.targets(
            (program,), variables.get("group_names") or [], variables, {program.role: own}, {}
        )
        if not seen or program.job == "vmagent":
            continue
        port = int(variables.get(program.port) or own[program.port])
        listens = str(variables.get(program.address) or own.get(program.address) or ANYWHERE[0])
        labels = {"job": program.job, "host": name, "service": program.service}
        yield _reached(variables, labels, program.job, listens, port, program.address)


def _listed(variables: Mapping) -> list[dict]:
    """Return the engines of a host that has a list of them; a group variable may apply to hosts that run none."""
    groups = set(variables.get("group_names") or [])
    if "engines" in groups:
        return variables.get("engines") or [engines.SINGLE]
    return (variables.get("engines") or []) if "vllm" in groups else []


def _engines_of(name: str, variables: Mapping, defaults: Callable[[str], Mapping]):
    """Yield the same for each entry of a list of engines."""
    for one in _listed(variables):
        role = one["kind"]
        listens, port = (
            one.get(key) or variables.get(f"{role}_{key}") or defaults(role).get(f"{role}_{key}")
            for key in ("host", "port")
        )
        if role == "llama_cpp":
            yield (
                f"{name}: the metrics of {one['name']} ask for its key, which is not written into a file of targets. "
                f"Give your Prometheus a job of its own for TCP port {port}, with authorization and the label job: "
                "llamacpp."
            )
            continue
        labels = {"job": scrape_targets.ENGINES[role], "host": name, "service": one["name"]}
        yield _reached(variables, labels, one["name"], str(listens), int(port), f"host of {one['name']} in engines")


def _reached(variables: Mapping, labels: dict, who: str, listens: str, port: int, variable: str) -> dict | str:
    """Return a file_sd group, or a sentence if a program listens only on loopback."""
    name = labels["host"]
    if listens.startswith(LOOPBACK):
        return (
            f"{name}: {who} listens on {listens} alone. Set {variable} to an internal address of the host and let the "
            f"firewall take TCP port {port} from your Prometheus; or set {PUSHES} and open nothing."
        )
    # An interface name is only known on the host; the address that Ansible uses is reachable.
    outer = str(variables.get("ansible_host") or name)
    address = listens if ADDRESS.fullmatch(listens) and listens not in ANYWHERE else outer
    return {"targets": [f"[{address}]:{port}" if ":" in address else f"{address}:{port}"], "labels": labels}


def prometheus(interval: str, alertmanagers: list[str]) -> dict:
    """Return a configuration of Prometheus for use with `targets.yml` and `rules.yml`."""
    return {
        "global": {"scrape_interval": interval, "evaluation_interval": interval},
        "rule_files": ["rules.yml"],
        "alerting": {"alertmanagers": [{"static_configs": [{"targets": list(alertmanagers)}]}]},
        # The label job comes with each target.
        "scrape_configs": [{"job_name": "llm-server", "file_sd_configs": [{"files": ["targets.yml"]}]}],
    }


def routes() -> dict:
    """Return a configuration of Alertmanager with receivers to fill in: now, today, and heartbeat."""
    made = alertmanager.configuration(
        {
            **ALERTING,
            "receivers": [{"name": "today"}, {"name": "now"}],
            "routes": [{"matchers": ["severity = critical"], "receiver": "now"}],
        }
    )
    beat = {"receiver": alertmanager.HEARTBEAT, "group_interval": "1m", "repeat_interval": "1m"}
    made["route"]["routes"][0] |= beat
    made["receivers"] = [
        {"name": alertmanager.HEARTBEAT} if each["name"] == alertmanager.NOBODY else each for each in made["receivers"]
    ]
    return made


def linked(rules: str, base: str) -> str:
    """Return a rule file whose links to pages begin with ``base``, such as the address of this repository."""
    return re.sub(r"(\brunbook: )(?=docs/)", rf"\g<1>{base.rstrip('/')}/", rules) if base else rules
