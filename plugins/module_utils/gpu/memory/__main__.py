"""The planner on the command line, without Ansible: `python3 -m plugins.module_utils.gpu.memory --help`.

Every option of a service in the module's documentation is an option here, with dashes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from . import render
from .engines import card
from .errors import PlanError
from .question import SERVICE, ask

_READ = {"str": str, "path": str, "int": int, "float": float}


def parser() -> argparse.ArgumentParser:
    """Return the parser: the GPU, one service by its own options or several in a file, and the output format."""
    out = argparse.ArgumentParser(
        prog="python3 -m plugins.module_utils.gpu.memory",
        description="Will the engine start on this GPU, and with how much room? Lengths in tokens, sizes in MiB.",
    )
    out.add_argument("--gpu", required=True, metavar="NAME", help="the card, such as L4, or any name with --total-mib")
    out.add_argument("--total-mib", type=int, help="its memory as nvidia-smi shows it")
    out.add_argument("--free-mib", type=int, help="what is free of it (all of it)")
    out.add_argument("--wsl", action="store_true", help="the card is seen through WSL2")
    out.add_argument("--services", metavar="FILE", help="JSON list of services in their order of start")
    out.add_argument("--hub-url", help="hub or mirror to read a model's headers from")
    out.add_argument("--json", action="store_true", help="answer in JSON")
    service = out.add_argument_group("the service, where no --services are given")
    for name, spec in SERVICE.items():
        option = "--" + name.replace("_", "-")
        if spec["type"] == "bool":
            service.add_argument(option, action=argparse.BooleanOptionalAction)
        elif spec["type"] in _READ:
            service.add_argument(option, type=_READ[spec["type"]], choices=spec.get("choices"))
    service.add_argument("--config", metavar="FILE", help="a config.json where the model is not at hand")
    service.add_argument("--adapter", action="append", metavar="SOURCE", help="a LoRA adapter; may be given again")
    service.add_argument("--engine-arguments", metavar="JSON", help="further arguments of vllm serve, as an object")
    return out


def services(given: argparse.Namespace) -> list[dict]:
    """Return the services to plan. Raises PlanError for a file or text that is not JSON."""
    if given.services:
        return _json(Path(given.services), list)
    asked = {name: getattr(given, name) for name in SERVICE if getattr(given, name, None) is not None}
    asked["name"] = asked.get("name") or asked.get("engine") or "vllm"
    if given.config:
        asked["config"] = _json(Path(given.config), dict)
    if given.adapter:
        asked["adapters"] = [{"name": source, "source": source} for source in given.adapter]
    if given.engine_arguments:
        asked["engine_arguments"] = _json(given.engine_arguments, dict)
    return [asked]


def _json(source: Path | str, kind: type):
    try:
        value = json.loads(source.read_text(encoding="utf-8") if isinstance(source, Path) else source)
    except (OSError, ValueError) as error:
        raise PlanError(f"{source} is not readable JSON: {error}") from None
    if not isinstance(value, kind):
        raise PlanError(f"{source} is not a JSON {'list' if kind is list else 'object'}.")
    return value


def main(arguments: list[str] | None = None) -> int:
    """Print the plan; return 0 if all services run, 1 if one is refused, 2 for bad input."""
    given = parser().parse_args(arguments)
    known = card(given.gpu)
    total = given.total_mib or (known.smi_mib if known else None)
    gpu = {"name": given.gpu, "total_mib": total, "free_mib": given.free_mib, "wsl": given.wsl}
    try:
        if total is None:
            raise PlanError(f"{given.gpu} is not a card in the planner's list: give its memory with --total-mib.")
        result, answer = ask({"services": services(given), "hub_url": given.hub_url}, gpu)
    except PlanError as error:
        print(error, file=sys.stderr)
        return 2
    print(json.dumps(answer["plan"], indent=2) if given.json else render.as_text(result))
    return 0 if all(service["runs"] for service in result["services"]) else 1


if __name__ == "__main__":
    sys.exit(main())
