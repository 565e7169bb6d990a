"""Run the project's tests, fastest first: one line per step, the log of failed steps, and the count at the end.

    python tests/suite.py check             linters and all tests without a machine
    python tests/suite.py roles [NAME …]    the scenarios on booted machines (variables PLATFORM, FULL)
    python tests/suite.py long [NAME …]     the scenarios in full on the newest platform, and once on each of the
                                            others; the host's own Python; the newest controller; the drill's quick part

Each step's complete output is in .lab/logs/<step>.log. The long part begins with the subjects of the last day's
commits. After TEST_DEADLINE (seconds since the epoch) it starts no further step, and lists those it left out. If
TEST_TALLY names a file, the count at the end is the sum of all parts that use this file.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BIN = Path(sys.executable).parent
LOGS = ROOT / ".lab" / "logs"
TAIL = 80
NAMED = 20
SIDE_BY_SIDE = 2
FRAME = re.compile(r"^\s*(\x1b\[[\d;]*m)*│?(\x1b\[[\d;]*m)*\s?|\x1b\[[\d;]*m")
FAILURE = re.compile(r"(FAILED|ERROR|E  |fatal:|\[ERROR\])")
DEADLINE = float(os.environ.get("TEST_DEADLINE") or "inf")

# Two scenarios run in parallel, so these start first.
LONGEST = ("engines", "swap", "vllm")
# The scenarios of the long part, by platform. Debian 12 is tested daily by `make test`.
EVERY = ()
ON_A_GPU = ("cuda_keyring", "dcgm", "dcgm_exporter", "gpu_host", "laboratory", "production_engine")
BARE = "bare"
FORKY = "forky"
# Scenarios that only run on one platform, whatever PLATFORM is: only that suite has the package of llama.cpp.
PLACED = {"engines": FORKY, "llama_cpp": FORKY}
# Not tested daily, since its build from source takes 12 minutes of CPU.
RARE = {"llama_cpp_build": "debian13"}
LONG = {"debian13": EVERY, "debian11": EVERY, BARE: ON_A_GPU, FORKY: tuple(PLACED)}
# Debian's alertmanager, which the laboratory packs like upstream's, needs a newer libc.
NOT_ON = {"debian11": ("watch",)}
IN_FULL = ("debian13", FORKY)
# Scenarios of the role vllm that only make sense on a bare machine, and the GiB of disk that each needs.
ENGINE_ON_BARE = {"gpu_host": 3, "production_engine": 14}
# Seconds before the deadline by which a step must start: a full run takes half an hour, on a slow day twice that.
EARLIER = {"vllm-debian13": 17 * 60, "engines-forky": 20 * 60, "llama_cpp_build-debian13": 25 * 60}
A_DAY = 24 * 3600

GCP = "tests/integration/gcp"
NEWEST = [sys.executable, "tests/newest_controller.py"]

# Linters first, since they report errors fastest. The longest start early, because two steps run in parallel.
CHECKS = {
    "ruff": [str(BIN / "ruff"), "check", "."],
    "ruff-format": [str(BIN / "ruff"), "format", "--check", "."],
    "yamllint": [str(BIN / "yamllint"), "--strict", "."],
    "google-cloud": [str(BIN / "pytest"), "-q", "-p", "no:cacheprovider", GCP],
    "integration": [str(BIN / "pytest"), "-q", "-p", "no:cacheprovider", "tests/integration", "--ignore", GCP],
    "unit": [str(BIN / "pytest"), "-q", "-p", "no:cacheprovider", "tests/unit"],
    "sanity": [sys.executable, "tests/sanity.py"],
    "newest-controller": [*NEWEST, "check"],
    "application": [str(BIN / "pytest"), "-q", "-p", "no:cacheprovider", "--rootdir=ai_server", "ai_server/tests"],
    "ansible-lint": [str(BIN / "ansible-lint"), "--offline", "--strict"],
    "site": [str(BIN / "mkdocs"), "build", "--strict", "--quiet"],
}


@dataclass
class Step:
    """One command and its result; `about` is the word that identifies its subject in file paths."""

    name: str
    argv: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    about: str = ""
    optional: bool = False
    room_gib: int = 0
    left_out: str = ""
    seconds: float = 0
    good: bool = False
    passed: int = 0
    failed: int = 0
    failures: tuple[str, ...] = ()

    def run(self) -> Step:
        self.left_out = self.obstacle()
        if self.left_out:
            return self
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
        self.failures = () if self.good else failures(log)
        return self

    def obstacle(self) -> str:
        """Return why the step is left out; empty if it can run."""
        if self.optional and time.time() > DEADLINE - EARLIER.get(self.name, 0):
            return "the deadline has passed"
        free = shutil.disk_usage(Path.home()).free >> 30
        if free < self.room_gib:
            return f"it needs {self.room_gib} GiB of disk, {free} GiB are free"
        return ""

    def line(self) -> str:
        verdict = "ok" if self.good else "FAILED"
        return f"{self.name:<28} {verdict:<7} {self.seconds:6.0f} s   {self.passed} passed, {self.failed} failed"


def failures(log: Path) -> tuple[str, ...]:
    """Return a log's lines that say what failed and why, of pytest and Ansible; without Molecule's frame."""
    lines = [FRAME.sub("", line).rstrip() for line in log.read_text(errors="replace").splitlines()]
    return tuple(line for line in lines if FAILURE.match(line))[-NAMED:]


def known_scenarios() -> list[str]:
    """Return the names of the scenarios, the longest first because two run in parallel."""
    names = [path.parent.name for path in (ROOT / "molecule").glob("*/molecule.yml")]
    return sorted(names, key=lambda name: (name not in LONGEST, name))


def scenario(name: str, platform: str, **environment: str) -> Step:
    """Return a scenario's step on a platform, with its own folder: a scenario may run on two platforms at once."""
    folder = ROOT / ".lab" / "molecule" / f"{name}-{platform}"
    variables = {"PLATFORM": platform, "MOLECULE_EPHEMERAL_DIRECTORY": str(folder), **environment}
    argv = [str(BIN / "molecule"), "test", "--scenario-name", name]
    about = "vllm" if name in ENGINE_ON_BARE else name
    return Step(f"{name}-{platform}", argv, variables, about=about, room_gib=ENGINE_ON_BARE.get(name, 0))


def chosen(wanted: list[str], platform: str, among: tuple[str, ...] = EVERY) -> list[str]:
    """Return the wanted scenarios (or all) of a platform; exit with an error if one does not exist."""
    known = known_scenarios()
    unknown = set(wanted) - set(known)
    if unknown:
        sys.exit(f"There is no scenario {', '.join(sorted(unknown))}; there are: {', '.join(sorted(known))}.")
    names = [name for name in known if platform == BARE or name not in ENGINE_ON_BARE]
    names = [name for name in names if name not in NOT_ON.get(platform, ())]
    names = [name for name in names if {**PLACED, **RARE}.get(name, platform) == platform]
    return [name for name in names if name in (wanted or names) and name in (among or names)]


def daily_scenarios(wanted: list[str], platform: str) -> list[tuple[str, str]]:
    """Return scenarios with their platforms: the given one, or the only one that a scenario runs on."""
    others = {*PLACED.values(), *(RARE[name] for name in RARE if name in wanted)} - {platform}
    placed = [(name, other) for other in sorted(others) for name in chosen(wanted, other) if name in {**PLACED, **RARE}]
    own = [(name, platform) for name in chosen(wanted, platform) if name not in RARE or name in wanted]
    own += [one for one in placed if one[0] not in RARE or one[0] in wanted]
    return sorted(own, key=lambda one: one[0] not in LONGEST)


def long_steps(wanted: list[str]) -> list[Step]:
    """Return the steps of the long part in their fixed order."""
    steps = [
        scenario(name, platform, FULL=str(int(platform in IN_FULL)))
        for platform, among in LONG.items()
        for name in chosen(wanted, platform, among)
    ]
    if not wanted:
        steps.append(Step("unit-python3.10", [sys.executable, "tests/on_host_python.py"], about="plugins"))
        steps.append(Step("node_exporter-newest", [*NEWEST, "scenario", "node_exporter"], about="requirements"))
        steps.append(Step("sanity-newest", [*NEWEST, "sanity"], about="requirements"))
    return [replace(step, optional=True) for step in steps]


def changed_files() -> list[str]:
    """Return the files changed by the commits of the last day before the newest; empty if git fails."""
    newest = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=ROOT, capture_output=True, text=True)
    if newest.returncode != 0:
        return []
    since = f"--since={int(newest.stdout) - A_DAY}"
    # With a merge's first parent, a merged branch counts in full.
    words = ["git", "log", "--first-parent", "--diff-merges=first-parent", "--name-only", "--format=", since]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    return sorted({line for line in done.stdout.splitlines() if line})


def touched_first(steps: list[Step], changed: list[str]) -> list[Step]:
    """Return the steps; those whose subject is in the path of a changed file come first."""
    return sorted(steps, key=lambda step: not any(step.about in path for path in changed))


def tally(passed: int, failed: int) -> tuple[int, int]:
    """Add this part's counts to those of earlier parts, if TEST_TALLY names their file; return the sums."""
    path = os.environ.get("TEST_TALLY")
    if path:
        earlier = re.findall(r"^(\d+) passed, (\d+) failed$", Path(path).read_text(), re.MULTILINE)
        if earlier:
            passed, failed = passed + int(earlier[-1][0]), failed + int(earlier[-1][1])
        Path(path).write_text(f"{passed} passed, {failed} failed\n")
    return passed, failed


def perform(steps: list[Step], side_by_side: int) -> list[Step]:
    """Run ``steps``; print a line when each ends, and the end of its log if it failed."""
    LOGS.mkdir(parents=True, exist_ok=True)
    print(f"Running {len(steps)} steps: {', '.join(step.name for step in steps)}", flush=True)
    with concurrent.futures.ThreadPoolExecutor(side_by_side) as pool:
        for future in concurrent.futures.as_completed([pool.submit(step.run) for step in steps]):
            step = future.result()
            if step.left_out:
                continue
            print(step.line(), flush=True)
            if not step.good:
                lines = (LOGS / f"{step.name}.log").read_text(errors="replace").splitlines()[-TAIL:]
                print("\n".join(f"    {line}" for line in lines), flush=True)
    return steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["check", "roles", "long"])
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    if options.part == "check":
        present = {name: argv for name, argv in CHECKS.items() if not options.names or name in options.names}
        steps = perform([Step(name, argv) for name, argv in present.items()], SIDE_BY_SIDE)
    elif options.part == "roles":
        daily = BARE if set(options.names) & ENGINE_ON_BARE.keys() else "debian12"
        platform = os.environ.get("PLATFORM") or daily
        steps = perform([scenario(*one) for one in daily_scenarios(options.names, platform)], SIDE_BY_SIDE)
    else:
        steps = perform(touched_first(long_steps(options.names), changed_files()), SIDE_BY_SIDE)
        if not options.names:
            # Not in parallel: they measure how long a server does not answer, and how late an alert is.
            drill = [sys.executable, "-m", "lab", "drill"]
            last = {"drill-quick": [*drill, "--quick"], "drill-watched": [*drill, "--bed", "watched"]}
            steps += perform([Step(name, argv, optional=True) for name, argv in last.items()], 1)
    ran = [step for step in steps if not step.left_out]
    for reason in dict.fromkeys(step.left_out for step in steps if step.left_out):
        print(f"Not run, because {reason}: {', '.join(step.name for step in steps if step.left_out == reason)}")
    for step in ran:
        # Repeated at the end, because often only the end of a long output is kept.
        print("".join(f"{step.name}: {line}\n" for line in step.failures), end="")
    passed, failed = tally(sum(step.passed for step in ran), sum(step.failed for step in ran))
    print(f"{passed} passed, {failed} failed")
    return int(any(not step.good for step in ran))


if __name__ == "__main__":
    sys.exit(main())
