"""The score over the repository's own table: the targets are met, and the table is complete."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tests"))
import plan_score  # noqa: E402

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
        ("verdict", 0.94),
        ("refusals_caught", 0.75),
        ("kv_tokens_within_5pct", 0.8),
        ("kv_tokens_within_10pct", 0.85),
        ("kv_tokens_within_15pct", 0.85),
        ("llamacpp_kv_within_1pct", 1),
        ("llamacpp_total_within_5pct", 1),
    ],
)
def test_measures_reach_what_is_stated(lines, name, least):
    assert part(lines, name) >= least


def test_the_verdict_beats_the_trivial_rule(lines):
    assert part(lines, "verdict") > part(lines, "verdict_if_always_ok")
    assert float(lines["kv_tokens_median_error_pct"]) < 2


def test_what_was_measured_is_not_read(tmp_path):
    """Other measurements in the rows change the score, never the plan."""
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


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None), (None, None), ("unknown", None), ("0.9 (default)", 0.9), ("1,062,157", 1062157), ("8k", 8192),
        ("90%", 0.9), ("-0.94 GiB", -0.94), ("12 kernels", 12), ("4,5", 4),
    ],
)  # fmt: skip
def test_numbers_as_tables_write_them(text, value):
    assert plan_score.number(text) == value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("Qwen/Qwen3-32B", "qwen3-32b-AWQ"), ("meta-llama/Llama-3.2-3B", "Llama-3.2-3B-Instruct-Q8_0.gguf"),
        ("Qwen/Qwen2.5-7B-Instruct", "org/Qwen2.5-7B-Instruct-GPTQ-Int4"),
        ("google/gemma-3-27b-it", "Gemma 3 27b It Qat"),
    ],
)  # fmt: skip
def test_variants_of_a_model_have_its_shape(one, other):
    assert plan_score.words(one) == plan_score.words(other)


def test_a_shape_of_another_quantization_gives_only_its_dimensions():
    """The table has Qwen3-32B unquantized and in FP8: neither gives the number of bits of AWQ."""
    shapes = plan_score.Shapes(DATA)
    assert (shapes.find("Qwen/Qwen3-32B-AWQ", "awq").quantization) == ""
    assert shapes.find("Qwen/Qwen3-32B-FP8", "fp8").bits == pytest.approx(8, abs=0.1)
    assert shapes.find("openai/gpt-oss-20b").quantization == "mxfp4"


@pytest.mark.parametrize(
    ("gpu", "mib"),
    [
        ("NVIDIA L4", 22.04 * 1024), ("RTX 3050 6GB", 6144 * 0.965), ("Unheard Of 16303 MiB", 16303 - 470),
        ("RTX 5090 (WSL2)", 32607), ("RTX 5060 Ti (16311 MiB, Windows/WSL2)", 16311),
        ("RTX 5070 Ti 16303MiB + RTX 5090 D 32607MiB", 16303 - 470), ("Jetson AGX Orin", None), ("", None),
    ],
)  # fmt: skip
def test_total_memory_by_the_cards_name(gpu, mib):
    total = plan_score.total_bytes({"gpu_total_gib": "", "gpu": gpu})
    assert total == (mib and pytest.approx(mib * 2**20))


def test_damaged_tables_are_counted_not_fatal(tmp_path):
    """Missing columns, short or long rows, values that are no numbers: the row is left out, or planned."""
    header = "case_id,vllm_version,gpu,tp,model,gpu_memory_utilization,max_model_len,outcome,kv_cache_tokens,notes"
    rows = [
        "R1,v0.15.1 (stated),L4,1,qwen/qwen3-4B-awq,90 %,8k,ok,\"60,000\",",
        "R2", "R3,0.15.1,L4,x,Qwen/Qwen3-4B,0.9,,ok,1", "R4,0.15.1,L4,1,Qwen/Qwen3-4B,7,,ok,1,,,,,",
        "R5,0.15.1,L4,1,Qwen/Qwen3-4B,0.9,,error_no_blocks,,", "R6,,H200,1,?,0.9,,ok,,",
    ]  # fmt: skip
    (tmp_path / "vllm_logs.csv").write_text("\ufeff" + "\n".join([header, *rows]), encoding="utf-8")
    (tmp_path / "llamacpp_logs.csv").write_text("")
    (tmp_path / "model_configs.csv").write_text("model\nQwen/Qwen3-4B\n")
    code, out, err = score(str(tmp_path))
    assert (code, err) == (0, "")
    assert "verdict 1/2" in out
    assert "left_out_vllm_no_tensor_parallel_size 1: R3" in out
    assert "left_out_vllm_no_version 2: R2 R6" in out
    assert "left_out_vllm_no_plan 1: R4\n    R4: gpu_memory_utilization is 7" in out
    assert "kv_tokens_median_error_pct nan" in out


def test_another_folder_without_shapes_takes_them_from_the_repository(tmp_path, lines):
    for name in ("vllm_logs.csv", "llamacpp_logs.csv"):
        (tmp_path / name).write_text((DATA / name).read_text())
    code, out, _ = score(str(tmp_path))
    assert code == 0
    assert f"verdict {lines['verdict']}" in out


def test_a_folder_without_tables_is_reported(tmp_path):
    code, _, err = score(str(tmp_path))
    assert code == 2
    assert "lacks vllm_logs.csv, llamacpp_logs.csv" in err


@pytest.mark.parametrize("name", ["vllm_logs.csv", "llamacpp_logs.csv", "model_configs.csv"])
def test_each_fact_has_its_source(name):
    column = "verified_by" if name == "model_configs.csv" else "source"
    rows = list(csv.DictReader((DATA / name).open()))
    assert rows
    assert [row for row in rows if not row[column]] == []
