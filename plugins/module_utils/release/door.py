"""What the modules of a service have in common: the service's lock, check mode, and errors as one sentence."""

from __future__ import annotations

import re
from collections.abc import Callable

from ..errors import UserError
from .store import Service

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
Work = Callable[[Service, dict], dict]


def run(module, preview: Work, change: Work, before: Callable[[Service, dict], object] | None = None) -> None:
    """End ``module`` with the result of ``change``, which holds the service's lock, or in check mode of ``preview``.

    ``before`` runs first and without the lock, whose file would stay behind for a service that does not exist.
    """
    wanted, service = module.params, Service(module.params["name"])
    service.beside = wanted.get("beside") or []
    if not NAME.fullmatch(wanted["name"]):
        module.fail_json(msg=f"name is {wanted['name']!r}; it must be a service's, such as vllm or ai-server")
    try:
        if before:
            before(service, wanted)
        if module.check_mode:
            result = preview(service, wanted)
        else:
            # A comparison does not wait for another run; the run that follows does.
            with service.lock(patience=0 if wanted.get("compare_only") else None):
                result = change(service, wanted)
    except (UserError, OSError) as error:
        module.fail_json(msg=str(error))
    for addition in result.pop("besides", []):
        module.warn(f"{service.name}: {addition}; it is left as it is")
    module.exit_json(**result)
