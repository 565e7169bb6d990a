"""Check whether the installed node_exporter accepts its flags; print unknown ones in one line, with their variable.

    check_flags.py FLAGS PROGRAM [ARGUMENT …]

FLAGS is JSON: each variable with the names of its flags. PROGRAM and its ARGUMENTs are the service's command.
"""

from __future__ import annotations

import difflib
import json
import re
import subprocess
import sys

FLAG = re.compile(r"^\s+(?:-\w, )?--(\[no-\])?([\w.-]+)", re.MULTILINE)


def unknown(wanted: dict, page: str) -> list[str]:
    """Return one sentence for each flag of ``wanted`` that the help ``page`` does not list."""
    known = {name: bool(switch) for switch, name in FLAG.findall(page)}
    collectors = sorted(name.partition(".")[2] for name, switch in known.items() if switch and _is_collector(name))
    problems = []
    for variable, name in ((variable, name) for variable, names in wanted.items() for name in names):
        if name in known:
            continue
        what, others = (name.partition(".")[2], collectors) if _is_collector(name) else (name, list(known))
        near = difflib.get_close_matches(what, others, 1)
        hint = f"; did you mean {near[0]}?" if near else "."
        if _is_collector(name):
            what, hint = f"collector {what} (--{name})", hint if near else f"; it has {', '.join(collectors)}."
        else:
            what = f"flag --{name}"
        problems.append(f"{variable}: this version has no {what}{hint}")
    return problems


def _is_collector(name: str) -> bool:
    return bool(re.fullmatch(r"collector\.[^.]+", name))


def main() -> None:
    wanted, command = json.loads(sys.argv[1]), sys.argv[2:]
    page = subprocess.run([command[0], "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    problems = unknown(wanted, page.stdout)
    if not problems:
        # With --help it parses all arguments and starts nothing.
        done = subprocess.run([*command, "--help"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        lines = done.stderr.strip().splitlines() or ["it leaves without a word"]
        problems = [lines[-1].removesuffix(", try --help")] if done.returncode else []
    if problems:
        sys.exit(" ".join(problems))


if __name__ == "__main__":
    main()
