"""incident.yml, with services that hang, stop and print their secrets."""

from __future__ import annotations

import http.server
import json
import os
import tarfile
import threading
import time
from pathlib import Path

import pytest

INCIDENT = "../../playbooks/incident.yml"
CANARY = "canary"
FULL = os.environ.get("FULL") == "1"
STORE = "/var/lib/llm-server/services"
SPEND = (
    "/usr/bin/python3 -I /usr/local/lib/llm-watchdog/watchdog.py /etc/llm-watchdog/settings.json --spend vllm.service"
)
START = 3  # seconds: the services' start_timeout


@pytest.fixture(scope="module", autouse=True)
def services_there(converge):
    """Run stand-ins for the engine and the application. They stay: no other test uses their units and ports."""
    assert converge(playbook="services.yml").code == 0


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    return tmp_path_factory.mktemp("incidents")


@pytest.fixture(scope="module")
def incident(converge, archives):
    def run(step: str, **variables):
        outcome = converge({"step": step, "incident_directory": str(archives), **variables}, playbook=INCIDENT)
        assert CANARY not in outcome.text
        return outcome

    return run


@pytest.fixture(scope="module")
def receiver():
    """A webhook receiver on loopback; ``got`` has the messages."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.server.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"ok")

        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.got = []
    server.url = f"http://127.0.0.1:{server.server_port}/services/canary-hook"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def pids(host) -> dict[str, str]:
    return {
        name: host.check_output("systemctl show %s --property MainPID --value", name) for name in ("vllm", "ai-server")
    }


def hang(host) -> str:
    """Suspend the engine's process after its start; return its process ID."""
    time.sleep(START + 1)
    before = pids(host)["vllm"]
    host.check_output("kill -STOP %s", before)
    return before


def attempts(host) -> int:
    """Return how many restarts of the engine the watchdog counts, including those just taken from its budget."""
    noted = json.loads(host.file("/var/lib/llm-watchdog/state.json").content_string)["services"]["vllm.service"]
    return len(noted["attempts"]) + len(noted.get("spent", []))


def contents(path: Path) -> dict[str, str]:
    with tarfile.open(path) as archive:
        return {entry.name.partition("/")[2]: archive.extractfile(entry).read().decode() for entry in archive}


def test_look_keeps_everything_but_secrets(host, incident, archives):
    before, begun = pids(host), time.monotonic()
    outcome = incident("look")
    assert outcome.code == 0, outcome.message
    assert time.monotonic() - begun < 60
    assert not outcome.changed and pids(host) == before
    (path,) = archives.glob("*.tar.gz")
    assert path.stat().st_mode & 0o777 == 0o600
    files = contents(path)
    assert not [name for name, text in files.items() if CANARY in text]
    assert "Authorization: ********" in files["journals/vllm.txt"]
    assert "--api-key ********" in files["processes.txt"] and "--api-key ********" in files["units/vllm.txt"]
    assert 'told{key="hf_********"} 1' in files["metrics/vllm.txt"] or "********" in files["metrics/vllm.txt"]
    (log,) = (text for name, text in files.items() if name.startswith("logs/"))
    assert "hooks.slack.com/********" in log
    assert {"resources.txt", "gpu.txt", "kernel.txt", "watchdog.txt", "diagnosis.txt", "summary.txt"} <= set(files)


def test_recover_restarts_the_one_that_hangs_within_the_watchdogs_budget(host, incident):
    before, counted = {**pids(host), "vllm": hang(host)}, attempts(host)
    outcome = incident("recover")
    assert outcome.code == 0, outcome.message
    after = pids(host)
    assert after["vllm"] not in ("0", before["vllm"]) and after["ai-server"] == before["ai-server"]
    assert attempts(host) == counted + 1
    assert host.run("ls /var/lib/llm-watchdog/evidence").stdout.count("-vllm") >= 1
    again = incident("recover")
    assert again.code == 0 and not again.changed and pids(host) == after
    time.sleep(3)  # the watchdog has seen the new process, and does not count it as a person's restart
    assert attempts(host) == counted + 1


@pytest.mark.full
def test_recover_keeps_to_the_budget(host, incident):
    while json.loads(host.check_output(SPEND)).get("granted"):
        time.sleep(1)
    before = hang(host)
    host.check_output("systemctl stop ai-server.service")
    outcome = incident("recover")
    assert outcome.code != 0
    assert "vllm does not serve; run ansible-playbook playbooks/incident.yml -e step=escalate" in outcome.message
    assert "3 restarts did not help" in outcome.text
    assert pids(host)["vllm"] == before and pids(host)["ai-server"] != "0"
    # A person restarts it, which resets the budget; the first restart counts as the one that was taken but not done.
    for _ in range(2):
        host.check_output("systemctl restart vllm.service")
        time.sleep(3)
    assert attempts(host) == 0


@pytest.mark.full
def test_recover_rolls_back_a_release_that_never_served(host, converge, incident):
    assert converge({"services_release": "2"}, playbook="services.yml").code == 0
    note = f"{STORE}/vllm/state.json"
    state = json.loads(host.file(note).content_string)
    unproven = {**state, "verified": [name for name in state["verified"] if name != state["current"]]}
    host.check_output("echo %s > %s", json.dumps(unproven), note)
    host.check_output("touch /run/well-bad && systemctl kill --signal KILL vllm.service")
    outcome = incident("recover")
    assert outcome.code == 0, outcome.message
    assert "the newest release has never served" in outcome.text
    assert host.file("/etc/well-vllm/release").content_string == "1\n"
    again = incident("recover")
    assert again.code == 0 and not again.changed
    host.check_output("rm /run/well-bad")


def test_escalate_drains_the_host_and_notifies_the_receiver_once(host, incident, receiver, tmp_path):
    note = tmp_path / "rotation"
    out = ["/bin/sh", "-c", f"echo out >> {note}"]
    host.check_output("systemctl stop ai-server.service")
    for _ in range(2 if FULL else 1):
        outcome = incident("escalate", incident_webhook_url=receiver.url, rotation_drain_command=out)
        assert outcome.code == 0, outcome.message
    (text,) = receiver.got
    assert "Incident on machine" in text and "NOT OK  ai-server" in text and CANARY not in text
    assert note.read_text() == "out\n"
    assert json.loads(host.file(f"{STORE}/ai-server/state.json").content_string)["out"] is True
