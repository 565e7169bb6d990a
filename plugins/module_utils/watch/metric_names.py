"""Which metrics an engine has: data/vllm/metrics.yml, by its version, and data/llama_cpp/metrics.yml. Plain Python."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import yaml
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[3]
TABLE = ROOT / "data/vllm/metrics.yml"
LLAMA_CPP = ROOT / "data/llama_cpp/metrics.yml"
ENGINES = ROOT / "data/vllm/versions.yml"
SHOWN = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
SERIES = re.compile(r"\bvllm:[a-zA-Z_][a-zA-Z0-9_]*")
LLAMA_CPP_SERIES = re.compile(r"\bllamacpp:([a-zA-Z_][a-zA-Z0-9_]*)")


def vllm_series_in(expression: str) -> set[str]:
    """Return the names of vLLM's series in an expression of PromQL or MetricsQL, with their prefix."""
    return set(SERIES.findall(expression))


@cache
def known(version: str) -> set[str]:
    """Return all series that the engine of ``version`` can have, with the names on its page of metrics."""
    rows = _table()["metrics"]
    return {
        f"vllm:{row['name']}{end}" for row in rows if Version(row["since"]) <= Version(version)
        for end in SHOWN[row["kind"]]
    }  # fmt: skip


@cache
def supported() -> list[str]:
    """Return the engine versions that this project installs, oldest first."""
    return sorted(yaml.safe_load(ENGINES.read_text(encoding="utf-8"))["engines"], key=Version)


def problems(expression: str, versions: list[str] | None = None) -> list[str]:
    """Return one sentence for each series of ``expression`` that an engine of ``versions`` does not have."""
    renamed = {f"vllm:{row['old']}": f"vllm:{row['new']}" for row in _table()["renamed"]}
    found = []
    for name in sorted(vllm_series_in(expression)):
        missing = [version for version in versions or supported() if name not in known(version)]
        if missing:
            base = re.sub(r"_(bucket|sum|count|total)$", "", name)
            new = renamed.get(name) or renamed.get(base)
            found.append(f"{name} is not in vLLM {', '.join(missing)}" + (f"; it became {new}." if new else "."))
    return found


def llama_cpp_problems(expression: str) -> list[str]:
    """Return one sentence for each series of ``expression`` that llama.cpp does not have."""
    names = {row["name"] for row in yaml.safe_load(LLAMA_CPP.read_text(encoding="utf-8"))["metrics"]}
    series = sorted(set(LLAMA_CPP_SERIES.findall(expression)))
    return [f"llamacpp:{name} is not in llama.cpp." for name in series if name not in names]


@cache
def _table() -> dict:
    return yaml.safe_load(TABLE.read_text(encoding="utf-8"))
