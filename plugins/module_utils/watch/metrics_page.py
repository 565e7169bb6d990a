"""Read a page of metrics in Prometheus's text format. Plain Python.

Source: https://prometheus.io/docs/instrumenting/exposition_formats/ (text-based format).
"""

from __future__ import annotations

import re
from collections.abc import Iterator

# The value is the first word after the labels; a timestamp may follow.
SAMPLE = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{(.*)\})?[ \t]+(.*)")
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\]|\\.)*)"')
ESCAPED = {"\\n": "\n", '\\"': '"', "\\\\": "\\"}


def samples(page: str, name: str) -> Iterator[tuple[dict[str, str], float]]:
    """Yield labels and value of each series of a metric. Raises ValueError for a value that is no number."""
    # Only a line feed ends a line: a label may contain any other separator.
    for line in page.split("\n"):
        found = SAMPLE.fullmatch(line) if line.startswith(name) else None
        if found and found[1] == name:
            labels = {key: re.sub(r"\\.", lambda m: ESCAPED.get(m[0], m[0]), text) for key, text in labels_of(found[2])}
            yield labels, float((found[3].split() or [""])[0])


def labels_of(text: str | None) -> list[tuple[str, str]]:
    """Return name and value of each label, the value as it is written on the page."""
    return LABEL.findall(text or "")


def names(page: str) -> set[str]:
    """Return the names of all metrics that have a series."""
    return {found[1] for line in page.split("\n") if (found := SAMPLE.fullmatch(line))}


def total(page: str, name: str, **wanted: str) -> float:
    """Return the sum of all series of a metric that have the labels ``wanted``; 0 if there is none."""
    return sum(value for labels, value in samples(page, name) if wanted.items() <= labels.items())


def by_label(page: str, name: str, label: str) -> dict[str, float]:
    """Return the values of a metric by the value of one label."""
    return {labels[label]: value for labels, value in samples(page, name) if label in labels}
