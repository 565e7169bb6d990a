"""A page of metrics is parsed as Prometheus does it."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from plugins.module_utils.watch import metrics_page

PAGE = """\
# HELP seen_total What was seen.
# TYPE seen_total counter
seen_total{unit="a.service",state="on"} 2.0
seen_total{unit="b.service",state="off"} 3 1700000000000
seen_totally{unit="a.service"} 100
plain 1e3
tabbed\t7
endless +Inf
"""


def test_totals_and_names():
    assert metrics_page.total(PAGE, "seen_total") == 5
    assert metrics_page.total(PAGE, "seen_total", state="off") == 3
    assert metrics_page.total(PAGE, "seen_total", state="") == 0
    assert metrics_page.total(PAGE, "plain") == 1000 and metrics_page.total(PAGE, "tabbed") == 7
    assert metrics_page.total(PAGE, "endless") == float("inf")
    assert metrics_page.total(PAGE, "none") == 0
    assert metrics_page.names(PAGE) == {"seen_total", "seen_totally", "plain", "tabbed", "endless"}


def test_values_by_a_label():
    assert metrics_page.by_label(PAGE, "seen_total", "unit") == {"a.service": 2, "b.service": 3}
    assert metrics_page.by_label(PAGE, "plain", "unit") == {}


@pytest.mark.parametrize("text", ['quote " and \\ and \n end', "} 9 {", "\u2028\x85", "\\n is no line end", ""])
def test_labels_are_read_as_the_library_writes_them(text):
    registry = CollectorRegistry()
    Gauge("held", "What is held.", ["name"], registry=registry).labels(text).set(4)
    assert metrics_page.by_label(generate_latest(registry).decode(), "held", "name") == {text: 4}


@pytest.mark.parametrize("line", ["held nonsense", "held ", 'held{a="b"} '])
def test_a_value_that_is_not_a_number_is_an_error(line):
    with pytest.raises(ValueError, match="could not convert"):
        metrics_page.total(line, "held")
