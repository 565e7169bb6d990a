"""The services machine: what a company's network would provide for a server, on a separate machine.

Stand-ins of Loki and Slack take logs and messages; a web server mirrors releases and wheels and serves the stand-in of
the model hub.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path
from typing import Any

from lab import builds, host, hub, machine
from lab.host import Problem

NAME = "services"
LOKI_PORT = 3100
GUARDED_PORT = 3101
SLACK_PORT = 3200
# The callers that the guarded Loki accepts.
USER, PASSWORD, TOKEN, TENANT = "shipper", "laboratory=pass%word", "laboratory-token", "team-a"
CALLERS = [
    {"authorization": f"Basic {b64encode(f'{USER}:{PASSWORD}'.encode()).decode()}", "tenant": TENANT, "queries": True},
    {"authorization": f"Bearer {TOKEN}", "tenant": TENANT, "queries": False},
]
READY_TIMEOUT = 60

UNITS = {
    "loki.service": """
[Unit]
Description=Stand-in of Loki
[Service]
DynamicUser=yes
StateDirectory=loki
ExecStart=/usr/bin/python3 /opt/lab/loki.py /var/lib/loki 3100
Restart=always
[Install]
WantedBy=multi-user.target
""",
    "loki-guarded.service": """
[Unit]
Description=Stand-in of Loki that asks for credentials
[Service]
DynamicUser=yes
StateDirectory=loki-guarded
ExecStart=/usr/bin/python3 /opt/lab/loki.py /var/lib/loki-guarded 3101 /opt/lab/callers.json
Restart=always
[Install]
WantedBy=multi-user.target
""",
    "slack.service": """
[Unit]
Description=Stand-in of Slack
[Service]
DynamicUser=yes
ExecStart=/usr/bin/python3 /opt/lab/slack.py 3200
Restart=always
[Install]
WantedBy=multi-user.target
""",
    "mirror.service": """
[Unit]
Description=Mirror of releases and stand-in of the model hub
[Service]
DynamicUser=yes
LogsDirectory=mirror
AmbientCapabilities=CAP_NET_BIND_SERVICE
ExecStart=/usr/bin/python3 /opt/lab/mirror.py /srv/mirror 80 /var/log/mirror/access.jsonl
Restart=always
[Install]
WantedBy=multi-user.target
""",
}


def up() -> dict[str, Any]:
    """Create what the services need, boot their machine, and return their addresses (see describe)."""
    machine.ready_host()
    builds.ensure([])
    hub.publish()
    hub.vllm_wheel()
    hub.light_wheels()
    # Several scenarios of one clone may start the services at the same time.
    with host.lock(machine.container(NAME)):
        machine.up(NAME, mounts=[f"{builds.MIRROR}:/srv/mirror:ro"])
        with tempfile.TemporaryDirectory(prefix="lab-") as folder:
            install(Path(folder))
        with host.step("Waiting for the services", "3 s"):
            wait_until_ready()
    return describe()


def install(folder: Path) -> None:
    """Copy programs and units to the machine, and restart those that changed."""
    for program in ("mirror.py", "stand_ins/loki.py", "stand_ins/slack.py"):
        shutil.copy(Path(__file__).parent / program, folder)
    for name, text in UNITS.items():
        (folder / name).write_text(text)
    (folder / "callers.json").write_text(json.dumps(CALLERS))
    every = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(folder.iterdir()))).hexdigest()
    (folder / "digest").write_text(every)
    box = machine.container(NAME)
    there = subprocess.run(["podman", "exec", box, "cat", "/opt/lab/digest"], capture_output=True, text=True)
    if there.stdout == every:
        return
    folder.chmod(0o755)
    host.run(["podman", "exec", box, "mkdir", "-p", "/opt/lab"])
    host.run(["podman", "cp", f"{folder}/.", f"{box}:/opt/lab"])
    host.run(["podman", "exec", box, "cp", *(f"/opt/lab/{name}" for name in UNITS), "/etc/systemd/system"])
    host.run(["podman", "exec", box, "systemctl", "daemon-reload"])
    host.run(["podman", "exec", box, "systemctl", "enable", *UNITS])
    host.run(["podman", "exec", box, "systemctl", "restart", *UNITS])


def wait_until_ready() -> None:
    """Wait until Loki is ready and the mirror answers; raise Problem that names the one that does not."""
    state = describe()
    deadline = time.monotonic() + READY_TIMEOUT
    pages = {
        "mirror": f"{state['mirror']}/requests",
        "loki": f"{state['loki']}/ready",
        "loki-guarded": f"{state['guarded_loki']['url']}/ready",
        "slack": f"{state['slack']}/messages",
    }
    for unit, url in pages.items():
        while (reason := refusal(url)) is not None:
            if time.monotonic() > deadline:
                box = machine.container(NAME)
                raise Problem(f"{url} does not answer ({reason}); see `podman exec {box} journalctl -u {unit}`.")
            time.sleep(0.3)


def refusal(url: str) -> str | None:
    """Return why a URL does not answer with success, None if it does."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return None
    except (urllib.error.URLError, OSError) as error:
        return str(error)


def describe() -> dict[str, Any]:
    """Return addresses of mirror (its paths: lab/mirror.py), hub, Loki, machine; also programs and newest versions."""
    there = machine.describe(NAME)
    address = there["address"]

    def reference(name: str, wheel: Path) -> str:
        return f"{name} @ http://{address}/wheels/{wheel.name}#sha256={builds.sha256(wheel)}"

    return {
        "mirror": f"http://{address}",
        "vllm_wheel": reference("vllm", hub.vllm_wheel()),
        "light_engine": {version: reference("vllm-light", path) for version, path in hub.light_wheels().items()},
        "hub": f"http://{address}/hub",
        "repositories": hub.publish(),
        "loki": f"http://{address}:{LOKI_PORT}",
        "slack": f"http://{address}:{SLACK_PORT}",
        "guarded_loki": {
            "url": f"http://{address}:{GUARDED_PORT}",
            "user": USER,
            "password": PASSWORD,
            "token": TOKEN,  # may push and not query
            "tenant": TENANT,
        },
        "machine": there,
        "programs": builds.listing(),
        "versions": builds.newest(),
    }


def down() -> None:
    """Remove the services machine."""
    machine.down(NAME)
