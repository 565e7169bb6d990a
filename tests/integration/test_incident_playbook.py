"""incident.yml when no machine answers: what it refuses and keeps, and that it still sends a notice."""

from __future__ import annotations

import http.server
import json
import tarfile
import threading
from pathlib import Path

import pytest

from lab import playbook
from lab.playbook import Outcome

ROOT = Path(__file__).resolve().parents[2]
DEAD = {"ansible_host": "127.0.0.1", "ansible_port": 1, "ansible_ssh_retries": 0, "vllm_api_key": "canary-key"}


@pytest.fixture
def incident(tmp_path):
    """Run the playbook on a host that does not answer, with other variables."""
    inventory = tmp_path / "hosts.json"
    groups = {group: {"hosts": {"dead": {}}} for group in ("vllm", "ai_server")}
    inventory.write_text(json.dumps({"all": {"hosts": {"dead": DEAD}, "children": groups}}))

    def run(**variables) -> Outcome:
        given = {"incident_directory": str(tmp_path / "kept"), **variables}
        return playbook.run(playbook.command(inventory, "playbooks/incident.yml", given), ROOT)

    return run


@pytest.fixture
def receiver(monkeypatch):
    """A webhook receiver on loopback; ``got`` has the messages."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            self.server.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.got = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"step": "restart"}, "step is restart; give one of look, recover, escalate, such as -e step=look."),
        (
            {"step": "escalate"},
            "incident_webhook_url is missing; set it in the vault to the address of an incoming webhook",
        ),
    ],
)
def test_missing_variables_are_named(incident, variables, message):
    outcome = incident(**variables)
    assert outcome.code != 0 and message in outcome.message


def test_an_unreachable_host_is_reported_recorded_and_drained(incident, receiver, tmp_path):
    file, note = tmp_path / "webhook", tmp_path / "rotation"
    file.write_text(f"http://127.0.0.1:{receiver.server_port}/canary-hook\n")
    take_out = ["/bin/sh", "-c", f"echo out >> {note}"]
    outcome = incident(step="escalate", incident_webhook_file=str(file), rotation_drain_command=take_out)
    assert outcome.code == 0, outcome.message
    (text,) = receiver.got
    assert "host: it cannot be looked at" in text
    assert note.read_text() == "out\n"
    assert "nothing could be noted on the host" in outcome.text
    (path,) = (tmp_path / "kept").glob("dead-*.tar.gz")
    with tarfile.open(path) as kept:
        (summary,) = (kept.extractfile(entry).read().decode() for entry in kept)
    assert summary.startswith("Incident on dead\n\nNOT OK  host: it cannot be looked at")
    assert "canary" not in summary + text + outcome.text


def test_what_a_role_marks_as_secret_is_in_no_archive(incident, tmp_path):
    outcome = incident(step="look", backup_credentials={"PASSWORD": "port 1: Connection refused"})
    assert "host: it cannot be looked at" in outcome.text and "********" in outcome.text
    (path,) = (tmp_path / "kept").glob("dead-*.tar.gz")
    with tarfile.open(path) as kept:
        told = outcome.text + "".join(kept.extractfile(entry).read().decode() for entry in kept)
    assert "Connection refused" not in told


def test_a_receiver_that_is_not_there_is_an_error_without_its_address(incident):
    outcome = incident(step="escalate", incident_webhook_url="http://127.0.0.1:1/canary-hook")
    assert outcome.code != 0
    assert "receiver: the receiver cannot be reached" in outcome.message
    assert "canary" not in outcome.text
