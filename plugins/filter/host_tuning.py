"""Filter of the host_tuning role; its logic is in module_utils/host/host_tuning.py."""

from __future__ import annotations

from ..module_utils.host import host_tuning


class FilterModule:
    def filters(self):
        return {"is_clock_range": host_tuning.is_clock_range}
