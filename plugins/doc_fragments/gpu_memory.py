"""Options of the module gpu_memory_plan, from the planner's own table of them."""

from __future__ import annotations

import json

from ..module_utils.gpu.memory.options import SERVICE, documentation


class ModuleDocFragment:
    """The suboptions of a service in the list ``services``."""

    # Annotated, since ansible-test's yamllint ends with an error at a plain assignment of anything but a constant.
    DOCUMENTATION: str = json.dumps({"options": {"services": {"suboptions": documentation(SERVICE)}}})
