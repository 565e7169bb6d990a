"""The only exception of the planner: its text is a complete sentence for the user."""

from __future__ import annotations


class PlanError(Exception):
    """An input that the planner cannot use; the message names it and the cure."""
