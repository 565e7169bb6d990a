"""Kernel settings: which file of sysctl.d is applied last."""

from __future__ import annotations

import pytest

from plugins.module_utils.host import sysctl
from plugins.module_utils.host_text import Tree

OWN = "/etc/sysctl.d/99-zz-own.conf"
SETTINGS = {"net.core.rmem_max": "100", "net.ipv4.tcp_rmem": "1 2 3"}


@pytest.fixture
def host(tmp_path):
    return Tree(tmp_path)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, {}),
        ({"/etc/sysctl.d/50-early.conf": "net.core.rmem_max = 1\n"}, {}),
        ({"/etc/sysctl.d/zz.conf": "net.core.rmem_max = 100\nnet.ipv4.tcp_rmem = 1\t2  3\n"}, {}),
        (
            {"/usr/lib/sysctl.d/zz.conf": "# x\n-net/core/rmem_max=1\n"},
            {"net.core.rmem_max": ("/usr/lib/sysctl.d/zz.conf", "1")},
        ),
        # Of two files with the same name, the one in the first directory counts.
        ({"/etc/sysctl.d/zz.conf": "", "/usr/lib/sysctl.d/zz.conf": "net.core.rmem_max=1"}, {}),
        # The last file by name counts, in whichever directory it is.
        (
            {"/etc/sysctl.d/zz-a.conf": "net.core.rmem_max=1", "/run/sysctl.d/zz-b.conf": "net.core.rmem_max=100"},
            {},
        ),
        ({"/etc/sysctl.d/zz.conf": "net.core.* = 1\n; net.core.rmem_max = 1\nrubbish \xe9\n"}, {}),
    ],
)
def test_which_later_file_overrides(host, files, expected):
    for path, text in files.items():
        host.write(path, text)
    host.write(OWN, sysctl.text(SETTINGS))
    assert sysctl.overridden(host, OWN, SETTINGS) == expected


def test_names_with_slashes():
    assert sysctl.assignments("net/ipv4/conf/eth0.1/x=1\nnet.ipv4.conf.eth0/1.x=2\n") == {
        "net.ipv4.conf.eth0/1.x": "2",
    }


def test_values(host):
    host.write("/proc/sys/net/ipv4/tcp_rmem", "1\t2\t3\n")
    assert sysctl.value(host, "net.ipv4.tcp_rmem") == "1 2 3"
    sysctl.put(host, "net.ipv4.tcp_rmem", "4 5 6")
    assert sysctl.value(host, "net.ipv4.tcp_rmem") == "4 5 6"
    assert sysctl.value(host, "net.none") == ""
    assert sysctl.problem(host, "net.none") == "this kernel has no net.none"
