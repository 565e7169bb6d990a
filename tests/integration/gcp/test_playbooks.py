"""The playbooks with the real inventory, as a user runs them; only environment variables give the API's address."""

import copy
import json
import os
import re
import signal
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
    """Return the port of a server that sends the greeting of an SSH server."""
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


def inventory(*words, **more):
    command = [str(Path(sys.executable).with_name("ansible-inventory")), "-i", "inventories/gcp", "--list", *words]
    given = {"gcp_project": "lab-project", "gcp_source_ranges": ["198.51.100.0/24"], **more}
    done = subprocess.run(
        [*command, "-e", json.dumps(given)], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # Ansible marks external values as unsafe, so that they are never templated; only the value matters here.
    return json.loads(done.stdout, object_hook=lambda one: one.get("__ansible_unsafe", one))


def test_the_life_cycle_of_a_machine(cloud, playbook, ssh_port):
    shown = playbook("gcp_provision", check=True)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert "+zone: asia-northeast3-a" in shown.stdout
    assert "+- tcp:8000-8001" in shown.stdout
    assert cloud.writes() == []

    first = playbook("gcp_provision", gcp_ssh_port=ssh_port)
    assert first.returncode == 0, first.stdout + first.stderr
    assert "llm-server in asia-northeast3-a is RUNNING at 127.0.0.1 (internal 10.178.0." in first.said
    assert "costs about 0.97 USD an hour" in first.said
    hosts = inventory()
    host = hosts["_meta"]["hostvars"]["llm-server"]
    for group in ("ai_server", "monitoring", "vllm", "gpu", "swap", "host_tuning", "tag_ai_server", "label_gpu_true"):
        assert hosts[group]["hosts"] == ["llm-server"], group
    assert host["ansible_host"] == "127.0.0.1"
    assert host["gcp_open_ports"] == [8000, 8001, 9100, 9400]

    second = playbook("gcp_provision", gcp_ssh_port=ssh_port)
    assert recap(second) == {"changed": 0, "failed": 0}

    cloud.firewalls["allow-ai-server-ports"]["allowed"][0]["ports"].append("22")
    drift = playbook("gcp_provision", check=True)
    assert recap(drift)["changed"] == 1
    assert re.findall(r"^[-+](?!--|\+\+).*", drift.stdout, re.M) == ["-- tcp:22"]

    stopped = playbook("gcp_stop")
    assert "llm-server in asia-northeast3-a is TERMINATED" in stopped.said
    assert "vllm" not in inventory()
    started = playbook("gcp_start", gcp_ssh_port=ssh_port)
    assert "llm-server in asia-northeast3-a is RUNNING at 127.0.0.1" in started.said

    kept = playbook("gcp_decommission")
    assert kept.returncode != 0
    assert "gcp_decommission is empty" in kept.said
    assert cloud.instances
    removed = playbook("gcp_decommission", gcp_decommission="llm-server")
    assert removed.returncode == 0, removed.stdout
    assert (cloud.instances, cloud.firewalls, cloud.disks) == ({}, {}, {})
    assert recap(playbook("gcp_decommission", gcp_decommission="llm-server")) == {"changed": 0, "failed": 0}


def test_decommission_names_every_disk_before_it_deletes(cloud, playbook, ssh_port):
    playbook("gcp_provision", gcp_ssh_port=ssh_port)
    removed = playbook("gcp_decommission", gcp_decommission="llm-server", gcp_keep_boot_disk=True)
    before, after = removed.said.split("TASK [Delete the machines")
    assert "llm-server: boot disk llm-server (200 GB) in asia-northeast3-a would stay and costs." in before
    assert "stays and costs" in after
    assert (cloud.instances, list(cloud.disks)) == ({}, [("asia-northeast3-a", "llm-server")])


def test_undeclared_resources_are_reported_and_deleted_by_name(cloud, playbook, ssh_port):
    two = [{"name": name, "zones": ["asia-northeast3-a"]} for name in ("llm-1", "llm-2")]
    assert playbook("gcp_provision", gcp_ssh_port=ssh_port, gcp_machines=two).returncode == 0
    one = {"gcp_ssh_port": ssh_port, "gcp_machines": two[:1]}
    shown = playbook("gcp_provision", check=True, **one)
    assert (
        "Made here, no longer declared, and open or paid for: machine llm-2 in asia-northeast3-a (RUNNING)"
        in shown.said
    )
    done = playbook("gcp_provision", **one, gcp_delete_undeclared="llm-2")
    assert done.returncode == 0, done.stdout
    assert list(cloud.instances) == list(cloud.disks) == [("asia-northeast3-a", "llm-1")]


def test_limit_restricts_the_machines(cloud, playbook, ssh_port):
    two = [{"name": name, "zones": ["asia-northeast3-a"]} for name in ("llm-1", "llm-2")]
    given = {"gcp_ssh_port": ssh_port, "gcp_machines": two}
    assert playbook("gcp_provision", **given).returncode == 0
    for name in ("llm-1", "llm-2"):
        cloud.instance(name)["labels"] = {}
    done = playbook("gcp_provision", limit="llm-2", **given)
    assert done.returncode == 0, done.stdout
    assert cloud.instance("llm-2")["labels"] == {"vllm": "true", "gpu": "true", "swap": "true"}
    assert cloud.instance("llm-1")["labels"] == {}
    assert playbook("gcp_stop", limit="llm-1", **given).returncode == 0
    assert [cloud.instance(name)["status"] for name in ("llm-1", "llm-2")] == ["TERMINATED", "RUNNING"]
    cloud.requests.clear()
    unknown = playbook("gcp_provision", limit="llm-9", **given)
    assert unknown.returncode != 0
    assert cloud.writes() == []


def test_the_inventory_knows_no_stranger(cloud, playbook, ssh_port):
    playbook("gcp_provision", gcp_ssh_port=ssh_port)
    stranger = copy.deepcopy(cloud.instance("llm-server"))
    cloud.instances["us-central1-a", "llm-server"] = {**stranger, "description": "mine"}
    cloud.instances["asia-northeast3-b", "llm-server"] = {**stranger, "id": "7"}
    hosts = inventory()["_meta"]["hostvars"]
    assert hosts["llm-server"]["gcp_zone"] == "asia-northeast3-a"
    cloud.instance("llm-server")["description"] = "mine"
    assert inventory()["_meta"]["hostvars"].get("llm-server") is None
    assert inventory(gcp_adopt=["llm-server"])["_meta"]["hostvars"]["llm-server"]["gcp_zone"] == "asia-northeast3-a"


def test_the_inventory_says_what_does_not_run_and_where_it_would_be(cloud, playbook, ssh_port):
    (absent,) = inventory("--export")["all"]["vars"]["gcp_not_running"]
    assert (absent["name"], absent["status"], absent["open_ports"]) == (
        "llm-server",
        "absent",
        [8000, 8001, 9100, 9400],
    )
    playbook("gcp_provision", gcp_ssh_port=ssh_port)
    running = inventory("--export")
    assert running["all"]["vars"]["gcp_not_running"] == []
    groups = {name for name in absent["groups"] if "llm-server" in running[name]["hosts"]}
    assert groups == set(absent["groups"]) == {
        "ai_server", "monitoring", "vllm", "gpu", "swap", "watch", "watchdog", "housekeeping", "host_tuning", "backup",
    }  # fmt: skip
    cloud.unreachable = {"asia-northeast3-a"}
    done = playbook("gcp_stop")
    assert done.returncode != 0
    assert "UNREACHABLE" in done.stderr


def test_site_is_red_where_a_declared_machine_does_not_run(cloud, playbook, ssh_port):
    playbook("gcp_provision", gcp_ssh_port=ssh_port)
    playbook("gcp_stop")
    done = playbook("../site")
    assert done.returncode != 0
    assert "llm-server is TERMINATED: declared in gcp_machines and not running" in done.said
    assert "Run playbooks/gcp_start.yml" in done.said


GCLOUD = """#!/bin/sh
# In the place of gcloud: tells how it was called, and then that nobody is there.
echo "$@" >> {log}
exit 1
"""


def test_ssh_through_iap_goes_by_gcloud_and_the_rule_for_it_is_made(cloud, playbook, tmp_path, monkeypatch):
    program, log = tmp_path / "bin/gcloud", tmp_path / "calls"
    program.parent.mkdir()
    program.write_text(GCLOUD.format(log=log))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    done = playbook("gcp_provision", gcp_ssh_through_iap=True, gcp_ssh_port=22, gcp_ssh_timeout=1)
    assert done.returncode != 0
    assert "Wait until SSH answers through IAP" in done.stdout
    called = "compute start-iap-tunnel llm-server 22 --listen-on-stdin --project=lab-project --zone=asia-northeast3-a"
    assert called in log.read_text()
    rule = cloud.firewalls["allow-iap-ssh"]
    assert (rule["sourceRanges"], rule["allowed"]) == (["35.235.240.0/20"], [{"IPProtocol": "tcp", "ports": ["22"]}])


def test_a_broken_answer_is_one_sentence(cloud, playbook):
    cloud.fail("compute.projects.get", answer={"quotas": [{"limit": 1}]})
    done = playbook("gcp_provision")
    assert done.returncode != 0
    assert "The Compute API: the answer is not what the Compute API says" in done.said
    assert "Traceback" not in done.stdout + done.stderr
    assert cloud.writes() == []


@pytest.mark.parametrize("name", ["provision", "stop", "start", "decommission"])
def test_a_playbook_that_is_killed_at_a_request_is_finished_by_the_next(cloud, playbook, ssh_port, name):
    given = {"gcp_ssh_port": ssh_port, "gcp_decommission": "llm-server"}
    if name != "provision":
        assert playbook("gcp_provision", **given).returncode == 0
    if name == "start":
        assert playbook("gcp_stop", **given).returncode == 0
    wanted = {"provision": "POST /instances", "stop": "/stop", "start": "/start", "decommission": "DELETE /instances"}
    verb, _, path = wanted[name].rpartition(" ")
    original, cut = cloud.answer, []

    def answer(*words):
        result = original(*words)
        if words[0] == (verb or "POST") and path in f"/{words[1]}" and not cut:
            cut.append(words[1])
            os.killpg(playbook.process.pid, signal.SIGKILL)
        return result

    cloud.answer = answer
    assert playbook(f"gcp_{name}", **given).returncode == -signal.SIGKILL
    assert cut
    done = playbook(f"gcp_{name}", **given)
    assert done.returncode == 0, done.stdout
    assert recap(playbook(f"gcp_{name}", **given)) == {"changed": 0, "failed": 0}
    left = {"provision": ["RUNNING"], "stop": ["TERMINATED"], "start": ["RUNNING"], "decommission": []}
    assert [one["status"] for one in cloud.instances.values()] == left[name]
    assert len(cloud.firewalls) == len(left[name]) * 2


NEXT_PLAY = """
- name: What site.yml would see
  hosts: vllm:monitoring
  gather_facts: false
  tasks:
    - name: Show where services are bound
      ansible.builtin.debug:
        msg: "{{ vllm_host }} {{ node_exporter_listen_address }} {{ ai_server_vllm_base_url }} end"
"""


# Also as text: the result of "-e gcp_source_ranges=198.51.100.0/24", which the module accepts too.
@pytest.mark.parametrize("ranges", [["198.51.100.0/24"], "198.51.100.0/24"], ids=["list", "text"])
def test_plays_that_follow_find_the_machine_and_its_bindings(cloud, playbook, ssh_port, tmp_path, ranges):
    following = tmp_path / "following"
    following.with_suffix(".yml").write_text(NEXT_PLAY, encoding="utf-8")
    given = {"gcp_ssh_port": ssh_port, "gcp_monitoring_rule": False, "gcp_source_ranges": ranges}
    done = playbook("gcp_provision", following, **given)
    internal = cloud.instance("llm-server")["networkInterfaces"][0]["networkIP"]
    assert f"{internal} 127.0.0.1 http://{internal}:8001/v1 end" in done.said, done.stdout + done.stderr


def test_nothing_is_made_when_something_is_wrong(cloud, playbook):
    cloud.quotas["SSD_TOTAL_GB"] = 100
    done = playbook("gcp_provision", gcp_source_ranges=[])
    assert done.returncode != 0
    assert "set gcp_source_ranges to the networks" in done.said
    assert "quota SSD_TOTAL_GB is 100" in done.said
    assert cloud.writes() == []


def test_ssh_without_an_answer_is_reported_with_the_address(playbook):
    done = playbook("gcp_provision", gcp_ssh_port=1, gcp_ssh_timeout=1)
    assert done.returncode != 0
    assert "llm-server does not answer SSH at 127.0.0.1:1" in done.said


def test_an_inventory_that_the_api_refuses_stops_the_run(cloud, playbook):
    cloud.fail("compute.instances.aggregatedList", status=403, reason="forbidden", message="No list for you", times=9)
    done = playbook("gcp_stop")
    assert done.returncode != 0
    assert "No list for you" in " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"gcp_project": "no-such"}, "Project 'no-such' does not exist or is not yours: set gcp_project to its ID"),
        ({"gcp_machines": None}, "gcp_machines is not set: write it into group_vars/all"),
        ({"gcp_machines": ["llm-server"]}, "cannot be used: Elements value for option 'gcp_machines'"),
        ({"gcp_api_tries": "many"}, "cannot be used: argument 'gcp_api_tries'"),
        ({"gcp_open_to_world": "perhaps"}, "cannot be used: argument 'gcp_open_to_world'"),
        ({"gcp_firewall_rules": [{"name": "a", "ports": ["x"], "target_tags": ["b"]}]}, "option 'ports' found in"),
    ],
)
def test_an_unusable_setting_is_reported_with_its_variable(playbook, given, message):
    done = playbook("gcp_stop", **given)
    assert done.returncode != 0
    assert message in " ".join(done.stderr.split())
