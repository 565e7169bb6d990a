"""The distribution's Prometheus and a real Alertmanager accept and use the files of export_watch.yml."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent))

from test_alert_rules import free_port, prometheus_package, unpacked

from lab import builds, debian_package

ROOT = Path(__file__).resolve().parents[2]
PLAYBOOK = str(Path(sys.executable).with_name("ansible-playbook"))
PAGE = 'llm_watchdog_person_needed{unit="vllm.service"} 1\n'


class Exporter(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(PAGE.encode())

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def exporter():
    """Serve metrics on loopback in place of a host; yield the port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Exporter)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


@pytest.fixture(scope="module")
def amtool():
    """Yield the path of amtool; alertmanager is in the same folder."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        (program,) = unpacked("alertmanager", Path(folder)).glob("*/amtool")
        # Debian's alertmanager looks for its templates at the role's link; upstream's contains them and is not changed.
        server, place = program.with_name("alertmanager"), builds.PROGRAMS["alertmanager"].package
        linked = place.moved_to.ljust(len(f"/{place.data}"), "/")
        server.write_bytes(debian_package.moved(server.read_bytes(), linked, folder))
        for template in program.parent.glob("*.tmpl"):
            (Path(folder) / template.name).symlink_to(template)
        yield program


def export(folder: Path, inventory: Path, **variables) -> subprocess.CompletedProcess:
    given = json.dumps({"export_watch_directory": str(folder), **variables})
    command = [PLAYBOOK, "-i", str(inventory), str(ROOT / "playbooks/export_watch.yml"), "-e", given]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def exported(tmp_path_factory, exporter):
    """Return the folder of the export for two hosts, one with a running exporter, and an Alertmanager's port."""
    folder, port = tmp_path_factory.mktemp("export"), free_port()
    hosts = {
        "gpu1": {"node_exporter_port": exporter},
        "gpu2": {"node_exporter_port": free_port()},
    }
    for each in hosts.values():
        each |= {"ansible_host": "127.0.0.1", "node_exporter_listen_address": "0.0.0.0"}
    inventory = folder / "hosts.yml"
    inventory.write_text(yaml.safe_dump({"monitoring": {"hosts": hosts}}))
    own = {"export_watch_interval": "1s", "export_watch_alertmanagers": [f"127.0.0.1:{port}"]}
    own |= {"vmalert_limits": {"ttft_seconds": 3}, "vmalert_pages": "https://git.example.com"}
    done = export(folder, inventory, **own)
    assert done.returncode == 0, done.stdout + done.stderr
    return {"folder": folder, "inventory": inventory, "variables": own, "alertmanager": port}


def test_the_tools_accept_it(exported, amtool):
    for command in (
        [prometheus_package() / "usr/bin/promtool", "check", "config", "prometheus/prometheus.yml"],
        [amtool, "check-config", "alertmanager/alertmanager.yml"],
    ):
        done = subprocess.run(command, cwd=exported["folder"], capture_output=True, text=True)
        assert done.returncode == 0 and "SUCCESS" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    "labels, receiver",
    [
        (["alertname=ServiceDown", "severity=critical"], "now"),
        (["alertname=GpuHot", "severity=warning"], "today"),
        (["alertname=DeadMansSwitch", "severity=info"], "heartbeat"),
    ],
)
def test_an_alert_goes_to_its_receiver(exported, amtool, labels, receiver):
    config = exported["folder"] / "alertmanager/alertmanager.yml"
    command = [amtool, "config", "routes", "test", f"--config.file={config}", *labels]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == receiver


def test_limits_and_links_are_the_users(exported):
    rules = (exported["folder"] / "prometheus/rules.yml").read_text()
    known = {rule.get("record"): rule for group in yaml.safe_load(rules)["groups"] for rule in group["rules"]}
    assert known["llm_limit_ttft_seconds"]["expr"] == "vector(3)"
    assert rules.count("runbook: https://git.example.com/docs/operations/alerts/") > 50
    assert "runbook: docs/" not in rules


def test_a_second_run_changes_nothing_and_a_host_that_leaves_goes(exported, tmp_path):
    done = export(exported["folder"], exported["inventory"], **exported["variables"])
    assert "changed=0" in done.stdout, done.stdout
    one = tmp_path / "hosts.yml"
    one.write_text("monitoring: {hosts: {gpu1: {node_exporter_listen_address: 10.0.0.1}}}")
    export(tmp_path / "export", one)
    targets = yaml.safe_load((tmp_path / "export/prometheus/targets.yml").read_text())
    assert {each["labels"]["host"] for each in targets} == {"gpu1"}
    assert "gpu2" not in (tmp_path / "export/prometheus/rules.yml").read_text()


@pytest.mark.parametrize("variables", [{"export_watch_directory": "watch"}, {"vmalert_limits": {"ttft": 3}}])
def test_bad_input_is_refused_and_nothing_is_written(tmp_path, exported, variables):
    done = export(tmp_path / "export", exported["inventory"], **variables)
    assert done.returncode != 0
    assert next(iter(variables)) in done.stdout
    assert not (tmp_path / "export/prometheus/prometheus.yml").exists()


def ask(port: int, path: str):
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
        return json.load(answer)


def eventually(check, seconds: float = 30):
    """Return the result of ``check`` as soon as it is true."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError):
            if found := check():
                return found
        assert time.monotonic() < end, "not in time"
        time.sleep(0.2)


def start(stack: contextlib.ExitStack, command: list, log: Path) -> None:
    handle = stack.enter_context(log.open("w"))
    process = subprocess.Popen(command, stdout=handle, stderr=handle)
    stack.callback(process.wait, 30)
    stack.callback(process.terminate)


def test_a_real_prometheus_scrapes_and_its_alerts_arrive(exported, amtool, tmp_path):
    folder, alerts = exported["folder"], exported["alertmanager"]
    own = free_port()
    collector = [
        prometheus_package() / "usr/bin/prometheus",
        f"--config.file={folder}/prometheus/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/metrics",
        f"--web.listen-address=127.0.0.1:{own}",
        # If Alertmanager was not found yet, a firing alert is sent again, by default after a minute.
        "--rules.alert.resend-delay=1s",
    ]
    receiver = [
        amtool.with_name("alertmanager"),
        f"--config.file={folder}/alertmanager/alertmanager.yml",
        f"--storage.path={tmp_path}/alerts",
        f"--web.listen-address=127.0.0.1:{alerts}",
        "--cluster.listen-address=",
    ]
    with contextlib.ExitStack() as stack:
        start(stack, receiver, tmp_path / "receiver.log")
        eventually(lambda: ask(alerts, "/api/v2/status"))
        start(stack, collector, tmp_path / "collector.log")

        def up():
            found = ask(own, "/api/v1/query?query=up")["data"]["result"]
            return {each["metric"]["host"]: (each["metric"]["job"], each["value"][1]) for each in found}

        eventually(lambda: up() == {"gpu1": ("node_exporter", "1"), "gpu2": ("node_exporter", "0")})

        def arrived():
            return {each["labels"]["alertname"]: each for each in ask(alerts, "/api/v2/alerts")}

        eventually(lambda: len(arrived()) > 1)
        assert set(arrived()) == {"DeadMansSwitch", "PersonNeeded"}
        person = arrived()["PersonNeeded"]
        assert person["labels"]["host"] == "gpu1"
        assert person["receivers"] == [{"name": "now"}]
        assert person["annotations"]["summary"].startswith("restarts did not cure vllm.service on gpu1")

        def waiting():
            """Alerts of less than a minute; each group of rules is evaluated at its own time."""
            found = [each for each in ask(own, "/api/v1/alerts")["data"]["alerts"] if each["state"] == "pending"]
            return {(each["labels"]["alertname"], each["labels"].get("host")) for each in found}

        eventually(lambda: ("ExporterDown", "gpu2") in waiting())
