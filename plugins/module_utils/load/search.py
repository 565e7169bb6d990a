"""The largest number of callers that holds a limit: doubled while it holds, then by bisection."""

from __future__ import annotations

from collections.abc import Generator


def largest(most: int) -> Generator[int, bool, int]:
    """Yield numbers of callers to try, to be sent whether the limit held; return the largest that held, or 0.

    It begins with one caller and doubles, so that a host is never asked for much more than it can do.
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
