"""Every alert has a cure, a page, a test in which it fires, and one in which it does not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
RULES = sorted((ROOT / "data/alerts").glob("*.yml"))
LOG_RULES = sorted((ROOT / "data/alerts/logs").glob("*.yml"))
PAGES = sorted((ROOT / "docs/operations/alerts").glob("*.md"))
CASES = sorted((ROOT / "tests/data/alerts").glob("*.yml"))
# It fires as long as alerting works, independent of any metric.
ALWAYS = {"DeadMansSwitch"}
# It is about missing limits, which `metrics` leaves out.
ABSENT = {"LimitsMissing"}
METRIC = re.compile(
    r"\b(?:(?:llm|node|DCGM|otelcol|promtail|vmalert|vmagent|vm|vl|prometheus|alertmanager|http)_\w+"
    r"|(?:vllm|llamacpp):\w+|up|expected_host)\b"
)


def alerts(files):
    groups = [group for path in files for group in yaml.safe_load(path.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def cases():
    """Return ``(alert, fires, labels, series)`` of all rule tests: expected labels, names of the input series."""
    found = []
    for path in CASES:
        for group in yaml.safe_load(path.read_text())["tests"]:
            series = {re.match(r"[\w:]+", each["series"]).group() for each in group["input_series"]}
            for test in group["alert_rule_test"]:
                labels = [each["exp_labels"] for each in test["exp_alerts"]]
                found.append((test["alertname"], bool(labels), labels, series))
    return found


def metrics(expression):
    """Return the metrics in an expression, without labels, strings and limits."""
    bare = re.sub(r'"[^"]*"', " ", expression)
    return {name for name in METRIC.findall(bare) if not name.startswith("llm_limit_")}


ALERTS = alerts(RULES)
EVERY = ALERTS + alerts(LOG_RULES)
TESTED = cases()


def by_name(rules):
    return pytest.mark.parametrize("rule", rules, ids=lambda rule: rule["alert"])


def test_each_name_is_there_once():
    names = [rule["alert"] for rule in EVERY]
    assert sorted(names) == sorted(set(names))


@by_name(EVERY)
def test_it_states_the_problem_and_the_remedy(rule):
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert (rule["labels"]["severity"] == "info") == (rule["alert"] in ALWAYS)
    assert set(rule["annotations"]) == {"summary", "description", "runbook"}
    assert rule["annotations"]["description"].endswith(".") and not rule["annotations"]["summary"].endswith(".")


@by_name(EVERY)
def test_its_link_leads_to_its_own_part_of_a_page(rule):
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert (ROOT / page).is_file(), page
    assert f"## {rule['alert']}\n" in (ROOT / page).read_text()
    assert anchor == rule["alert"].lower()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_no_alert_that_there_is_not(page):
    assert set(re.findall(r"^## (\w+)$", page.read_text(), re.MULTILINE)) <= {rule["alert"] for rule in EVERY}
    assert f"(operations/alerts/{page.name})" in (ROOT / "docs/operations.md").read_text()


@by_name(ALERTS)
def test_it_is_tested_firing_and_not_firing(rule):
    assert any(fires for name, fires, _, _ in TESTED if name == rule["alert"])
    assert rule["alert"] in ALWAYS or any(not fires for name, fires, _, _ in TESTED if name == rule["alert"])


@by_name([rule for rule in ALERTS if rule["alert"] not in ALWAYS | ABSENT])
def test_a_case_that_does_not_fire_has_the_series_of_the_rule(rule):
    requested = metrics(rule["expr"])
    assert requested
    given = [series for name, fires, _, series in TESTED if name == rule["alert"] and not fires]
    # If a metric has several names by version or program, one of them is enough.
    assert any(len(requested & series) >= len(requested) / 2 for series in given), requested


@by_name(ALERTS)
def test_its_sentences_name_only_labels_that_it_has(rule):
    text = " ".join(rule["annotations"].values())
    named = set(re.findall(r"\$labels\.(\w+)", text))
    for name, _, labels, _ in TESTED:
        if name == rule["alert"]:
            assert all(named <= set(each) for each in labels), named


def test_what_this_project_measures_is_measured():
    text = " ".join(rule["expr"] for rule in ALERTS)
    watchdog = (ROOT / "roles/watchdog/files/watchdog.py").read_text()
    backup = (ROOT / "roles/backup/files/backup.py").read_text()
    plan = (ROOT / "plugins/module_utils/gpu/memory/render.py").read_text()
    resting = (ROOT / "plugins/module_utils/engines/engine_states.py").read_text()
    counters = (ROOT / "roles/dcgm_exporter/defaults/main.yml").read_text()
    for name in re.findall(r"\bllm_(?!limit_)\w+", text):
        result = re.sub(r"llm_(watchdog|backup)_", "", name)
        assert any(f'"{result}"' in source or f"{name} " in source or f'"{name}"' in source or f"{name}{{" in source
                   for source in (watchdog, backup, plan, resting)), name  # fmt: skip
    fields = set(re.findall(r"\bDCGM_\w+", text))
    # DCGM 3 calls them throttle reasons, later versions event reasons.
    assert all(f"field: {field}," in counters for field in fields - {"DCGM_FI_DEV_CLOCKS_EVENT_REASONS"})
    assert len(fields) > 10


def test_each_limit_that_a_rule_compares_with_has_a_value():
    limits = yaml.safe_load((ROOT / "data/alerts/limits.yml").read_text())["groups"][0]["rules"]
    names = set(re.findall(r"\bllm_limit_\w+", " ".join(rule["expr"] for rule in ALERTS)))
    assert names == {rule["record"] for rule in limits}
