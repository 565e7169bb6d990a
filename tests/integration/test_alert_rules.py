"""The alert rules in the tools' own tests: vmalert-tool, the distribution's promtool, and a real VictoriaLogs.

The cases are in tests/data/alerts. They run without the rules' annotations, which a case would have to repeat, and
are the same for both tools. Annotations are templates: the tools parse them when they check the rule files.
"""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import tarfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest
import yaml

from lab import builds, debian_package, host, image

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "data/alerts"
CASES = ROOT / "tests/data/alerts"
# Start of each tool's test clock.
STARTS = {"vmalert-tool": 946684800, "promtool": 0}
PROMETHEUS = "debian12"


@pytest.fixture(scope="session")
def vmutils(tmp_path_factory) -> Path:
    """Return the folder with vmalert and vmalert-tool of the release that the role installs."""
    return unpacked("vmutils", tmp_path_factory.mktemp("vmutils"))


@pytest.fixture(scope="session")
def promtool() -> Path:
    """Return the path of the distribution's promtool."""
    return prometheus_package() / "usr/bin/promtool"


def prometheus_package() -> Path:
    """Return the folder with the files of the distribution's Prometheus package."""
    folder = host.CACHE / "prometheus" / PROMETHEUS
    with host.lock("prometheus"):
        if not (folder / "complete").exists():
            host.run(["rm", "-rf", str(folder)])
            folder.mkdir(parents=True)
            recipe = image.recipe(PROMETHEUS)
            package = debian_package.download("prometheus", recipe.sources, recipe.apt_options, folder)
            host.run(["dpkg-deb", "--extract", str(package), str(folder / "tree")])
            (folder / "complete").touch()
    return folder / "tree"


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def unpacked(name: str, folder: Path) -> Path:
    (build,) = builds.ensure([name])
    with tarfile.open(build["archive"]) as archive:
        archive.extractall(folder, filter="data")
    return folder


def write_cases(folder: Path, tool: str, change=lambda rule: None) -> list[Path]:
    """Write rules without annotations, each modified by ``change``, and the cases for ``tool``; return their paths."""
    for path in RULES.glob("*.yml"):
        rules = yaml.safe_load(path.read_text())
        for group in rules["groups"]:
            for rule in group["rules"]:
                rule.pop("annotations", None)
                change(rule)
        (folder / path.name).write_text(yaml.safe_dump(rules, sort_keys=False))
    found = []
    for path in sorted(CASES.glob("*.yml")):
        text = re.sub(r"START([+-]\d+)", lambda offset: str(STARTS[tool] + int(offset.group(1))), path.read_text())
        found.append(folder / f"case_{path.name}")
        found[-1].write_text(text)
    return found


def run(command: list, folder: Path) -> tuple[int, str]:
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    return done.returncode, done.stdout


def under_vmalert(vmutils: Path, case: Path) -> tuple[int, str]:
    command = [vmutils / "vmalert-tool-prod", "unittest", f"-files={case.name}", "-disableAlertgroupLabel"]
    return run([*command, "-loggerLevel=ERROR"], case.parent)


@pytest.mark.parametrize("name", sorted(path.stem for path in CASES.glob("*.yml")))
def test_it_fires_when_it_should_and_only_then_under_vmalert(tmp_path, vmutils, name):
    write_cases(tmp_path, "vmalert-tool")
    code, output = under_vmalert(vmutils, tmp_path / f"case_{name}.yml")
    assert code == 0 and "SUCCESS" in output, output


def test_and_under_prometheus(tmp_path, promtool):
    cases = write_cases(tmp_path, "promtool")
    code, output = run([promtool, "test", "rules", *(path.name for path in cases)], tmp_path)
    assert code == 0 and output.count("SUCCESS") == len(cases), output


def test_a_rule_that_does_not_fire_fails_its_test(tmp_path, vmutils):
    def never(rule):
        if rule.get("alert") == "OomKill":
            rule["expr"] += " and vector(0) > 1"

    write_cases(tmp_path, "vmalert-tool", never)
    code, output = under_vmalert(vmutils, tmp_path / "case_host.yml")
    assert code != 0 and "OomKill" in output and "SUCCESS" not in output


def test_both_read_the_files_as_they_are(vmutils, promtool):
    files = sorted(path.name for path in RULES.glob("*.yml"))
    code, output = run([vmutils / "vmalert-prod", *(f"-rule={name}" for name in files), "-dryRun"], RULES)
    assert code == 0, output
    code, output = run([vmutils / "vmalert-prod", "-rule=logs/*.yml", "-dryRun"], RULES)
    assert code == 0, output
    code, output = run([promtool, "check", "rules", *files], RULES)
    assert code == 0 and "error" not in output.lower(), output


# -- logs -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Run a separate VictoriaLogs; yield its address."""
    folder = unpacked("victoria_logs", tmp_path_factory.mktemp("victoria_logs"))
    port = free_port()
    command = [folder / "victoria-logs-prod", f"-httpListenAddr=127.0.0.1:{port}", f"-storageDataPath={folder}/data"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "HOME": str(folder)})
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(100):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def line(host_name: str, seconds_ago: float, severity: int = 9, service: str = "vllm") -> dict:
    return {
        "_time": int((time.time() - seconds_ago) * 1e9),
        "_msg": "a line",
        "host.name": host_name,
        "service.name": service,
        "severity_number": severity,
    }


def put(url: str, lines: list[dict]) -> None:
    fields = "_stream_fields=host.name,service.name&_time_field=_time&_msg_field=_msg"
    body = "".join(json.dumps(each) + "\n" for each in lines).encode()
    kind = {"Content-Type": "application/stream+json"}  # with a form's type, the lines would be parsed as form fields
    request = urllib.request.Request(f"{url}/insert/jsonline?{fields}", data=body, headers=kind)
    urllib.request.urlopen(request, timeout=10).close()
    urllib.request.urlopen(f"{url}/internal/force_flush", timeout=10).close()


def firing(url: str, alert: str) -> list[dict]:
    """Return the labels for which an alert of the log rules fires."""
    rules = yaml.safe_load((RULES / "logs/logs.yml").read_text())["groups"][0]["rules"]
    query = next(rule["expr"] for rule in rules if rule["alert"] == alert)
    request = urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(f"{url}/select/logsql/stats_query?{request}", timeout=10) as answer:
        found = json.load(answer)["data"]["result"]
    own = ("host.name", "service.name")
    return [{name: value for name, value in each["metric"].items() if name in own} for each in found]


def test_a_host_that_stops_sending_lines_is_missed_and_one_that_was_never_there_is_not(store):
    put(store, [line("quiet", 2 * 3600), line("talks", 2 * 3600), line("talks", 60), line("gone", 30 * 3600)])
    assert firing(store, "LogsStopped") == [{"host.name": "quiet"}]


def test_many_errors_at_once_fire_and_a_few_do_not(store):
    put(store, [line("many", 60, severity=17) for _ in range(11)])
    put(store, [line("few", 60, severity=17) for _ in range(10)] + [line("few", 60, severity=13) for _ in range(50)])
    put(store, [line("before", 600, severity=17) for _ in range(50)])
    assert firing(store, "ErrorsLogged") == [{"host.name": "many", "service.name": "vllm"}]
