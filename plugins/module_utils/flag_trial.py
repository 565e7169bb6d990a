"""Ask a program of Go's flag package whether it takes its flags; say in one line what it does not, by variable.

    flag_trial.py VARIABLE PROGRAM [ARGUMENT …]

Run as a trial of service_release, before the program is started. The ARGUMENTs are those of the service and one by
which the program checks itself and leaves, such as -dryRun.
"""

from __future__ import annotations

import re
import subprocess
import sys


def complaint(said: str) -> str:
    """Return what is wrong by what the program said: its own error, else the line before its page of help."""
    lines = [line.strip() for line in said.splitlines() if line.strip()] or ["it leaves without a word"]
    fatal = [re.split(r"\t(?:fatal|panic)\t\S+\t", line)[1] for line in lines if re.search(r"\t(fatal|panic)\t", line)]
    return (fatal or lines)[0].rstrip(".")


def main() -> None:
    variable, command = sys.argv[1], sys.argv[2:]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if done.returncode:
        sys.exit(f"{variable}: {complaint(done.stdout)}; correct it.")


if __name__ == "__main__":
    main()
