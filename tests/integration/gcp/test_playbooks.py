"""The playbooks with the real inventory, as a user runs them; only the environment says where the API is."""

import json
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lab.compute_api import Cloud

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def ssh_port():
    """Something that greets like an SSH server; its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def greet():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connection.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")
            connection.close()

    threading.Thread(target=greet, daemon=True).start()
    yield listener.getsockname()[1]
    listener.close()


@pytest.fixture
def cloud():
    return Cloud(address="127.0.0.1")


def recap(run):
    found = re.search(r"localhost\s+: ok=(\d+)\s+changed=(\d+).*failed=(\d+)", run.stdout)
    assert found, run.stdout + run.stderr
    return {"changed": int(found[2]), "failed": int(found[3])}


def inventory():
    command = [str(Path(sys.executable).with_name("ansible-inventory")), "-i", "inventories/gcp", "--list"]
    given = {"gcp_project": "lab-project", "gcp_source_ranges": ["198.51.100.0/24"]}
    done = subprocess.run(
        [*command, "-e", json.dumps(given)], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # What came from outside is marked so that it is never taken for a template; here only the value counts.
    return json.loads(done.stdout, object_hook=lambda one: one.get("__ansible_unsafe", one))


def test_the_whole_life_of_a_machine(cloud, playbook, ssh_port):
    shown = playbook("provision", check=True)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "+zone: asia-northeast3-a" in shown.stdout
    assert "+- tcp:8000-8001" in shown.stdout
    assert cloud.writes() == []

    first = playbook("provision", gcp_ssh_port=ssh_port)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "llm-server in asia-northeast3-a is RUNNING at 127.0.0.1 (internal 10.178.0." in first.said
    assert "costs about 0.97 USD an hour" in first.said
    hosts = inventory()
    host = hosts["_meta"]["hostvars"]["llm-server"]
    for group in ("ai_server", "monitoring", "vllm", "gpu", "swap", "tag_ai_server", "label_gpu_true"):
        assert hosts[group]["hosts"] == ["llm-server"], group
    assert host["ansible_host"] == "127.0.0.1"
    assert host["gcp_open_ports"] == [8000, 8001, 9100, 9400]

    second = playbook("provision", gcp_ssh_port=ssh_port)
    assert recap(second) == {"changed": 0, "failed": 0}

    cloud.firewalls["allow-ai-server-ports"]["allowed"][0]["ports"].append("22")
    drift = playbook("provision", check=True)
    assert recap(drift)["changed"] == 1
    assert re.findall(r"^[-+](?!--|\+\+).*", drift.stdout, re.M) == ["-- tcp:22"]

    stopped = playbook("stop")
    assert "llm-server in asia-northeast3-a is TERMINATED" in stopped.said
    assert "vllm" not in inventory()
    started = playbook("start", gcp_ssh_port=ssh_port)
    assert "llm-server in asia-northeast3-a is RUNNING at 127.0.0.1" in started.said

    kept = playbook("decommission")
    assert kept.returncode != 0
    assert "gcp_decommission is empty" in kept.said
    assert cloud.instances
    gone = playbook("decommission", gcp_decommission="llm-server")
    assert gone.returncode == 0, gone.stdout
    assert (cloud.instances, cloud.firewalls, cloud.disks) == ({}, {}, {})
    assert recap(playbook("decommission", gcp_decommission="llm-server")) == {"changed": 0, "failed": 0}


NEXT_PLAY = """
- name: What site.yml would see
  hosts: vllm:monitoring
  gather_facts: false
  tasks:
    - name: Show where services are bound
      ansible.builtin.debug:
        msg: "{{ vllm_host }} {{ node_exporter_listen_address }} {{ ai_server_vllm_base_url }} end"
"""


# As text: what "-e gcp_source_ranges=198.51.100.0/24" hands on, which the module takes as well.
@pytest.mark.parametrize("ranges", [["198.51.100.0/24"], "198.51.100.0/24"], ids=["list", "text"])
def test_plays_that_follow_find_the_machine_and_its_bindings(cloud, playbook, ssh_port, tmp_path, ranges):
    following = tmp_path / "following"
    following.with_suffix(".yml").write_text(NEXT_PLAY, encoding="utf-8")
    given = {"gcp_ssh_port": ssh_port, "gcp_monitoring_rule": False, "gcp_source_ranges": ranges}
    done = playbook("provision", following, **given)
    internal = cloud.instance("llm-server")["networkInterfaces"][0]["networkIP"]
    assert f"{internal} 127.0.0.1 http://{internal}:8001/v1 end" in done.said, done.stdout + done.stderr


def test_nothing_is_made_when_something_is_wrong(cloud, playbook):
    cloud.quotas["SSD_TOTAL_GB"] = 100
    done = playbook("provision", gcp_source_ranges=[])
    assert done.returncode != 0
    assert "set gcp_source_ranges to the networks" in done.said
    assert "quota SSD_TOTAL_GB is 100" in done.said
    assert cloud.writes() == []


def test_ssh_that_does_not_answer_is_told_with_the_address(playbook):
    done = playbook("provision", gcp_ssh_port=1, gcp_ssh_timeout=1)
    assert done.returncode != 0
    assert "llm-server does not answer SSH at 127.0.0.1:1" in done.said


def test_an_inventory_that_the_api_refuses_stops_the_run(cloud, playbook):
    cloud.fail("compute.instances.aggregatedList", status=403, reason="forbidden", message="No list for you", times=9)
    done = playbook("stop")
    assert done.returncode != 0
    assert "No list for you" in " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"gcp_project": "no-such"}, "Project 'no-such' does not exist or is not yours: set gcp_project to its ID"),
        ({"gcp_machines": None}, "gcp_machines is not set: write it into group_vars/all"),
        ({"gcp_machines": ["llm-server"]}, "cannot be used: Elements value for option 'gcp_machines'"),
        ({"gcp_api_tries": "many"}, "cannot be used: argument 'gcp_api_tries'"),
        ({"gcp_open_to_world": "perhaps"}, "cannot be used: argument 'gcp_open_to_world'"),
        ({"gcp_firewall_rules": [{"name": "a", "ports": ["x"], "target_tags": ["b"]}]}, "option 'ports' found in"),
    ],
)
def test_what_the_inventory_cannot_use_is_told_with_its_variable(playbook, given, said):
    done = playbook("stop", **given)
    assert done.returncode != 0
    assert said in " ".join(done.stderr.split())
