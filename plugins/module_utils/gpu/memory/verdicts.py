"""The three verdicts, and cures: a change is only named after a plan with it has come out better."""

from __future__ import annotations

from collections.abc import Callable, Iterable

FITS, TIGHT, REFUSED = "fits", "tight", "refused"
VERDICTS = (FITS, TIGHT, REFUSED)  # best first


def better(one: str, other: str) -> bool:
    return VERDICTS.index(one) < VERDICTS.index(other)


def cures_that_cure(now: str, candidates: Iterable[tuple[str, Callable[[], str]]], most: int = 3) -> list[str]:
    """The texts of the candidates (text, verdict with the change) that lead to a better verdict, in their order.

    One that leads to `fits` is worth more than one that leads to `tight`: these come only where there is none of those.
    """
    found: dict[str, list[str]] = {FITS: [], TIGHT: []}
    for text, verdict in candidates:
        if len(found[FITS]) >= most:
            break
        word = verdict()
        if better(word, now) and text not in found[word]:
            found[word].append(text)
    return found[FITS] or found[TIGHT][:most]
