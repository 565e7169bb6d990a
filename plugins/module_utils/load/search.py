"""Find the largest number of callers within a limit, by doubling and then bisection."""

from __future__ import annotations

from collections.abc import Generator


def largest(most: int) -> Generator[int, bool, int]:
    """Yield numbers of callers to try; send back whether each was within the limit. Return the largest, or 0.

    It starts with one caller and doubles, so that a host never gets much more load than it can take.
    """
    held, failed, callers = 0, most + 1, 1
    while held < most and callers < failed:
        if (yield callers):
            held = callers
            callers = min(2 * callers, most)
        else:
            failed = callers
    while failed - held > 1:
        middle = (held + failed) // 2
        if (yield middle):
            held = middle
        else:
            failed = middle
    return held
