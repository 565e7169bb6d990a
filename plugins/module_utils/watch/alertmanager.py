"""Create the configuration of Alertmanager from the role's variables.

Plain Python. Secrets are in separate files, which the configuration names.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..redaction import names_secret

DEFAULT = "default"
HEARTBEAT = "heartbeat"
NOBODY = "nobody"
OWN = (DEFAULT, HEARTBEAT, NOBODY)
# data/alerts/watch.yml: it fires as long as alerting works.
ALWAYS = "DeadMansSwitch"
# data/alerts/services.yml: a host that sends nothing has no other alerts.
HOST_DOWN = "HostMissing"
SECRETS = "/etc/alertmanager/secrets"
HOOKS = ("api_url", "webhook_url")  # addresses that work as passwords: anyone who knows them can post

TITLE = (
    '{{ if eq .Status "firing" }}FIRING{{ else }}resolved{{ end }}'
    "{{ with .CommonLabels.severity }} ({{ . }}){{ end }}: {{ .CommonLabels.alertname }}"
    "{{ with .CommonLabels.host }} on {{ . }}{{ end }}"
)
ONE_ALERT = (
    "{{ .Annotations.summary }}{{ with .Annotations.description }}\n{{ . }}{{ end }}"
    "{{ with .Annotations.runbook }}\n{{ . }}{{ end }}\n"
)
TEXT = (
    f"{{{{ range .Alerts.Firing }}}}{ONE_ALERT}{{{{ end }}}}"
    "{{ range .Alerts.Resolved }}resolved: {{ .Annotations.summary }}\n{{ end }}"
)


def configuration(settings: Mapping) -> dict:
    """Return the configuration; ``settings`` are the role's variables without their prefix and without secrets.

    ``slack``, ``email_password`` and ``heartbeat`` say whether the secret of that kind is set.
    """
    receivers = _own_receivers(settings) + [dict(one) for one in settings["receivers"]]
    always = HEARTBEAT if settings["heartbeat"] else NOBODY
    routes = [{"matchers": [f"alertname = {ALWAYS}"], "receiver": always, "group_wait": "0s", **_beat(settings)}]
    first = next((one["name"] for one in receivers if one["name"] not in (HEARTBEAT, NOBODY)), NOBODY)
    made = {
        "route": {
            "receiver": first,
            "group_by": list(settings["group_by"]),
            **{name: settings[name] for name in ("group_wait", "group_interval", "repeat_interval")},
            "routes": routes + [dict(one) for one in settings["routes"]],
        },
        "receivers": receivers,
        "inhibit_rules": [_silenced_by_its_host(), *(dict(one) for one in settings["inhibit_rules"])],
    }
    return made


def _beat(settings: Mapping) -> dict:
    every = settings["heartbeat_interval"]
    return {"group_interval": every, "repeat_interval": every} if settings["heartbeat"] else {}


def _silenced_by_its_host() -> dict:
    return {
        "source_matchers": [f"alertname = {HOST_DOWN}"],
        "target_matchers": [f"alertname != {HOST_DOWN}", 'host != ""'],
        "equal": ["host"],
    }


def _own_receivers(settings: Mapping) -> list[dict]:
    own: dict[str, list[dict]] = {}
    if settings["slack"]:
        slack = {"api_url_file": f"{SECRETS}/slack_webhook", "title": TITLE, "text": TEXT, "send_resolved": True}
        own["slack_configs"] = [
            {**slack, **({"channel": settings["slack_channel"]} if settings["slack_channel"] else {})}
        ]
    if settings["email_to"]:
        own["email_configs"] = [_email(settings)]
    found = [{"name": DEFAULT, **own}] if own else []
    if settings["heartbeat"]:
        hook = {"url_file": f"{SECRETS}/heartbeat_url", "send_resolved": False, "max_alerts": 1}
        return [*found, {"name": HEARTBEAT, "webhook_configs": [hook]}]
    return [*found, {"name": NOBODY}]


def _email(settings: Mapping) -> dict:
    mail = {
        "to": ", ".join(settings["email_to"]),
        "from": settings["email_from"],
        "smarthost": settings["email_smarthost"],
        "require_tls": settings["email_tls"],
        "headers": {"Subject": TITLE},
        "send_resolved": True,
    }
    if settings["email_user"]:
        mail |= {"auth_username": settings["email_user"], "auth_password_file": f"{SECRETS}/email_password"}
    return mail


def problems(settings: Mapping) -> list[str]:
    """Return one sentence for each error in a user's receivers and routes."""
    messages: list[str] = []
    names = [str(one.get("name", "")) for one in settings["receivers"]]
    for number, one in enumerate(settings["receivers"]):
        name, at = names[number], f"alertmanager_receivers[{number}]"
        if not name:
            messages.append(f"{at} has no name; give it one.")
        elif name in OWN or names.index(name) != number:
            messages.append(f"{at} is called {name}, as another receiver is; choose another name.")
        messages += [
            f"{at} has {key} in it, which everyone who reads a diff would see; put it into alertmanager_secrets and "
            f"name its file: {key}_file: {SECRETS}/NAME."
            for key in sorted(_secret_keys(one))
        ]
    known = {*names, *OWN}
    for number, one in enumerate(settings["routes"]):
        messages += [
            f"alertmanager_routes[{number}] names an unknown receiver {receiver}; known are "
            f"{', '.join(sorted(known - {HEARTBEAT, NOBODY}))}."
            for receiver in sorted(_receivers(one) - known)
        ]
    return messages


def _secret_keys(value) -> set[str]:
    """Return the keys of a receiver whose value is a secret in plain text; the address of a webhook is one."""
    if isinstance(value, Mapping):
        own = {
            key
            for key, one in value.items()
            if isinstance(one, str) and one and not key.endswith("_file") and (key in HOOKS or names_secret(key))
        }
        return own.union(*(_secret_keys(one) for one in value.values()))
    return set().union(*map(_secret_keys, value)) if isinstance(value, list) else set()


def _receivers(route: Mapping) -> set[str]:
    own = {str(route["receiver"])} if route.get("receiver") else set()
    return own.union(*(_receivers(one) for one in route.get("routes") or []))
