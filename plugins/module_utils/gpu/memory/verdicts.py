"""The three verdicts, and cures: a change is named only if a plan with it has a better verdict."""

from __future__ import annotations

from collections.abc import Callable, Iterable

FITS, TIGHT, REFUSED = "fits", "tight", "refused"
VERDICTS = (FITS, TIGHT, REFUSED)  # best first


def better(one: str, other: str) -> bool:
    return VERDICTS.index(one) < VERDICTS.index(other)


def cures_that_cure(now: str, candidates: Iterable[tuple[str, Callable[[], str]]], most: int = 3) -> list[str]:
    """Return the texts of the candidates (text, verdict with the change) that improve the verdict, in their order.

    Candidates that lead to `tight` are returned only if none leads to `fits`.
    """
    found: dict[str, list[str]] = {FITS: [], TIGHT: []}
    for text, verdict in candidates:
        if len(found[FITS]) >= most:
            break
        word = verdict()
        if better(word, now) and text not in found[word]:
            found[word].append(text)
    return found[FITS] or found[TIGHT][:most]
