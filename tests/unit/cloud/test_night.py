"""Time slots for the nightly restarts of a fleet."""

from __future__ import annotations

import pytest

from plugins.module_utils.cloud import night
from plugins.module_utils.errors import UserError

FLEET = [f"gpu-{number}" for number in range(1, 6)]


def parts(hosts, batch, at="02:00", window=7200):
    return [night.slot(hosts, host, at, window, batch) for host in hosts]


def test_one_host_gets_all_of_the_window():
    assert parts(["a"], 1) == [{"number": 1, "parts": 1, "begin": "02:00:00", "patience": 6600}]


def test_a_fleet_restarts_batch_by_batch():
    found = parts(FLEET, 2)
    assert [each["number"] for each in found] == [1, 1, 2, 2, 3]
    assert [each["begin"] for each in found] == ["02:00:00", "02:00:00", "02:40:00", "02:40:00", "03:20:00"]
    assert {each["patience"] for each in found} == {1800}


@pytest.mark.parametrize("batch", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("at", ["00:00", "02:30", "23:30"])
def test_no_restart_of_one_batch_can_meet_one_of_the_next(batch, at):
    found = parts(FLEET, batch, at)
    begins = [night.seconds(each["begin"][:5]) for each in found]
    for one, then in zip(range(5), begins, strict=True):
        for other, later in zip(range(5), begins, strict=True):
            if found[one]["number"] < found[other]["number"]:
                last = found[one]["patience"] + night.BACK
                assert (later - then) % night.DAY >= last


def test_the_time_is_the_same_at_every_run_in_whatever_order_an_inventory_finds_its_hosts():
    assert night.slot(FLEET, "gpu-4", "02:00", 7200, 1) == night.slot(FLEET[::-1], "gpu-4", "02:00", 7200, 1)


def test_a_host_that_is_not_among_them_has_a_part_too():
    assert night.slot(FLEET[:1], "new", "02:00", 7200, 1)["number"] == 2


def test_after_midnight_comes_the_next_day():
    assert night.slot(FLEET, "gpu-5", "23:00", 7200, 2)["begin"] == "00:20:00"


def test_parts_that_are_too_short_are_refused_with_what_would_do():
    with pytest.raises(
        UserError, match=r"^5 hosts in batches of 1 need 6000 s \(1200 s per batch\), and it is 3600 s$"
    ):
        night.slot(FLEET, "gpu-1", "02:00", 3600, 1)
    assert night.slot(FLEET, "gpu-1", "02:00", 6000, 1)["patience"] == 600


@pytest.mark.parametrize("at", ["2:00", "24:00", "02:60", "now"])
def test_an_invalid_time_is_none(at):
    with pytest.raises(AttributeError):
        night.seconds(at)


WATCHED = [{"unit": "vllm.service", "metrics": "http://x/metrics"}, {"unit": "ai-server.service"}]


@pytest.mark.parametrize(
    ("units", "message"),
    [
        (["vllm.service"], ""),
        (["ai-server.service", "vllm.service"], ""),
        ([], "name at least one unit, and only units of watchdog_services: vllm.service, ai-server.service"),
        (["vllm.service", "x.service"], "name at least one unit, and only units of"),
        (["ai-server.service"], "none of them has metrics in watchdog_services"),
    ],
)
def test_units_that_restart_by_night_are_watched_and_one_reports_when_it_is_idle(units, message):
    problem = night.units_problem(units, WATCHED)
    assert problem.startswith(message) and bool(problem) == bool(message)
