"""The score over the repository's own table: the aims hold, and the table is whole."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "data" / "gpu_memory"


def score(*arguments):
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "plan_score.py", *arguments], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def lines():
    code, out, err = score()
    assert code == 0, err
    return dict(re.findall(r"^(\w+) (\S+)$", out, re.MULTILINE))


def part(lines, name):
    passed, count = map(int, lines[name].split("/"))
    return passed / count


@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("verdict", 0.95),
        ("refusals_caught", 0.8),
        ("kv_tokens_within_5pct", 0.8),
        ("kv_tokens_within_10pct", 0.8),
        ("kv_tokens_within_15pct", 0.9),
        ("llamacpp_kv_within_1pct", 1),
        ("llamacpp_total_within_5pct", 1),
    ],
)
def test_measures_reach_what_is_stated(lines, name, least):
    assert part(lines, name) >= least


def test_the_verdict_beats_the_trivial_rule(lines):
    assert part(lines, "verdict") > part(lines, "verdict_if_always_ok")
    assert float(lines["kv_tokens_median_error_pct"]) < 5


def test_what_was_measured_is_not_read(tmp_path):
    """Other measurements in the rows change what is right, never what is planned."""
    rows = list(csv.DictReader((DATA / "vllm_logs.csv").open()))
    for row in rows:
        for column in ("weights_gib", "consumed_gib", "non_torch_gib", "activation_peak_gib", "cudagraph_gib"):
            row[column] = "99"
    with (tmp_path / "vllm_logs.csv").open("w", newline="") as handle:
        writer = csv.DictWriter(handle, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "llamacpp_logs.csv").write_text((DATA / "llamacpp_logs.csv").read_text())
    assert score(str(tmp_path))[1] == score()[1]


def test_another_folder_without_shapes_takes_them_from_the_repository(tmp_path, lines):
    for name in ("vllm_logs.csv", "llamacpp_logs.csv"):
        (tmp_path / name).write_text((DATA / name).read_text())
    code, out, _ = score(str(tmp_path))
    assert code == 0
    assert f"verdict {lines['verdict']}" in out


def test_a_folder_without_tables_is_told(tmp_path):
    code, _, err = score(str(tmp_path))
    assert code == 2
    assert "lacks vllm_logs.csv, llamacpp_logs.csv" in err


@pytest.mark.parametrize("name", ["vllm_logs.csv", "llamacpp_logs.csv", "model_configs.csv"])
def test_each_fact_has_its_source(name):
    column = "verified_by" if name == "model_configs.csv" else "source"
    rows = list(csv.DictReader((DATA / name).open()))
    assert rows
    assert [row for row in rows if not row[column]] == []
