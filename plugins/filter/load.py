"""Filter of playbooks/load.yml; its logic is in module_utils/load/plan.py."""

from __future__ import annotations

from ..module_utils.load import plan


class FilterModule:
    def filters(self):
        return {"load_units": plan.units_of}
