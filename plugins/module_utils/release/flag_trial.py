"""Ask a program of Go's flag package whether it takes its flags; say in one line what it does not, by variable.

    flag_trial.py VARIABLE PROGRAM [ARGUMENT …]

Run as a trial of service_release, before the program is started. The ARGUMENTs are those of the service and one by
which the program checks itself and leaves, such as -dryRun.
"""

from __future__ import annotations

import re
import subprocess
import sys

LOGGED = re.compile(r"(?:^|\t)(info|warn|error|fatal|panic)\t\S+\t")


def complaint(said: str) -> str:
    """Return what is wrong by what the program said: its own error, else the line before its page of help."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [
        line[found.end() :] for line in lines if (found := LOGGED.search(line)) and found[1] in ("fatal", "panic")
    ]
    plain = [line for line in lines if not LOGGED.search(line)]
    return next(iter([*errors, *plain]), "it leaves without a word").rstrip(".")


def main() -> None:
    variable, command = sys.argv[1], sys.argv[2:]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode:
        sys.exit(f"{variable}: {complaint(done.stdout)}; correct it.")


if __name__ == "__main__":
    main()
