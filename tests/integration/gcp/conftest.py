"""A Compute API on loopback for each test, and two ways to use it: the module's logic, and the playbooks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from lab.compute_api import Cloud, Server  # noqa: E402

PROXY_NAMES = ("https_proxy", "http_proxy", "HTTP_PROXY", "no_proxy", "NO_PROXY", "GOOGLE_APPLICATION_CREDENTIALS")


@pytest.fixture
def cloud():
    return Cloud()


@pytest.fixture
def server(cloud, tmp_path, monkeypatch):
    for name in PROXY_NAMES:
        monkeypatch.delenv(name, raising=False)
    with Server(tmp_path, cloud) as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running


def declaration():
    """Return the declaration of inventories/gcp without templates, with a project and ranges."""
    text = (ROOT / "inventories/gcp/group_vars/all/gcp.yml").read_text(encoding="utf-8")
    given = yaml.safe_load(text)
    ranges = ["198.51.100.0/24"]
    rules = [{**one, "source_ranges": ranges, "state": "present"} for one in given["gcp_firewall_rules"][:2]]
    defaults = given["gcp_machine_defaults"]
    machine = {"subnetwork": None, **defaults, **given["gcp_machines"][0], "metadata": {}}
    machine["disk"] = {"auto_delete": True, "labels": None, **machine["disk"]}
    return {
        "state": "present",
        "project": "lab-project",
        "service_account_file": None,
        "fleet": "llm-server",
        "dns_zone": "",
        "adopt": [],
        "delete_undeclared": [],
        "egress": "nat",
        "snapshot_before": False,
        "keep_boot_disk": False,
        "release_addresses": False,
        "delete_disks": [],
        "limit": "",
        "limit_hosts": [],
        "accelerators": yaml.safe_load((ROOT / "data/gcp/accelerators.yml").read_text(encoding="utf-8"))[
            "gcp_accelerators"
        ],
        "rules": rules,
        "open_to_world": False,
        "open_to_world_ports": [8000],
        "machines": [machine],
        "names": [],
        "prices": yaml.safe_load((ROOT / "data/gcp/prices.yml").read_text(encoding="utf-8"))["gcp_prices"],
        "unfit_images": yaml.safe_load((ROOT / "data/gcp/images.yml").read_text(encoding="utf-8"))["gcp_unfit_images"],
        "tries": 4,
        "retry_pause": 0.01,
        "operation_timeout": 5,
    }


@pytest.fixture
def options():
    return declaration()


@pytest.fixture
def machine(options):
    return options["machines"][0]


@pytest.fixture
def playbook(server, tmp_path):
    """Run playbooks of the repository with inventories/gcp; only environment variables give the API's address."""
    variables = {
        "gcp_project": "lab-project",
        "gcp_source_ranges": ["198.51.100.0/24"],
        "gcp_api_retry_pause": 0.01,
        "gcp_ssh_timeout": 5,
        "gcp_ssh_port": 1,
        # The services are not validated here, since their secrets are not available; see test_services.py.
        "gcp_validate_services": False,
    }

    def run(*names, check=False, limit=None, **extra):
        # Variables that a user would set in group_vars are passed as one file; the environment has nothing else.
        given = tmp_path / "given.yml"
        given.write_text(yaml.safe_dump({**variables, **extra}), encoding="utf-8")
        command = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "inventories/gcp", "-e", f"@{given}"]
        command += ["--limit", limit] if limit else []
        command += (
            ["--check"] * check + ["--diff"] + [str(Path("playbooks", name).with_suffix(".yml")) for name in names]
        )
        environment = {**os.environ, "ANSIBLE_NOCOLOR": "1", "PYTHONUNBUFFERED": "1"}
        run.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        stdout, stderr = run.process.communicate()
        done = subprocess.CompletedProcess(command, run.process.returncode, stdout, stderr)
        # Ansible may wrap sentences.
        done.said = " ".join(done.stdout.split())
        return done

    return run
