"""What DCGM reports about itself, and the matching exporter. Plain Python."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

from ..install import system_packages

PATIENCE = 5.0  # s; dcgmi gives the engine 100 ms, and on a busy host it can miss one such window
PAUSE = 0.2


def parse_versions(text: str) -> dict[str, str | None]:
    """Parse the output of ``dcgmi -v``: ``client`` of the installed library, ``engine`` of the running host engine.

    Source: NVIDIA/DCGM dcgmi/Version.cpp; the engine's part is below "Hostengine build info:".
    """
    client, _, engine = text.partition("Hostengine build info:")
    return {"client": _version(client), "engine": _version(engine)}


def _version(text: str) -> str | None:
    found = re.search(r"^\s*Version\s*:\s*(\d+\.\d+[\w.]*)", text, re.MULTILINE)
    return found.group(1) if found else None


def ask(dcgmi: str = "dcgmi", within: float = 60) -> dict[str, str | None]:
    """Return `parse_versions` of this machine; both None if DCGM is not installed, ``engine`` None if none answers.

    If dcgmi does not end within ``within`` seconds, ``trouble`` is a sentence that says so.
    """
    try:
        done = subprocess.run(
            [dcgmi, "-v"], capture_output=True, text=True, errors="replace", timeout=within, check=False
        )
    except FileNotFoundError:
        return {"client": None, "engine": None}
    except subprocess.TimeoutExpired:
        return {"client": None, "engine": None, "trouble": f"dcgmi -v did not end within {within:.0f} s"}
    return parse_versions(done.stdout)


def ask_patiently(dcgmi: str = "dcgmi", patience: float = PATIENCE) -> dict[str, str | None]:
    """Return the result of `ask`, repeated for up to ``patience`` seconds while the engine does not answer."""
    deadline = time.monotonic() + patience
    while (told := ask(dcgmi, max(deadline - time.monotonic(), 1)))["engine"] is None and time.monotonic() < deadline:
        time.sleep(PAUSE)
    return told


def promised(notes: Path = system_packages.NOTES) -> str:
    """Return the major version that a role's record asks for, empty if none does: a run installs it in any case.

    NVIDIA's package without a number in its name is 3.x; those of 4.x have one.
    """
    wanted = {name for note in notes.glob("*.json") for name in json.loads(note.read_text()).get("wanted", [])}
    return "3" if "datacenter-gpu-manager" in wanted else ""


def upstream(version: str) -> str:
    """Return the program's version inside the package version ``epoch:upstream-revision``."""
    return version.rpartition(":")[2].partition("-")[0]


def start_reason(live: dict[str, str], told: dict[str, str | None], version: str) -> str | None:
    """Return why the engine's unit has to be restarted, or None.

    ``live`` is `systemd_unit.show` of the unit, ``told`` is `parse_versions`, ``version`` the package's.
    """
    if live.get("ActiveState") != "active":
        return f"it was not running ({live.get('ActiveState', 'unknown')}, {live.get('SubState', 'unknown')})"
    if told["engine"] is None:
        return told.get("trouble") or "it did not answer"
    if told["engine"] != upstream(version):
        return f"the running engine was {told['engine']}, {upstream(version)} is installed"
    return None
