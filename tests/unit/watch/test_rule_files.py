"""Rule files of the repository are merged with the inventory's own."""

from __future__ import annotations

import pytest
import yaml

from plugins.module_utils.errors import UserError
from plugins.module_utils.watch import alert_rules

ONE = "groups: [{name: one, rules: [{record: llm_limit_ttft_seconds, expr: vector(5)}, {alert: A, expr: up == 0}]}]"
TWO = "groups: [{name: two, interval: 5s, rules: [{alert: B, expr: up == 0}]}]"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a.yml").write_text(ONE)
    (tmp_path / "b.yml").write_text(TWO)
    return tmp_path


def made(folder, limits=None, hosts=()):
    held = alert_rules.groups(alert_rules.found([f"{folder}/*.yml"], "rules"), "rules")
    held = alert_rules.limited(held, limits or {}, "vmalert_limits")
    return yaml.safe_load(alert_rules.text(held + alert_rules.inventory(hosts)))["groups"]


def test_files_become_one_in_their_order(folder):
    one, two = made(folder)
    assert (one["name"], two) == ("one", yaml.safe_load(TWO)["groups"][0])
    assert one["rules"][0]["expr"] == "vector(5)"


def test_a_limit_of_the_inventory_takes_the_place_of_the_files(folder):
    assert made(folder, {"ttft_seconds": 2.5})[0]["rules"][0]["expr"] == "vector(2.5)"


def test_every_host_is_expected_once(folder):
    last = made(folder, hosts=["b", "a", "b"])[-1]
    assert [rule["labels"]["host"] for rule in last["rules"]] == ["a", "b"]
    assert {(rule["record"], rule["expr"]) for rule in last["rules"]} == {("expected_host", "vector(1)")}
    assert [group["name"] for group in made(folder)] == ["one", "two"]


@pytest.mark.parametrize(
    "name, text, sentence",
    [
        ("c.yml", "groups: [{name: two, rules: []}]", "c.yml has a group two and so has .*b.yml; rename one"),
        ("c.yml", "groups: [{name: inventory, rules: []}]", "so has the one that the inventory makes"),
        ("c.yml", "rules: []", "c.yml must hold groups, each with a name"),
        ("c.yml", "groups: [{rules: []}]", "c.yml must hold groups, each with a name"),
        ("c.yml", "groups: [", "c.yml cannot be read: while parsing"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(folder, name, text, sentence):
    (folder / name).write_text(text)
    with pytest.raises(UserError, match=f"rules: .*{sentence}"):
        made(folder)


@pytest.mark.parametrize(
    "limits, sentence",
    [
        ({"ttft": 1}, "vmalert_limits has ttft, which no rule asks for; there are ttft_seconds"),
        ({"ttft_seconds": "1) or vector(2"}, "vmalert_limits.ttft_seconds is '1. or vector.2'; it must be a number"),
        ({"ttft_seconds": True}, "must be a number"),
    ],
)
def test_a_limit_that_cannot_be_used_is_named(folder, limits, sentence):
    with pytest.raises(UserError, match=sentence):
        made(folder, limits)


def test_a_file_that_is_not_there_is_refused_and_a_pattern_may_find_nothing(tmp_path):
    with pytest.raises(UserError, match=r"rules: there is no file .*/none\.yml"):
        alert_rules.found([f"{tmp_path}/none.yml"], "rules")
    assert alert_rules.found([f"{tmp_path}/*.yml"], "rules") == []


def test_hosts_that_push_here_are_expected_by_their_label():
    variables = {
        "here": {"vmagent_url": "http://127.0.0.1:8428"},
        "far": {"vmagent_url": "http://10.0.0.5:8428", "vmagent_host_label": "gpu-1"},
        "alone": {"vmagent_url": "http://127.0.0.1:8428"},
        "scraped": {},
        "left": {"vmagent_url": "http://10.0.0.5:8428", "vmagent_state": "absent"},
    }
    assert alert_rules.pushing(variables, variables, "here") == ["here", "gpu-1"]
    assert alert_rules.pushing(["alone"], variables, "alone") == ["alone"]
