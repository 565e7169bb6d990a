"""Flags that node_exporter does not accept are reported with their variable before it is started."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

from plugins.filter.systemd import flag_clashes

SCRIPT = Path(__file__).resolve().parents[3] / "roles/node_exporter/files/check_flags.py"
PAGE = """usage: node_exporter [<flags>]

Flags:
  -h, --[no-]help                Show context-sensitive help (also try
                                 --help-long and --help-man).
      --collector.arp.device-include=COLLECTOR.ARP.DEVICE-INCLUDE
                                 Regexp of arp devices to include (as --collector.fiction does not).
      --[no-]collector.systemd   Enable the systemd collector (default: disabled).
      --[no-]collector.arp       Enable the arp collector (default: enabled).
      --[no-]collector.arp.netlink
      --web.max-requests=40      Maximum number
"""
spec = importlib.util.spec_from_file_location("check_flags", SCRIPT)
check_flags = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_flags)


@pytest.mark.parametrize(
    "name", ["collector.systemd", "collector.arp", "collector.arp.netlink", "web.max-requests", "help"]
)
def test_what_the_page_has_is_known(name):
    assert check_flags.unknown({"a": [name]}, PAGE) == []


@pytest.mark.parametrize(
    "name, sentence",
    [
        (
            "collector.nonsense",
            "a: this version has no collector nonsense (--collector.nonsense); it has arp, systemd.",
        ),
        ("collector.fiction", "a: this version has no collector fiction (--collector.fiction); it has arp, systemd."),
        ("collector.sytemd", "a: this version has no collector sytemd (--collector.sytemd); did you mean systemd?"),
        ("web.max-request", "a: this version has no flag --web.max-request; did you mean web.max-requests?"),
        ("zzz", "a: this version has no flag --zzz."),
    ],
)
def test_what_it_has_not_is_named(name, sentence):
    assert check_flags.unknown({"a": ["collector.arp", name]}, PAGE) == [sentence]


@pytest.fixture
def program(tmp_path):
    """A program with that help page, which refuses the value 3."""
    path = tmp_path / "node_exporter"
    refuses = 'case "$*" in *=3*) echo "node_exporter: error: unexpected 3, try --help" >&2; exit 1;; esac'
    path.write_text(f"#!/bin/sh\n{refuses}\ncat <<'E'\n{PAGE}E\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    "arguments, message",
    [(["--collector.arp=3"], "node_exporter: error: unexpected 3"), (["--collector.arp"], "")],
)
def test_the_parsers_message_is_the_last_line(program, arguments, message):
    argv = [sys.executable, str(SCRIPT), json.dumps({"a": ["collector.arp"]}), program, *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.stderr.strip(), done.returncode) == (message, int(bool(message)))


@pytest.mark.parametrize(
    "wanted, message",
    [
        ({"on": ["a", "b"], "off": ["c"]}, []),
        ({"on": ["a", "b"], "off": ["b"]}, ["on and off: b is named more than once; name it in one place, once."]),
        ({"on": ["a", "a"], "off": []}, ["on: a is named more than once; name it in one place, once."]),
        ({"on": ["a"], "rest": ["no-a"]}, ["on and rest: a is named more than once; name it in one place, once."]),
    ],
)
def test_a_flag_appears_once(wanted, message):
    assert flag_clashes(wanted) == message
