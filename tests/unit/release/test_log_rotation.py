"""A logrotate file beside others: what logrotate would silently skip is reported, with the other file's name."""

from __future__ import annotations

from pathlib import Path

import pytest

from plugins.module_utils.errors import UserError
from plugins.module_utils.release.log_rotation import check, files_read, first_error, overlap, patterns

OURS = "/var/log/app/*.log"
SAID = "\nHandling 1 logs\n\nrotating pattern: {}  weekly (4 rotations)\nempty log files are rotated\n"
DOUBLED = """
reading config file c.conf
including /etc/logrotate.d
reading config file ai-server
reading config file x
error: x:1 duplicate log entry for /var/log/app/a.log
error: found error in file x, skipping
Handling 1 logs

rotating pattern: /var/log/app/*.log /var/log/b.log  after 1 days (14 rotations)
rotating pattern: /var/log/wtmp 1048576 bytes (4 rotations)
"""


@pytest.mark.parametrize(
    ("one", "other", "meet"),
    [
        (OURS, OURS, True),
        (OURS, "/var/log/app/a.log", True),
        (OURS, "/var/log/*/*.log", True),
        (OURS, "/var/log/app/a*", True),
        (OURS, "/var/log/app/[ab].lo?", True),
        (OURS, "/var/log/app/*.out", False),
        (OURS, "/var/log/*.log", False),
        (OURS, "/var/log/application/*.log", False),
        (OURS, "/var/log/app/sub/*.log", False),
    ],
)
def test_globs_that_can_match_the_same_path(one, other, meet):
    assert overlap(one, other) == overlap(other, one) == meet


def test_what_logrotate_prints_is_read():
    assert patterns(DOUBLED) == ["/var/log/app/*.log", "/var/log/b.log", "/var/log/wtmp"]
    assert files_read(DOUBLED, Path("c.conf")) == [Path("/etc/logrotate.d/ai-server"), Path("/etc/logrotate.d/x")]
    assert first_error(DOUBLED) == "x:1 duplicate log entry for /var/log/app/a.log"


class Logrotate:
    """A host with logrotate files for the given logs; ``ask`` answers like logrotate."""

    def __init__(self, tmp_path, own="", **files):
        self.conf, self.folder, self.own = tmp_path / "logrotate.conf", tmp_path / "logrotate.d", own
        self.path, self.files = self.folder / "ai-server", {self.folder / name: text for name, text in files.items()}
        self.code, self.included, self.error = 0, True, ""

    def ask(self, path):
        if path == self.conf:
            read = "".join(f"reading config file {file.name}\n" for file in [*self.files, self.path])
            head = f"reading config file {self.conf}\n" + f"including {self.folder}\n{read}" * self.included
            texts = [self.own, *self.files.values()]
            return 0, f"{self.error}{head}" + "".join(SAID.format(text) for text in texts if text)
        return (0, SAID.format(self.files[path])) if path in self.files else (self.code, self.error + SAID.format(OURS))

    def check(self):
        check(self.path, "text", self.conf, self.ask)


def test_files_of_others_do_not_matter(tmp_path):
    Logrotate(tmp_path, own="/var/log/wtmp", apt="/var/log/apt/*.log", x="/var/log/app/*.out").check()
    Logrotate(tmp_path, own=OURS).check()  # our own file from an earlier run


@pytest.mark.parametrize("glob", [OURS, "/var/log/app/a.log", "/var/log/*/*.log /var/log/b.log"])
def test_another_file_for_the_same_logs_is_named(tmp_path, glob):
    host = Logrotate(tmp_path, apt="/var/log/apt/*.log", x=glob)
    with pytest.raises(UserError) as raised:
        host.check()
    assert str(raised.value).startswith(f"{tmp_path}/logrotate.d/x rotates {glob.split()[0]} and {host.path} would ")
    assert "take" in str(raised.value)


def test_the_configuration_itself_may_be_the_other(tmp_path):
    with pytest.raises(UserError, match=r"logrotate\.conf rotates /var/log/app/a\.log and "):
        Logrotate(tmp_path, own="/var/log/app/a.log", apt="/var/log/apt/*.log").check()


def test_a_directory_that_is_not_included_and_a_refusal_are_reported(tmp_path):
    host = Logrotate(tmp_path)
    host.included, host.error = (
        False,
        "error: a:1 x\nerror: Ignoring logrotate.conf because it is writable by group or others.\n",
    )
    with pytest.raises(UserError, match=r"does not read .*: Ignoring logrotate\.conf because it is writable by group"):
        host.check()
    host.error = ""
    with pytest.raises(UserError, match="it does not include"):
        host.check()
    host = Logrotate(tmp_path)
    host.code, host.error = 1, "error: ai-server:9 unknown user 'x'\n"
    with pytest.raises(UserError, match=r"refuses .*/ai-server: ai-server:9 unknown user 'x'"):
        host.check()
