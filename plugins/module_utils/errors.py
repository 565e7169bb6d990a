"""The base of this project's errors. Plain Python."""

from __future__ import annotations


class UserError(Exception):
    """A request that cannot be carried out; the text says why, and gives the cure if there is one.

    Modules and action plugins show the text. Define a subclass only if a caller must distinguish it.
    """
