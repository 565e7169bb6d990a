"""Diagnoses a saved log: `python -m plugins.module_utils.diagnosis FILE` (- reads standard input).

The file is a journal, a log, or output of `systemctl status`, `dmesg`, `docker inspect` or `kubectl describe`, from any
machine; its content is not sent anywhere. The exit code is 1 if a failure was found.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from . import causes, judge, lines, render


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m plugins.module_utils.diagnosis", description=__doc__.splitlines()[0]
    )
    parser.add_argument("file", help="a saved log; - reads standard input")
    parser.add_argument(
        "--service", help="the service that it is of, such as vllm: other services' causes are left out"
    )
    parser.add_argument("--name", help="what the service is called, where a host has several, such as feedback")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    try:
        content = sys.stdin.buffer.read() if given.file == "-" else Path(given.file).read_bytes()
    except OSError as error:
        print(f"{given.file}: {error.strerror}", file=sys.stderr)
        return 2
    read = lines.read(content.decode("utf-8", errors="replace"))
    verdict = judge.judge(read, causes.load(), given.service, tuple(judge.load_of_engine(read)), name=given.name or "")
    if given.json:
        print(json.dumps(facts(verdict), indent=1))
    else:
        print("\n".join(render.table(verdict)))
    return int(verdict.failed)


def facts(verdict: judge.Verdict) -> dict:
    """Return a verdict as plain values."""
    found = verdict.cause
    return {
        "failed": verdict.failed,
        "cause": found and {**render.facts(found), "agreeing": [state.says for state in verdict.agreeing]},
        "exception": render.short(verdict.exception),
        "also": [render.facts(each) for each in verdict.others],
        "states": [dataclasses.asdict(state) for state in verdict.seen],
        "ends": verdict.ends,
    }


if __name__ == "__main__":
    sys.exit(main())
