"""Regenerate the dashboards, as `make dashboards` does.

python -m dashboards.generate            write
python -m dashboards.generate --check    list the files that are out of date; exit code 1 if there are any
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from dashboards import to_grafana, to_vmui
from dashboards.content import ALL

HOME = Path(__file__).resolve().parent


def generated() -> dict[str, str]:
    """Return the expected content of the files, by their path below this folder."""
    files = {}
    for dashboard in ALL:
        files[f"grafana/{dashboard.name}.json"] = to_grafana.build(dashboard)
        files[f"vmui/{dashboard.order}-{dashboard.name}.json"] = to_vmui.build(dashboard)
        if dashboard.log_panels():
            files[f"grafana/{dashboard.name}-loki.json"] = to_grafana.build(dashboard, to_grafana.LOKI)
    return {
        path: json.dumps(content, cls=JSONEncoder, indent=2, sort_keys=True) + "\n" for path, content in files.items()
    }


def out_of_date() -> list[str]:
    """Return the files that differ from their expected content, are missing, or should not exist."""
    wanted = generated()
    there = {str(path.relative_to(HOME)): path.read_text() for path in HOME.glob("*/*.json")}
    return sorted(path for path in wanted.keys() | there.keys() if wanted.get(path) != there.get(path))


def main(arguments: list[str]) -> int:
    changed = out_of_date()
    if arguments == ["--check"]:
        print("\n".join(changed) or "All dashboards are up to date.")
        return int(bool(changed))
    wanted = generated()
    for path in changed:
        target = HOME / path
        if path in wanted:
            target.parent.mkdir(exist_ok=True)
            target.write_text(wanted[path])
        else:
            target.unlink()
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
