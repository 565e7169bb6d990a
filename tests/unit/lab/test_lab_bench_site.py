"""The table and the page of the benchmark of site.yml; what it measures needs machines."""

from __future__ import annotations

import pytest

from lab import bench_site

RECAP = (
    "ok: [a]\nPLAY RECAP ***\na : ok=77   changed={}    unreachable=0    failed=0\nlocalhost : ok=0    changed=0    x\n"
)
DEPLOY = """\
--> Beginning operation run...
--> Starting operation: Packages
    [a] No changes

--> Starting operation: User vllm
    [a] {}

--> Results:
    Operation   Hosts   Success   Error   No Change
"""


@pytest.mark.parametrize(
    "output, right",
    [
        (RECAP.format(0), True),
        (RECAP.format(1), False),
        (DEPLOY.format("No changes"), True),
        (DEPLOY.format("Success"), False),
        ("", True),
    ],
)
def test_a_run_that_changed_something_is_seen(output, right):
    assert bench_site.unchanged(output) is right


def test_a_row_has_the_medians_of_each_place():
    seconds = {
        ("one bare SSH command", "0 ms"): [0.2],
        ("site.yml", "0 ms"): [9.0, 7.0, 8.0],
        ("one bare SSH command", "20 ms"): [0.4],
        ("site.yml", "20 ms"): [12.0],
        ("site.yml", "10 hosts"): [40.0],
    }
    assert bench_site.rows(seconds, 10) == [
        "| what | 1 host, 0 ms | 1 host, 20 ms | 10 hosts, 0 ms |",
        "| --- | --- | --- | --- |",
        "| one bare SSH command | 0.2 s | 0.4 s |  |",
        "| site.yml | 8.0 s | 12.0 s | 40.0 s |",
    ]
    assert bench_site.rows({("site.yml", "0 ms"): [1.0]}, 1)[2] == "| site.yml | 1.0 s |  |"


@pytest.mark.parametrize("old", ["", "## A run without changes\n\nold\n\n"])
def test_only_its_own_part_of_the_page_is_written(tmp_path, monkeypatch, old):
    page = tmp_path / "page.md"
    page.write_text(f"# Roles\n\nfirst\n\n{old}## What ai-server costs\n\nlast\n")
    monkeypatch.setattr(bench_site, "PAGE", page)
    bench_site.write("## A run without changes\n\nnew\n")
    assert page.read_text() == (
        "# Roles\n\nfirst\n\n## A run without changes\n\nnew\n\n## What ai-server costs\n\nlast\n"
    )


def test_the_page_names_what_pyinfra_does_not_do():
    text = bench_site.part("| a table |", 3)
    assert "make bench-site" in text and "| a table |" in text and "pyinfra 3." in text
    assert "no completions by the models" in text
