"""The only exception of the planner."""

from __future__ import annotations

from ...errors import UserError


class PlanError(UserError):
    """An input that the planner cannot use; the message names it and the cure."""
