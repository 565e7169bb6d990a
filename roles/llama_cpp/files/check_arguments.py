"""Check whether the installed llama-server accepts its arguments; print an error in one line.

    check_arguments.py PROGRAM [ARGUMENT …]

With --help as the last argument it parses all arguments, but loads and starts nothing.
"""

from __future__ import annotations

import re
import subprocess
import sys

ERROR = re.compile(r'error while handling argument "(?P<name>[^"]+)": (?:error: )?(?P<why>.*)|error: (?P<plain>.*)')
CONVERSIONS = {"stoi": "it must be a whole number", "stof": "it must be a number", "stol": "it must be a whole number"}


def complaint(output: str) -> str:
    """Return the program's error as one sentence."""
    for line in output.splitlines():
        found = ERROR.match(line)
        if found and found["name"]:
            why = CONVERSIONS.get(found["why"].strip(), found["why"].strip()).rstrip(".")
            return f"llama-server refuses {found['name']}: {why}; correct its variable."
        if found:
            why = found["plain"].strip().rstrip(".")
            return f"llama-server refuses its arguments: {why}; correct llama_cpp_arguments."
    last = next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "it leaves without a word")
    return f"llama-server refuses its arguments: {last}"


def main() -> None:
    done = subprocess.run(
        [*sys.argv[1:], "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if done.returncode:
        sys.exit(complaint(done.stdout))


if __name__ == "__main__":
    main()
