"""Rules, dashboards and programs only query metrics that this project's engines have."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

from plugins.module_utils.watch import metric_names

ROOT = Path(__file__).resolve().parents[3]
# All files with names of an engine's series: rules, panels, the watchdog's evidence, the roles, the load check.
FILES = sorted(
    path
    for pattern in ("data/alerts/**/*.yml", "dashboards/**/*.py", "dashboards/**/*.json", "roles/**/*.yml",
                    "roles/**/*.py", "plugins/**/*.py")
    for path in ROOT.glob(pattern)
    if re.search("vllm:|llamacpp:", path.read_text(encoding="utf-8")) and path.name != "metric_names.py"
)  # fmt: skip


def test_series_are_found_in_an_expression():
    text = 'rate(vllm:num_preemptions_total[5m]) + sum by (le) (vllm:time_to_first_token_seconds_bucket{host="a"})'
    assert metric_names.vllm_series_in(text) == {
        "vllm:num_preemptions_total",
        "vllm:time_to_first_token_seconds_bucket",
    }


@pytest.mark.parametrize(
    "expression, version, sentence",
    [
        ("vllm:kv_cache_usage_perc", "0.15.1", None),
        ("vllm:num_preemptions_total", "0.23.0", None),
        ("vllm:iteration_tokens_total_count", "0.15.1", None),
        ("vllm:num_preemptions", "0.23.0", "vllm:num_preemptions is not in vLLM 0.23.0."),
        ("vllm:prompt_tokens_cached_total", "0.15.1", "vllm:prompt_tokens_cached_total is not in vLLM 0.15.1."),
        ("vllm:prompt_tokens_cached_total", "0.18.0", None),
        ("vllm:gpu_cache_usage_perc", "0.23.0",
         "vllm:gpu_cache_usage_perc is not in vLLM 0.23.0; it became vllm:kv_cache_usage_perc."),
        ("vllm:time_per_output_token_seconds_sum", "0.32.0",
         "vllm:time_per_output_token_seconds_sum is not in vLLM 0.32.0; it became vllm:inter_token_latency_seconds."),
    ],
)  # fmt: skip
def test_a_name_that_a_version_lacks_is_reported(expression, version, sentence):
    assert metric_names.problems(expression, [version]) == ([sentence] if sentence else [])


def test_every_supported_engine_lies_within_the_versions_that_were_read():
    numbers = [Version(each) for each in yaml.safe_load(metric_names.TABLE.read_text())["checked"]]
    assert all(numbers[0] <= Version(each) <= numbers[-1] for each in metric_names.supported())


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_requested_series_exist_in_every_supported_version(path):
    text = path.read_text(encoding="utf-8")
    # A JSON file may escape non-ASCII characters; this decodes them.
    text = json.dumps(json.loads(text), ensure_ascii=False) if path.suffix == ".json" else text
    assert metric_names.problems(text) + metric_names.llama_cpp_problems(text) == []


def test_a_name_that_llama_cpp_lacks_is_reported():
    requested = "llamacpp:requests_deferred > 0 or llamacpp:kv_cache_usage_ratio > 0.9"
    assert metric_names.llama_cpp_problems(requested) == ["llamacpp:kv_cache_usage_ratio is not in llama.cpp."]
