"""Filters of the role otel_collector; their logic is in module_utils/watch/otel_collector.py."""

from __future__ import annotations

import json
from base64 import b64encode

from ansible.errors import AnsibleFilterError

from ..module_utils.errors import UserError
from ..module_utils.watch import otel_collector


def collector_configuration(settings: dict) -> str:
    """Return the collector's configuration as text; JSON is YAML too."""
    try:
        return json.dumps(otel_collector.configuration(settings), indent=1) + "\n"
    except UserError as error:
        raise AnsibleFilterError(str(error)) from error


def collector_begin_script(jobs: list, begin: str) -> str:
    """Return the script with which the collector reads the journal."""
    return otel_collector.begin_script(jobs, begin)


def collector_problems(settings: dict) -> list[str]:
    """Return one sentence for each error in the jobs and the begin of the collector."""
    return otel_collector.problems(settings)


def collector_authorization(user: str, password: str, token: str) -> str:
    """Return the file with the key for the receiver; empty if there is none."""
    pair = b64encode(f"{user}:{password}".encode()).decode()
    value = f"Basic {pair}" if user else f"Bearer {token}" if token else ""
    return f'{otel_collector.AUTHORIZATION}="{value}"\n' if value else ""


def collector_checks(jobs: list, options: dict, secrets: dict, cure: str) -> list:
    """Return one checklist row per job: a line of it is read and arrives.

    ``options`` are those of every row, and ``secrets`` those that must not be shown.
    """
    rows = []
    for job in jobs:
        kind, source = ("journal", "unit") if "unit" in job else ("files", "path")
        resource = otel_collector.resource_of(job)
        own = {"job": resource["job"], source: job[source], "service": resource["service.name"]}
        what = f"logs: {'journal' if kind == 'journal' else 'files'} of {job['job']}"
        rows.append({"what": what, "kind": f"collector_{kind}", "options": {**options, **own}, "cure": cure, **secrets})
    return rows


class FilterModule:
    def filters(self):
        return {
            "collector_authorization": collector_authorization,
            "collector_begin_script": collector_begin_script,
            "collector_checks": collector_checks,
            "collector_configuration": collector_configuration,
            "collector_problems": collector_problems,
        }
