"""Score the diagnosis over cases whose cause is known: `diagnosis_score.py [FILE …]`, JSON lines.

A case has `id`, `log`, `cause` (`none` for a healthy log), perhaps `accept` (further correct causes), and `component`.
The rules only see the log: neither the component nor anything else of a case.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from plugins.module_utils.diagnosis import causes, judge, lines  # noqa: E402

OWN = sorted((ROOT / "tests" / "data" / "diagnosis").glob("*.jsonl"))
HEALTHY = "none"


def read(paths: list[Path]) -> list[dict]:
    """Return the cases in the files."""
    return [json.loads(line) for path in paths for line in path.read_text("utf-8").splitlines() if line]


def diagnosed(case: dict, table: causes.Table) -> tuple[str, str]:
    """Return the cause found in a case's log and the wider cause that it belongs to; `none` without a cause."""
    verdict = judge.judge(lines.read(case["log"]), table)
    return (verdict.cause.cause.id, verdict.cause.cause.kind_of) if verdict.cause else (HEALTHY, "")


def outcome(case: dict, diagnosis: str, wider: str = "") -> str:
    """Return right, wrong or none (no cause found) for a case."""
    if {diagnosis, wider} & {case["cause"], *(case.get("accept") or ())}:
        return "right"
    return "none" if diagnosis == HEALTHY else "wrong"


def kind(cause: str, table: causes.Table) -> str:
    """Return the area of a cause; if the table does not know it, the first word of its name."""
    return next((row.area for row in table.causes if row.id == cause), re.split(r"_", cause)[0])


def main(paths: list[Path]) -> int:
    table = causes.load()
    cases = read(paths)
    if not cases:
        print("no cases in " + ", ".join(map(str, paths)), file=sys.stderr)
        return 2
    results = []
    for case in cases:
        diagnosis, wider = diagnosed(case, table)
        results.append((case, diagnosis, outcome(case, diagnosis, wider)))
    broken = [result for result in results if result[0]["cause"] != HEALTHY]
    healthy = [result for result in results if result[0]["cause"] == HEALTHY]
    count = Counter(result for _, _, result in broken)
    print(f"right {count['right']}/{len(broken)}")
    print(f"wrong {count['wrong']}")
    print(f"none {count['none']}")
    for title, name in (
        ("component", lambda case: case["component"]),
        ("kind", lambda case: kind(case["cause"], table)),
    ):
        for value in sorted({name(case) for case, _, _ in broken}):
            part = [result for case, _, result in broken if name(case) == value]
            print(f"  {title} {value}: right {part.count('right')}/{len(part)}, wrong {part.count('wrong')}")
    alarms = [case["id"] for case, diagnosis, _ in healthy if diagnosis != HEALTHY]
    print(f"false_alarms {len(alarms)}/{len(healthy)}")
    for case, diagnosis, result in results:
        if result != "right":
            print(f"  {result:<5} {case['id']}: {case['cause']}, diagnosed {diagnosis}")
    return 0


if __name__ == "__main__":
    sys.exit(main([Path(name) for name in sys.argv[1:]] or OWN))
