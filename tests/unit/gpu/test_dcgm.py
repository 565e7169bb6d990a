"""The versions that DCGM reports, and which exporter fits them."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible.parsing.dataloader import DataLoader
from ansible.template import Templar, trust_as_template

from plugins.filter import dcgm as filters
from plugins.module_utils.gpu import dcgm
from plugins.module_utils.release import systemd_unit

ROOT = Path(__file__).resolve().parents[3]
TABLE = yaml.safe_load((ROOT / "data/dcgm/exporters.yml").read_text())

BOTH = """\
Version : 3.3.9
Build ID : 18
Build Date : 2024-10-30
Commit ID : 0
CPU Arch : x86_64

Hostengine build info:
Version : 3.3.8
Build ID : 12
"""


def test_client_and_engine_are_distinguished():
    assert dcgm.parse_versions(BOTH) == {"client": "3.3.9", "engine": "3.3.8"}
    assert dcgm.parse_versions(BOTH.partition("\nHost")[0]) == {"client": "3.3.9", "engine": None}
    assert dcgm.parse_versions("Error: unable to establish a connection") == {"client": None, "engine": None}


def test_absent_dcgm_reports_nothing(tmp_path):
    assert dcgm.ask(str(tmp_path / "dcgmi")) == {"client": None, "engine": None}


def program(folder, text: str) -> str:
    """Create a fake dcgmi, a shell script."""
    folder.mkdir(exist_ok=True)
    path = folder / "dcgmi"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def misses(folder, times: int) -> str:
    """Create a fake dcgmi whose engine does not answer the first `times` calls."""
    folder.mkdir(exist_ok=True)
    (folder / "said.txt").write_text(BOTH)
    return program(
        folder,
        f"echo >> {folder}/asked; [ $(wc -l < {folder}/asked) -gt {times} ] || exec head -6 {folder}/said.txt\n"
        f"cat {folder}/said.txt",
    )


def test_one_missed_window_does_not_count_as_silence(tmp_path):
    assert dcgm.ask(misses(tmp_path / "once", 1)) == {"client": "3.3.9", "engine": None}
    assert dcgm.ask_patiently(misses(tmp_path / "busy", 2)) == {"client": "3.3.9", "engine": "3.3.8"}
    assert dcgm.ask_patiently(misses(tmp_path / "dead", 99), patience=0.5)["engine"] is None


def test_a_hanging_dcgmi_counts_as_no_engine_with_its_own_message(tmp_path):
    told = dcgm.ask_patiently(program(tmp_path, "exec sleep 60"), patience=0.5)
    assert told == {"client": None, "engine": None, "trouble": "dcgmi -v did not end within 1 s"}
    assert dcgm.start_reason({"ActiveState": "active"}, told, "3.3.9") == told["trouble"]


@pytest.mark.parametrize(("state", "reason"), [("active", None), ("inactive", "it was not running (inactive, dead)")])
def test_a_running_engine_is_not_restarted_for_one_missed_window(tmp_path, monkeypatch, state, reason):
    engine = importlib.import_module("plugins.modules.dcgm_engine")
    live = {"ActiveState": state, "SubState": "dead", "UnitFileState": "enabled"}
    monkeypatch.setattr(systemd_unit, "show", lambda unit: live)
    tools = Path(shutil.which("wc")).parent
    monkeypatch.setenv("PATH", f"{Path(misses(tmp_path, 1)).parent}:{tools}:/bin")
    said: dict = {}

    def leave(**values):
        said.update(values)
        raise SystemExit

    options = {"unit": "nvidia-dcgm.service", "version": "3.3.8", "timeout": 60}
    with pytest.raises(SystemExit):
        engine.run(SimpleNamespace(params=options, check_mode=True, exit_json=leave))
    assert (said["restarted"], said["changed"]) == (reason, bool(reason))


@pytest.mark.parametrize(
    ("live", "engine", "reason"),
    [
        ({"ActiveState": "active"}, "3.3.9", None),
        ({"ActiveState": "active"}, "3.3.8", "the running engine was 3.3.8, 3.3.9 is installed"),
        ({"ActiveState": "active"}, None, "it did not answer"),
        ({"ActiveState": "failed", "SubState": "failed"}, "3.3.9", "it was not running (failed, failed)"),
    ],
)
def test_reason_to_start_the_engine(live, engine, reason):
    assert dcgm.start_reason(live, {"client": "3.3.9", "engine": engine}, "1:3.3.9-1") == reason


def test_release_follows_the_major_of_dcgm():
    assert filters.exporter_release("3.3.9", TABLE)["tag"] == "3.3.9-3.6.1"
    assert filters.exporter_release("3.1.8", TABLE)["tag"] == "3.3.9-3.6.1"
    assert filters.exporter_release("4.2.3", TABLE)["tag"] == "4.0.0-4.0.1"
    assert filters.exporter_release("3.3.9", TABLE)["commit"] == "b97b7633e3f39f7a537bd77561cc0ec0c2dca3f5"


@pytest.mark.parametrize(
    ("version", "tag", "sentence"),
    [
        ("3.3.9", "4.0.0-4.0.1", "needs the libdcgm.so.4 of DCGM 4.x and DCGM 3.3.9 is installed"),
        ("4.2.3", "3.3.9-3.6.1", "needs the libdcgm.so of DCGM 3.x and DCGM 4.2.3 is installed"),
        ("3.3.9", "3.3.9", r"3.3.9 is not known \(known: 3.3.8-3.6.0, 3.3.9-3.6.1, 4.0.0-4.0.1\)"),
        ("5.0.0", "", "no release of dcgm-exporter is known for DCGM 5.0.0"),
    ],
)
def test_mismatch_is_refused(version, tag, sentence):
    with pytest.raises(AnsibleFilterError, match=sentence):
        filters.exporter_release(version, TABLE, tag)


def test_a_commit_of_the_users_own_makes_a_tag_known():
    commits = {"4.9.0-4.9.0": "a" * 40, "3.3.9-3.6.1": "b" * 40}
    assert filters.exporter_release("4.9.0", TABLE, "4.9.0-4.9.0", commits)["commit"] == "a" * 40
    assert filters.exporter_release("3.3.9", TABLE, "", commits)["commit"] == "b" * 40


@pytest.mark.parametrize(
    ("build_on", "here", "facts", "refused"),
    [
        ("controller", "x86_64", {"architecture": "aarch64"}, True),
        ("controller", "x86_64", {"architecture": "x86_64"}, False),
        ("controller", "x86_64", {}, False),
        ("target", "x86_64", {"architecture": "aarch64"}, False),
    ],
)
def test_a_build_on_a_controller_of_another_architecture_is_refused(build_on, here, facts, refused):
    rules = yaml.safe_load((ROOT / "roles/dcgm_exporter/vars/main.yml").read_text())["__dcgm_exporter_rules"]
    (rule,) = [rule for rule in rules if rule["variable"] == "dcgm_exporter_build_on"]
    variables = {
        "dcgm_exporter_build_on": build_on,
        "ansible_facts": facts,
        "__dcgm_exporter_controller_architecture": here,
    }
    templar = Templar(DataLoader(), variables=variables)
    assert templar.template(trust_as_template(rule["that"])) is not refused
    if refused:
        assert "dcgm_exporter_build_on is controller" in templar.template(trust_as_template(rule["fail_msg"]))


def test_counters_file():
    rows = [{"field": "DCGM_FI_DEV_GPU_TEMP", "type": "gauge", "help": "Temperature (in C)."}]
    assert filters.counters_csv(rows) == "DCGM_FI_DEV_GPU_TEMP, gauge, Temperature (in C).\n"


def test_table_is_complete():
    assert all(len(row["commit"]) == 40 and row["tag"].startswith(f"{row['dcgm']}.") for row in TABLE)


def test_what_a_role_wants_is_what_a_run_brings(tmp_path):
    assert dcgm.promised(tmp_path) == dcgm.promised(tmp_path / "none") == ""
    (tmp_path / "ai_server.json").write_text('{"came": ["git"], "wanted": ["git"]}')
    (tmp_path / "old.json").write_text('{"came": ["datacenter-gpu-manager"]}')
    assert dcgm.promised(tmp_path) == ""
    (tmp_path / "dcgm.json").write_text('{"came": [], "wanted": ["datacenter-gpu-manager"]}')
    assert dcgm.promised(tmp_path) == "3"
