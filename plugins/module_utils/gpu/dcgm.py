"""What DCGM says of itself, and the exporter that fits it. Plain Python."""

from __future__ import annotations

import json
import re
import subprocess
import time
from pathlib import Path

from ..install import system_packages

PATIENCE = 5.0  # s; dcgmi gives the engine 100 ms, and on a busy host one such window is missed
PAUSE = 0.2


def parse_versions(text: str) -> dict[str, str | None]:
    """Read the output of ``dcgmi -v``: ``client`` of the installed library, ``engine`` of the running host engine.

    Source: NVIDIA/DCGM dcgmi/Version.cpp; the engine's part stands below "Hostengine build info:".
    """
    client, _, engine = text.partition("Hostengine build info:")
    return {"client": _version(client), "engine": _version(engine)}


def _version(text: str) -> str | None:
    found = re.search(r"^\s*Version\s*:\s*(\d+\.\d+[\w.]*)", text, re.MULTILINE)
    return found.group(1) if found else None


def ask(dcgmi: str = "dcgmi", within: float = 60) -> dict[str, str | None]:
    """Return `parse_versions` of this machine; both None where DCGM is not installed, no engine where none answers.

    Where dcgmi does not end within so many seconds, ``trouble`` is the sentence that says so.
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
    """Return what `ask` does, asked again for ``patience`` seconds while the engine is silent."""
    deadline = time.monotonic() + patience
    while (told := ask(dcgmi, max(deadline - time.monotonic(), 1)))["engine"] is None and time.monotonic() < deadline:
        time.sleep(PAUSE)
    return told


def promised(notes: Path = system_packages.NOTES) -> str:
    """Return the major that a role's note asks for, empty where none does: what a run brings, whatever is there now.

    NVIDIA's package without a number in its name is 3.x; those of 4.x have one.
    """
    wanted = {name for note in notes.glob("*.json") for name in json.loads(note.read_text()).get("wanted", [])}
    return "3" if "datacenter-gpu-manager" in wanted else ""


def upstream(version: str) -> str:
    """Return the program's version inside the package version ``epoch:upstream-revision``."""
    return version.rpartition(":")[2].partition("-")[0]


def start_reason(live: dict[str, str], told: dict[str, str | None], version: str) -> str | None:
    """Say why the engine's unit has to be started anew, or return None.

    ``live`` is `systemd_unit.show` of the unit, ``told`` is `parse_versions`, ``version`` the package's.
    """
    if live.get("ActiveState") != "active":
        return f"it was not running ({live.get('ActiveState', 'unknown')}, {live.get('SubState', 'unknown')})"
    if told["engine"] is None:
        return told.get("trouble") or "it did not answer"
    if told["engine"] != upstream(version):
        return f"the running engine was {told['engine']}, {upstream(version)} is installed"
    return None
