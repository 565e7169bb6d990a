"""What a text must contain for a pattern to match it: a fast test before the slow match.

A journal has thousands of lines and the table hundreds of patterns; a single word rules out nearly all pairs.
"""

from __future__ import annotations

import re

try:
    from re import _constants, _parser
except ImportError:  # Python 3.10
    import sre_constants as _constants
    import sre_parse as _parser

SHORTEST = 3  # characters: a shorter word is in every line


def needed(pattern: re.Pattern) -> tuple[str, ...]:
    """Return words, of which every text that the pattern matches contains at least one; empty if there are none."""
    if pattern.flags & re.IGNORECASE:
        return ()
    return tuple(sorted(_of(_parser.parse(pattern.pattern))))


def _of(parsed) -> set[str]:
    """Return the alternatives of the most selective part of a sequence; all of its parts must match."""
    best: set[str] = set()
    run = ""
    for operation, value in [*parsed, (None, None)]:
        if operation is _constants.LITERAL:
            run += chr(value)
            continue
        best, run = _better(best, {run}), ""
        if operation is _constants.SUBPATTERN:
            best = _better(best, _of(value[-1]))
        elif operation is _constants.BRANCH:
            branches = [_of(each) for each in value[1]]
            best = _better(best, set().union(*branches) if all(branches) else set())
        elif operation in (_constants.MAX_REPEAT, _constants.MIN_REPEAT) and value[0] > 0:
            best = _better(best, _of(value[2]))
    return best


def _better(one: set[str], other: set[str]) -> set[str]:
    """Return the alternatives whose shortest word is longer."""

    def length(words: set[str]) -> int:
        return min(map(len, words), default=0)

    other = other if length(other) >= SHORTEST else set()
    return other if length(other) > length(one) else one
