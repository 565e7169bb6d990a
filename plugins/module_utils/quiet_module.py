"""A module that shows no secret of the `environment` that it passes to an installer, and no login in an address.

`no_log` does not work for this: it masks each value everywhere, and an installer's environment has values such as `1`.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

from ansible.module_utils.common.parameters import remove_values

from .host_module import HostModule
from .redaction import HIDDEN, names_secret

_USERINFO = re.compile(r"(?<=://)[^/\s]+@")
_QUERY = re.compile(r"://[^\s?]*\?(\S+)")


def masked(text: str, environment: dict) -> str:
    """Return ``text`` without users and passwords in addresses, and without the secrets of ``environment``."""
    text = _USERINFO.sub("", text)
    for secret in sorted(_secrets(environment), key=len, reverse=True):
        text = text.replace(secret, HIDDEN)
    return text


def without_credentials(text: str) -> str:
    """Return a sentence without users, passwords and queries in its addresses, which need not be valid ones."""
    text = re.sub(r"(://[^\s?\"']*\?)[^\s\"']+", rf"\1{HIDDEN}", text)
    return re.sub(r"(?<=://)(?:[^/\s]+|[^\s:]+:\S*)@", f"{HIDDEN}@", text)


def secrets_of(name: str, value) -> set[str]:
    """Return the secrets in one variable of an environment: its value if the name says so, or parts of addresses."""
    value = str(value)
    found = {value} if names_secret(name) else set()
    for userinfo in _USERINFO.findall(value):
        user, _, password = userinfo[:-1].partition(":")
        found.add(password or user)
    return (found | set(_QUERY.findall(value))) - {""}


def _secrets(environment: dict) -> set[str]:
    found = {secret for name, value in environment.items() for secret in secrets_of(name, value)}
    return {form for secret in found for form in (secret, unquote(secret))}


class QuietModule(HostModule):
    """A `HostModule` with an option `environment` or with addresses."""

    def exit_json(self, **result):
        super().exit_json(**self._quiet(result))

    def fail_json(self, msg, **result):
        super().fail_json(**self._quiet({**result, "msg": msg}))

    def _quiet(self, result: dict) -> dict:
        """Return ``result`` with the texts for people masked: the message, the diff, the log, the arguments."""
        environment = self.params.get("environment")
        environment = environment if isinstance(environment, dict) else {}

        def quiet(value):
            if isinstance(value, dict):
                return {key: quiet(each) for key, each in value.items()}
            if isinstance(value, list):
                return [quiet(each) for each in value]
            return masked(value, environment) if isinstance(value, str) else value

        # First Ansible's own masking by full values: it would not recognize a value that was changed.
        arguments = quiet(remove_values(self.params, self.no_log_values))
        if "environment" in arguments:
            arguments["environment"] = dict.fromkeys(environment, HIDDEN)
        shown = {key: quiet(result[key]) for key in ("msg", "diff", "why", "journal") if key in result}
        return {**result, **shown, "invocation": {"module_args": arguments}}
