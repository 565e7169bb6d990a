"""Alertmanager's configuration contains everything except the secrets."""

from __future__ import annotations

import json

import pytest

from plugins.module_utils.watch import alertmanager

NOTHING = {
    "slack": False, "slack_channel": "", "email_to": [], "email_from": "", "email_smarthost": "", "email_user": "",
    "email_tls": True, "heartbeat": False, "heartbeat_interval": "1m", "receivers": [], "routes": [],
    "inhibit_rules": [], "group_by": ["alertname"], "group_wait": "1s", "group_interval": "2s", "repeat_interval": "3s",
}  # fmt: skip
HOOK = {"name": "hook", "webhook_configs": [{"url": "http://here/"}]}


def made(**settings):
    return alertmanager.configuration({**NOTHING, **settings})


def names(configuration):
    return [receiver["name"] for receiver in configuration["receivers"]]


def test_slack_and_mail_are_one_receiver_that_gets_everything():
    found = made(slack=True, slack_channel="#x", email_to=["a@b", "c@d"], email_from="e@f", email_smarthost="g:25")
    assert found["route"]["receiver"] == "default"
    (receiver,) = [one for one in found["receivers"] if one["name"] == "default"]
    assert receiver["slack_configs"][0]["api_url_file"] == "/etc/alertmanager/secrets/slack_webhook"
    assert receiver["email_configs"][0]["to"] == "a@b, c@d"
    assert "auth_password_file" not in receiver["email_configs"][0]
    assert receiver["slack_configs"][0]["send_resolved"] and receiver["email_configs"][0]["send_resolved"]


def test_a_mail_server_that_requires_a_login_gets_it_from_a_file():
    found = made(email_to=["a@b"], email_from="e@f", email_smarthost="g:25", email_user="u")
    mail = found["receivers"][0]["email_configs"][0]
    assert (mail["auth_username"], mail["auth_password_file"]) == ("u", "/etc/alertmanager/secrets/email_password")


def test_ones_own_receiver_is_enough():
    found = made(receivers=[HOOK])
    assert (found["route"]["receiver"], names(found)) == ("hook", ["nobody", "hook"])


def test_the_alert_that_always_fires_goes_to_the_heartbeat_alone_and_else_to_nobody():
    (quiet,) = made(receivers=[HOOK])["route"]["routes"]
    assert (quiet["matchers"], quiet["receiver"]) == (["alertname = DeadMansSwitch"], "nobody")
    found = made(slack=True, heartbeat=True, heartbeat_interval="5m")
    (beat,) = found["route"]["routes"]
    assert (beat["receiver"], beat["repeat_interval"], beat["group_interval"]) == ("heartbeat", "5m", "5m")
    assert "continue" not in beat
    assert names(found) == ["default", "heartbeat"]


def test_a_missing_host_silences_what_else_is_about_it():
    (first, own) = made(slack=True, inhibit_rules=[{"equal": ["x"]}])["inhibit_rules"]
    assert (first["source_matchers"], first["equal"], own) == (["alertname = HostMissing"], ["host"], {"equal": ["x"]})


def test_routes_of_a_user_come_after_the_heartbeat():
    routes = made(slack=True, receivers=[HOOK], routes=[{"receiver": "hook", "matchers": ['severity = "info"']}])
    assert [route["receiver"] for route in routes["route"]["routes"]] == ["nobody", "hook"]


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"receivers": [{"slack_configs": []}]}, "alertmanager_receivers[0] has no name"),
        ({"receivers": [{"name": "default"}]}, "alertmanager_receivers[0] is called default"),
        ({"receivers": [HOOK, HOOK]}, "alertmanager_receivers[1] is called hook"),
        (
            {"receivers": [{"name": "x", "pagerduty_configs": [{"routing_key": "canary"}]}]},
            "alertmanager_receivers[0] has routing_key in it",
        ),
        ({"receivers": [{"name": "x", "slack_configs": [{"api_url": "canary"}]}]}, "has api_url in it"),
        ({"receivers": [{"name": "x", "msteams_configs": [{"webhook_url": "canary"}]}]}, "has webhook_url in it"),
        ({"receivers": [HOOK], "routes": [{"receiver": "hock"}]}, "names an unknown receiver hock; known are"),
        ({"receivers": [HOOK], "routes": [{"routes": [{"receiver": "hock"}]}]}, "known are default, hook."),
    ],
)
def test_bad_input_is_one_sentence_without_the_secret(settings, sentence):
    (message,) = alertmanager.problems({**NOTHING, **settings})
    assert sentence in message
    assert "canary" not in message


def test_a_secret_in_a_file_and_a_route_to_ones_own_are_good():
    own = {"name": "x", "pagerduty_configs": [{"routing_key_file": "/etc/alertmanager/secrets/pagerduty"}]}
    settings = {**NOTHING, "receivers": [own], "routes": [{"receiver": "x"}, {"receiver": "default"}]}
    assert alertmanager.problems(settings) == []
    assert "routing_key_file" in json.dumps(alertmanager.configuration(settings))
