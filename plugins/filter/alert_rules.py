"""Filters for rule files; see module_utils/watch/alert_rules.py."""

from __future__ import annotations

from collections.abc import Mapping

from ansible.errors import AnsibleError, AnsibleFilterError
from jinja2 import UndefinedError

from ..module_utils.errors import UserError
from ..module_utils.watch import alert_rules


def rule_file(patterns: list, variable: str, limits: dict | None = None, hosts: list | None = None) -> str:
    """Return one rule file, combined from those that match ``patterns`` on the controller, ``limits`` and ``hosts``.

    ``variable`` is the variable with the patterns, for error messages.
    """
    try:
        held = alert_rules.groups(alert_rules.found(patterns, variable), variable)
        held = alert_rules.limited(held, limits or {}, "vmalert_limits")
        return alert_rules.text(held + alert_rules.inventory(hosts or []))
    except UserError as error:
        raise AnsibleFilterError(str(error)) from None


def pushing_hosts(names: list, hostvars: Mapping, here: str) -> list[str]:
    """Return the label ``host`` of each host that pushes its metrics to the store on ``here``."""
    keys = ("vmagent_url", "vmagent_state", "vmagent_host_label")
    return alert_rules.pushing(
        names, {name: {key: _value(hostvars[name], key) for key in keys} for name in names}, here
    )


def _value(variables: Mapping, name: str):
    try:
        return str(variables[name]) if name in variables else ""
    except (AnsibleError, UndefinedError):
        # Its value uses variables of other hosts, which hostvars does not resolve: so it is not this host itself.
        return "http://elsewhere.invalid"


class FilterModule:
    def filters(self):
        return {"pushing_hosts": pushing_hosts, "rule_file": rule_file}
