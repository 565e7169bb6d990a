"""The load check's tool, `vllm bench serve`: its arguments and its result.

It is part of every engine's environment. It takes a number of requests, not a duration; a few first requests determine
that number. Source: vllm/benchmarks/serve.py of 0.23.0 and 0.32.0.
"""

from __future__ import annotations

import json
import math
from http import HTTPStatus

KEY_VARIABLE = "OPENAI_API_KEY"  # an argument would show the key in ps
PERCENTILES = (50, 95, 99)
STATUSES = {status.phrase: status.value for status in HTTPStatus}
BUCKETS = 60  # points of a curve over a run


def argv(program: str, job: dict, plan: dict, requests: int, result: str) -> list[str]:
    """Return the command for streaming requests by ``plan['callers']`` callers; the key is in the environment."""
    directory, _, name = result.rpartition("/")
    words = [
        program, "bench", "serve", "--backend", "openai", "--base-url", job["url"], "--endpoint", "/v1/completions",
        "--model", job["model"], "--served-model-name", job["model"], "--tokenizer", job["tokenizer"],
        # Random prompts of exact length. The tool's random dataset sets ignore_eos, which ai-server refuses.
        "--dataset-name", "prefix_repetition", "--prefix-repetition-prefix-len", "1",
        "--prefix-repetition-suffix-len", str(plan["input_tokens"] - 1), "--prefix-repetition-num-prefixes", "1",
        "--prefix-repetition-output-len", str(plan["output_tokens"]), "--num-prompts", str(requests),
        "--max-concurrency", str(plan["callers"]), "--request-rate", "inf", "--seed", str(job["seed"]),
        # Every answer has the full length, so a shorter one was cut off.
        "--temperature", "0", "--extra-body", json.dumps({"min_tokens": plan["output_tokens"]}),
        "--ready-check-timeout-sec", "0", "--disable-tqdm",
        "--save-result", "--save-detailed", "--result-dir", directory, "--result-filename", name,
    ]  # fmt: skip
    return [*words, "--trust-remote-code"] if job.get("trust_remote_code") else words


def percentile(ordered: list[float], share: float) -> float | None:
    """Return the percentile of sorted values by linear interpolation; None without values."""
    if not ordered:
        return None
    place = (len(ordered) - 1) * share / 100
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def error(text: str, tokens: int, wanted: int) -> str:
    """Return the error of one request, or "": an HTTP status or the name of an exception."""
    if text in STATUSES:
        return f"{STATUSES[text]} {text}"
    if "valid chunk" in text:
        return "no token received"
    if text:  # a traceback; its last line is the exception
        return text.strip().splitlines()[-1].partition(":")[0].rpartition(".")[2][:60]
    return "the answer broke off" if tokens < wanted else ""


def summary(results: list[dict], wanted: int) -> dict:
    """Return the combined results of all runs on one model; ``wanted`` is the number of tokens per answer."""
    turns = [_rows(result, wanted) for result in results]
    rows = [row for turn in turns for row in turn]
    good = [row for row in rows if not row["error"]]
    seconds = sum(result["duration"] for result in results)
    errors: dict[str, int] = {}
    for row in rows:
        if row["error"]:
            errors[row["error"]] = errors.get(row["error"], 0) + 1
    gaps = sorted(gap * 1000 for row in good for gap in row["itls"])
    firsts = sorted(row["ttft"] * 1000 for row in good)
    tokens = sum(row["tokens"] for row in good)
    return {
        "requests": len(rows),
        "failed": len(rows) - len(good),
        "errors": dict(sorted(errors.items(), key=lambda each: -each[1])),
        "error_share": (len(rows) - len(good)) / len(rows) if rows else 0.0,
        "seconds": round(seconds, 1),
        "requests_per_s": round(len(good) / seconds, 3) if seconds else 0.0,
        "tokens_per_s": round(tokens / seconds, 1) if seconds else 0.0,
        "prompt_tokens": sum(row["prompt_tokens"] for row in good),
        "tokens": tokens,
        "ttft_ms": _percentiles(firsts),
        "itl_ms": _percentiles(gaps),
        "curve": [point for turn in turns for point in curve([row for row in turn if not row["error"]])],
    }


def _percentiles(ordered: list[float]) -> dict[str, float | None]:
    found = {f"p{share}": percentile(ordered, share) for share in PERCENTILES}
    return {name: value if value is None else round(value, 2) for name, value in found.items()}


def _rows(result: dict, wanted: int) -> list[dict]:
    names = ("start_times", "ttfts", "itls", "input_lens", "output_lens", "errors")
    lists = [result[name] for name in names]
    return [
        {
            "start": start, "ttft": ttft, "itls": itls, "prompt_tokens": prompt, "tokens": tokens,
            "error": error(message, tokens, wanted),
        }
        for start, ttft, itls, prompt, tokens, message in zip(*lists, strict=True)
    ]  # fmt: skip


def curve(rows: list[dict]) -> list[dict]:
    """Return points over time (seconds of the host's monotonic clock): p95 of the first token and tokens per second."""
    if not rows:
        return []
    begin = min(row["start"] for row in rows)
    end = max(row["start"] + row["ttft"] + sum(row["itls"]) for row in rows)
    width = max(1.0, (end - begin) / BUCKETS)
    count = int((end - begin) / width) + 1
    firsts, tokens = [[] for _ in range(count)], [0] * count
    for row in rows:
        moment = row["start"] + row["ttft"]
        firsts[int((moment - begin) / width)].append(row["ttft"] * 1000)
        tokens[int((moment - begin) / width)] += 1
        for gap in row["itls"]:
            moment += gap
            tokens[min(count - 1, int((moment - begin) / width))] += 1
    points = []
    for number in range(count):
        part = min(width, end - begin - number * width) or width
        p95 = percentile(sorted(firsts[number]), 95)
        point = {"time": round(begin + (number + 0.5) * width, 2), "tokens_per_s": round(tokens[number] / part, 1)}
        points.append({**point, "ttft_p95_ms": p95 if p95 is None else round(p95, 1)})
    # Drop a last bucket that is less than half full.
    return points[:-1] if len(points) > 1 and end - begin - (count - 1) * width < width / 2 else points
