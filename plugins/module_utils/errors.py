"""The base of this project's errors. Plain Python."""

from __future__ import annotations


class UserError(Exception):
    """What was asked for is not possible; the text tells the user why, and the cure where there is one.

    Modules and action plugins show the text. A subclass exists only where a caller must tell it from the others.
    """
