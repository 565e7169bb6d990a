"""Run the project's tests, quickest first: a line a step, the log of what failed, and the count at the end.

    python tests/suite.py check             linters and everything that needs no machine
    python tests/suite.py roles [NAME …]    the role scenarios on booted machines (PLATFORM, FULL by environment);
                                            all of them in full end with the drill's quick part

Each step's whole output is in .lab/logs/<step>.log.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
LOGS = ROOT / ".lab" / "logs"
TAIL = 80
SIDE_BY_SIDE = 2
FULL = os.environ.get("FULL") == "1"

# Linters first: they are the quickest to say that something is wrong. The longest begins early: two run side by side.
CHECKS = {
    "ruff": [str(BIN / "ruff"), "check", "."],
    "ruff-format": [str(BIN / "ruff"), "format", "--check", "."],
    "yamllint": [str(BIN / "yamllint"), "--strict", "."],
    "integration": [str(BIN / "pytest"), "-q", "-p", "no:cacheprovider", "tests/integration"],
    "unit": [str(BIN / "pytest"), "-q", "-p", "no:cacheprovider", "tests/unit"],
    "application": [str(BIN / "pytest"), "-q", "-p", "no:cacheprovider", "--rootdir=ai_server", "ai_server/tests"],
    "ansible-lint": [str(BIN / "ansible-lint"), "--offline", "--strict"],
}


@dataclass
class Step:
    """One command and what came of it."""

    name: str
    argv: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    seconds: float = 0
    good: bool = False
    passed: int = 0
    failed: int = 0

    def run(self) -> Step:
        log = LOGS / f"{self.name}.log"
        begin = time.monotonic()
        variables = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", **self.environment}
        with log.open("w") as handle:
            done = subprocess.run(self.argv, cwd=ROOT, stdout=handle, stderr=subprocess.STDOUT, env=variables)
        self.seconds = time.monotonic() - begin
        self.good = done.returncode == 0
        summaries = [line for line in log.read_text(errors="replace").splitlines() if re.search(r"\d+ passed", line)]
        counts = re.findall(r"(\d+) (passed|failed|error)", "\n".join(summaries))
        self.passed = sum(int(number) for number, word in counts if word == "passed") or int(self.good)
        self.failed = sum(int(number) for number, word in counts if word != "passed") or int(not self.good)
        return self

    def line(self) -> str:
        verdict = "ok" if self.good else "FAILED"
        return f"{self.name:<28} {verdict:<7} {self.seconds:6.0f} s   {self.passed} passed, {self.failed} failed"


def scenarios(wanted: list[str]) -> list[Step]:
    """Return a step for each scenario; the engine's first, because it takes longest."""
    known = sorted(path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml"))
    unknown = set(wanted) - set(known)
    if unknown:
        sys.exit(f"There is no scenario {', '.join(sorted(unknown))}; there are: {', '.join(known)}.")
    names = sorted(wanted or known, key=lambda name: (name not in ("vllm", "swap"), name))
    platform = os.environ.get("PLATFORM") or "debian12"
    return [Step(f"{name}-{platform}", [str(BIN / "molecule"), "test", "--scenario-name", name]) for name in names]


def perform(steps: list[Step], side_by_side: int) -> list[Step]:
    """Run ``steps``; print a line as each ends, and the end of its log where it failed."""
    LOGS.mkdir(parents=True, exist_ok=True)
    print(f"Running {len(steps)} steps: {', '.join(step.name for step in steps)}", flush=True)
    with concurrent.futures.ThreadPoolExecutor(side_by_side) as pool:
        for future in concurrent.futures.as_completed([pool.submit(step.run) for step in steps]):
            step = future.result()
            print(step.line(), flush=True)
            if not step.good:
                lines = (LOGS / f"{step.name}.log").read_text(errors="replace").splitlines()[-TAIL:]
                print("\n".join(f"    {line}" for line in lines), flush=True)
    return steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["check", "roles"])
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    if options.part == "check":
        present = {name: argv for name, argv in CHECKS.items() if not options.names or name in options.names}
        steps = perform([Step(name, argv) for name, argv in present.items()], SIDE_BY_SIDE)
    else:
        steps = perform(scenarios(options.names), SIDE_BY_SIDE)
        if FULL and not options.names:
            # Alone: it measures for how long a server does not answer.
            steps += perform([Step("drill-quick", [sys.executable, "-m", "lab", "drill", "--quick"])], 1)
    passed, failed = sum(step.passed for step in steps), sum(step.failed for step in steps)
    print(f"{passed} passed, {failed} failed")
    return int(any(not step.good for step in steps))


if __name__ == "__main__":
    sys.exit(main())
