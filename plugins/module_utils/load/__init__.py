"""A load check: parameters (plan, search), tool, monitoring (watch), results (judge, page)."""
