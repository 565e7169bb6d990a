"""The one exception of the planner: its text is a whole sentence for the person who asked."""

from __future__ import annotations


class PlanError(Exception):
    """An input the planner cannot use; the message names it and the cure."""
