"""The command `vllm bench serve`: sends concurrent requests and writes a result file like that of vLLM's own tool.

The requests are real; the prompts are words instead of tokens. It accepts the arguments that this project uses.
"""

from __future__ import annotations

import json
import os
import random
import threading
import time
import urllib.error
import urllib.request
from itertools import pairwise
from pathlib import Path

from vllm.engine import WORDS

TEXTS = ("backend", "base-url", "endpoint", "model", "served-model-name", "tokenizer", "dataset-name", "request-rate")
NUMBERS = ("num-prompts", "max-concurrency", "seed", "ready-check-timeout-sec", "prefix-repetition-prefix-len")
LENGTHS = ("prefix-repetition-suffix-len", "prefix-repetition-num-prefixes", "prefix-repetition-output-len")
SWITCHES = ("disable-tqdm", "save-result", "save-detailed", "trust-remote-code")


class BenchmarkSubcommand:
    """Measures a server."""

    name = "bench"

    def subparser_init(self, subparsers):
        """Add the command and its arguments to a parser's commands."""
        parser = subparsers.add_parser(self.name)
        parser.add_argument("bench_type", choices=["serve"])
        for name in (*TEXTS, "result-dir", "result-filename"):
            parser.add_argument(f"--{name}", required=name == "base-url")
        for name in (*NUMBERS, *LENGTHS):
            parser.add_argument(f"--{name}", type=int)
        for name in SWITCHES:
            parser.add_argument(f"--{name}", action="store_true")
        parser.add_argument("--temperature", type=float)
        parser.add_argument("--extra-body", type=json.loads, default={})
        return parser

    def validate(self, args):
        """Fail if the tokenizer does not exist."""
        if not (Path(args.tokenizer) / "tokenizer.json").is_file():
            raise OSError(f"Can't load tokenizer for '{args.tokenizer}'")

    @staticmethod
    def cmd(args):
        """Send the requests and write the result file."""
        rows = ask(args)
        begin = min(row["start_times"] for row in rows)
        end = max(row["start_times"] + row["ttfts"] + sum(row["itls"]) for row in rows)
        result = {name: [row[name] for row in rows] for name in rows[0]}
        result |= {
            "duration": end - begin,
            "completed": sum(not row["errors"] for row in rows),
            "num_prompts": len(rows),
        }
        (Path(args.result_dir) / args.result_filename).write_text(json.dumps(result))


def ask(args) -> list[dict]:
    """Send all requests with the allowed concurrency; return one row per request."""
    draw = random.Random(args.seed)
    length = args.prefix_repetition_prefix_len + args.prefix_repetition_suffix_len
    prompts = [" ".join(draw.choices(WORDS, k=length)) for _ in range(args.num_prompts)]
    rows, lock = [], threading.Lock()

    def caller() -> None:
        while True:
            with lock:
                if not prompts:
                    return
                prompt = prompts.pop()
            row = one(args, prompt)
            with lock:
                rows.append(row)

    callers = [threading.Thread(target=caller) for _ in range(args.max_concurrency)]
    for each in callers:
        each.start()
    for each in callers:
        each.join()
    return rows


def one(args, prompt: str) -> dict:
    """Send one request; return its timings and its error."""
    body = {
        "model": args.served_model_name, "prompt": prompt, "max_tokens": args.prefix_repetition_output_len,
        "repetition_penalty": 1.0, "temperature": args.temperature, "logprobs": None, "stream": True,
        "stream_options": {"include_usage": True}, **args.extra_body,
    }  # fmt: skip
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY')}"}
    request = urllib.request.Request(args.base_url + args.endpoint, json.dumps(body).encode(), headers)
    begin = time.perf_counter()
    row = {
        "start_times": begin,
        "ttfts": 0.0,
        "itls": [],
        "input_lens": len(prompt.split()),
        "output_lens": 0,
        "errors": "",
    }
    moments = []
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            for line in answer:
                if line.startswith(b"data: {") and json.loads(line[6:]).get("choices"):
                    moments.append(time.perf_counter())
    except urllib.error.HTTPError as error:
        return {**row, "errors": error.reason}
    except OSError as error:
        return {**row, "errors": f"Traceback (most recent call last):\n{type(error).__name__}: {error}"}
    if not moments:
        return {**row, "errors": "Never received a valid chunk to calculate TTFT."}
    gaps = [now - was for was, now in pairwise(moments)]
    return {**row, "ttfts": moments[0] - begin, "itls": gaps, "output_lens": len(moments)}
