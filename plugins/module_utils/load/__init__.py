"""A load check: what is asked (plan, search), the tool, what is watched, what came of it (judge, page)."""
