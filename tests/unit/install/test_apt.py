"""apt and dpkg: their lock is awaited, an interrupted transaction is completed, a failure has their own words."""

from __future__ import annotations

import subprocess

import pytest

from plugins.module_utils.errors import UserError
from plugins.module_utils.install import apt


def answering(*answers: tuple[int, str, str]):
    """Return a function that answers commands in order and then repeats the last answer; and the list of commands."""
    ran, left = [], list(answers)

    def once(argv):
        ran.append(argv)
        return subprocess.CompletedProcess(argv, *(left.pop(0) if len(left) > 1 else left[0]))

    return once, ran


DONE = (0, "done", "")
LOCK = "E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 5 (apt-get)\n"


@pytest.mark.parametrize(
    "text",
    [
        LOCK,
        "E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), is another process using it?\n",
        "E: Unable to lock directory /var/lib/apt/lists/\n",
        "dpkg: error: dpkg frontend lock was locked by another process with pid 5\nNote: removing it is wrong\n",
        "dpkg: error: dpkg frontend lock was locked by /usr/bin/python3.13 process with pid 5\nNote: wrong\n",
        "dpkg: error: dpkg frontend lock is locked by another process\n",
    ],
)
def test_the_lock_is_waited_for(text):
    once, ran = answering((100, "", text), DONE)
    assert apt.run(["apt-get", "update"], 1, once) == "done"
    assert len(ran) == 2


def test_a_user_who_may_not_lock_fails_at_once():
    message = "E: Unable to acquire the dpkg frontend lock (/var/lib/dpkg/lock-frontend), are you root?\n"
    once, ran = answering((100, "", message))
    with pytest.raises(UserError, match=r"^apt-get failed: Unable to acquire .* are you root\?$"):
        apt.run(["apt-get", "update"], 60, once)
    assert len(ran) == 1


def test_a_lock_that_is_kept_is_named():
    once, _ = answering((100, "", LOCK))
    with pytest.raises(UserError, match=r"^another program has kept apt's lock for 0\.2 s: Could not .*; wait"):
        apt.run(["apt-get", "update"], 0.2, once)


POWER_LOSS = "E: dpkg was interrupted, you must manually run 'dpkg --configure -a' to correct the problem.\n"


def test_a_transaction_that_a_power_loss_interrupted_is_ended_first():
    once, ran = answering((100, "", POWER_LOSS), DONE)
    apt.run(["apt-get", "--quiet", "update"], 1, once)
    assert [words[0] for words in ran] == ["apt-get", "dpkg", "apt-get"]
    assert ran[1][-2:] == ["--configure", "--pending"]


def test_a_transaction_that_cannot_be_completed_is_reported():
    once, ran = answering((100, "", POWER_LOSS), DONE, (100, "", POWER_LOSS))
    with pytest.raises(UserError, match=r"^apt-get failed: dpkg was interrupted"):
        apt.run(["apt-get", "update"], 1, once)
    assert len(ran) == 3


# Output of dpkg on a full disk, as apt of Debian 13 passes it on through its own terminal.
FULL = """\
Unpacking tools (2.0) over (1.0) ...\r
dpkg: error processing archive /var/cache/apt/archives/tools_1%3a2.0_amd64.deb (--unpack):\r
 cannot copy extracted data for './bin/tool' to '/bin/tool.dpkg-new': failed to write (No space left on device)\r
dpkg-deb: error: paste subprocess was killed by signal (Broken pipe)\r
Errors were encountered while processing:\r
 /var/cache/apt/archives/tools_1%3a2.0_amd64.deb\r
"""


def test_dpkgs_reason_is_reported_if_apt_gives_none():
    once, _ = answering((100, FULL, "E: Sub-process failed\n"))
    with pytest.raises(UserError, match=r"^apt-get failed: tools_1%3a2\.0_amd64\.deb: cannot copy .*\(No space left"):
        apt.run(["apt-get", "--quiet", "install", "tools"], 1, once)
    assert apt.dpkg_failure(FULL.replace("\r\n", "\n\n"))  # as Python reads \\r\\r\\n
    assert apt.dpkg_failure("E: Unable to locate package tools\n") == ""


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ("W: GPG error: NO_PUBKEY A4\nE: The repository is not signed.\nE: more\n",
         "GPG error: NO_PUBKEY A4; The repository is not signed."),
        ("Error: Failed to fetch file\n", "Failed to fetch file"),
        ("\nno mark\nthe last line\n", "the last line"),
        ("", "exit code 100"),
    ],
)  # fmt: skip
def test_a_failure_has_apts_message(output, message):
    assert apt.reason(subprocess.CompletedProcess([], 100, "", output)) == message


def test_apt_gets_the_environment_of_the_task(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy:3128")
    output = apt.command(["sh", "-c", 'echo "$https_proxy $LC_ALL $DEBIAN_FRONTEND"']).stdout
    assert output == "http://proxy:3128 C noninteractive\n"
