"""A parser that reads the arguments of a `--config` file, as the engine's does."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path


class FlexibleArgumentParser(argparse.ArgumentParser):
    """Inserts the arguments of the `--config` file before the other arguments of the subcommand."""

    def parse_args(self, args=None, namespace=None):
        words = list(sys.argv[1:] if args is None else args)
        if "--config" in words:
            place = words.index("--config")
            words[1:] = [*arguments(Path(words[place + 1])), *words[1:place], *words[place + 2 :]]
        return super().parse_args(words, namespace)


def arguments(path: Path) -> list[str]:
    """Return the command line arguments of a configuration file; the model comes first."""
    given = read_flat_yaml(path.read_text())
    words = [str(given.pop("model"))] if "model" in given else []
    for name, value in given.items():
        if value is False or value is None:
            continue
        values = value if isinstance(value, list) else [] if value is True else [value]
        words += [f"--{name}", *map(str, values)]
    return words


def read_flat_yaml(text: str) -> dict:
    """Read the YAML that the role writes: scalars and lists of scalars, each possibly on several lines."""
    lines: list[str] = []
    for line in text.splitlines():
        if re.match(r"[\w-]+:( |$)|\s*- ", line):
            lines.append(line)
        elif line.strip() and not line.startswith(("#", "---")):
            lines[-1] += f" {line.strip()}"
    found: dict = {}
    name = ""
    for line in lines:
        if re.match(r"\s*- ", line):
            found[name] = [*(found[name] or []), scalar(line.split("- ", 1)[1])]
        else:
            name, _, value = line.partition(":")
            found[name] = scalar(value)
    return found


def scalar(text: str) -> object:
    """Return the value of a YAML scalar."""
    text = text.strip()
    if text.startswith("'"):
        return text[1:-1].replace("''", "'")
    try:
        return json.loads(text or "null")
    except ValueError:
        return text
