"""The arithmetic and the page of the benchmark; what it measures needs a machine."""

from __future__ import annotations

import pytest

from lab import bench


@pytest.mark.parametrize(
    "series, cells",
    [
        (
            bench.Series([1.0, 3.0, 2.0], [0.5, 2.0, 1.5], [5, 5, 5], [0, 0, 0]),
            ["2.0 s", "1.0 to 3.0 s", "1.5", "5", "0"],
        ),
        (bench.Series([1.0, 2.0], [1.0, 3.0], [5, 9], [0, 2]), ["1.5 s", "1.0 to 2.0 s", "2.0", "5 to 9", "0 to 2"]),
        (bench.Series([0.3]), ["0.3 s", "0.3 to 0.3 s", "", "", ""]),
    ],
)
def test_a_series_becomes_a_row(series, cells):
    assert series.cells() == cells


def test_the_table_has_one_row_a_measurement_in_their_order():
    measured = bench.Bench.__new__(bench.Bench)
    measured.series = {"floor": bench.Series([1.0]), "no-op": bench.Series([3.5], [3.5], [5], [0])}
    assert measured.table()[2:] == [
        "| floor | 1.0 s | 1.0 to 1.0 s |  |  |  |",
        "| no-op | 3.5 s | 3.5 to 3.5 s | 3.5 | 5 | 0 |",
    ]
    assert len({line.count("|") for line in measured.table()}) == 1


def test_modules_are_counted_by_the_commands_that_sudo_ran(monkeypatch):
    measured = bench.Bench.__new__(bench.Bench)
    journal = [
        "sudo[12]: operator : USER=root ; COMMAND=/bin/sh -c 'echo BECOME-SUCCESS-abc ; /usr/bin/python3'",
        "sudo[13]: operator : USER=root ; COMMAND=/usr/bin/journalctl --no-pager",
        "sudo[14]: operator : USER=root ; COMMAND=/bin/sh -c 'echo BECOME-SUCCESS-def ; /usr/bin/python3'",
    ]
    monkeypatch.setattr(measured, "ask", lambda *command: "\n".join(journal), raising=False)
    assert measured.module_calls("0") == 2


def test_the_page_describes_its_method():
    text = bench.page("| a table |", 5)
    assert "Written by `make bench`" in text
    assert "5 rounds on " in text
    assert "| a table |" in text
