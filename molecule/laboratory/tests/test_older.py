"""Debian 11 is older than Ubuntu 22.04 in what the roles depend on, but has the Python of Ubuntu 22.04 for them."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.platform("debian11")

PYTHON = "/usr/local/bin/python3.10"


def test_systemd_and_glibc_are_older(host):
    assert int(host.check_output("systemctl --version").split()[1]) < 249
    assert tuple(map(int, host.check_output("getconf GNU_LIBC_VERSION").split()[1].split("."))) < (2, 35)


def test_its_python_needs_no_environment_and_leaves_none(host):
    command = (
        "import ctypes, json, os, sqlite3, ssl, sys, sysconfig; ssl_context = ssl.create_default_context(); "
        "print(json.dumps([sys.version.split()[0], sysconfig.get_path('include'), sorted(os.environ), "
        "ssl_context.cert_store_stats()['x509_ca'] > 100]))"
    )
    version, headers, names, certificates = json.loads(host.check_output("env -i %s -c %s", PYTHON, command))
    assert version == "3.10.8"
    assert host.file(f"{headers}/Python.h").exists
    assert not {"PYTHONHOME", "PYTHONPATH", "LD_LIBRARY_PATH"} & set(names)
    assert certificates


def test_the_distribution_s_python_is_untouched(host):
    assert host.check_output("/usr/bin/python3 -c 'import apt_pkg, sys; print(sys.version_info[:2])'") == "(3, 9)"


def test_an_environment_of_it_works_for_a_user(host):
    host.check_output("runuser -u operator -- %s -m venv --without-pip /tmp/of-3.10", PYTHON)
    assert host.check_output("/tmp/of-3.10/bin/python --version") == "Python 3.10.8"
