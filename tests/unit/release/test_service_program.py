"""A service's released program: installed first, selected by a link of the release, and used in its checks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from plugins.module_utils.errors import UserError
from plugins.module_utils.install import program
from plugins.module_utils.release import account, checks, deploy, systemd_unit
from plugins.module_utils.release.description import Refused

ARCHIVE = {"version": "1.1", "url": "http://mirror/app.tar.gz", "checksum": f"sha256:{'0' * 64}"}
OTHER = {"path": "/opt/app/other", "target": "/opt/app/1.1"}


@pytest.fixture
def asked(monkeypatch):
    """The actions, in order, of a service ``app``."""
    done: list = []
    monkeypatch.setattr(account, "settle_groups", lambda *_: done.append("groups"))

    def provide(module, wanted, check_mode):
        done.append(wanted if not check_mode else "looked at")
        return {"changed": True, "path": "/opt/app/1.1", "diff": {"before": "", "after": "app\n"}}

    monkeypatch.setattr(program, "provide", provide)
    return done


def settled(check_mode=False, **wanted) -> dict:
    wanted = {"state": "present", "conflicts": [], "program": ARCHIVE, "links": [OTHER], **wanted}
    deploy.settle(SimpleNamespace(check_mode=check_mode), SimpleNamespace(name="app"), wanted)
    return wanted


def test_it_is_installed_after_the_groups_were_checked_and_selected_by_the_first_link(asked):
    wanted = settled()
    assert asked == ["groups", {"name": "app", **ARCHIVE}]
    assert wanted["links"] == [{"path": "/opt/app/current", "target": "/opt/app/1.1"}, OTHER]
    assert wanted["installed"]["changed"]


def test_a_comparison_installs_nothing(asked):
    assert settled(compare_only=True)["installed"]["changed"] and settled(check_mode=True)["installed"]["changed"]
    assert asked == ["groups", "looked at"] * 2


@pytest.mark.parametrize("wanted", [{"state": "absent"}, {"program": None}])
def test_nothing_is_installed_for_a_removal_or_a_service_without_one(asked, wanted):
    assert settled(**wanted)["links"] == [OTHER]
    assert asked == ["groups"]


def test_nothing_is_installed_beside_a_service_that_must_not_run_with_it(asked, monkeypatch):
    states = {"other.service": "active", "third.service": "inactive"}
    monkeypatch.setattr(systemd_unit, "show", lambda unit: {"ActiveState": states[unit]})
    both = [{"name": name, "reason": "every line would be shipped twice: remove it."} for name in ("third", "other")]
    with pytest.raises(Refused, match=r"^other runs on this host, and every line would be shipped twice: remove it\.$"):
        settled(conflicts=both)
    assert asked == ["groups"]
    assert settled(conflicts=both[:1])["installed"]
    # Neither in check mode, where the other may be about to go, nor when this one goes.
    assert settled(conflicts=both, check_mode=True)["installed"]
    assert settled(conflicts=both, state="absent")


def test_an_archive_without_a_checksum_is_refused_before_the_download(tmp_path):
    wanted = {"name": "app", **ARCHIVE, "checksum": "md5:1"}
    with pytest.raises(UserError, match=r"^checksum must be sha256: and 64 hexadecimal digits, not 'md5:1'$"):
        program.provide(SimpleNamespace(check_mode=False), wanted, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_is_checked_by_the_new_version_that_the_link_will_select(tmp_path, monkeypatch):
    for version, answer in (("1.0", "exit 0"), ("1.1", "echo 'app: error: no such key' >&2; exit 1")):
        folder = tmp_path / version
        folder.mkdir()
        (folder / "app").write_text(f"#!/bin/sh\n{answer}\n")
        (folder / "app").chmod(0o755)
    link = tmp_path / "current"
    link.symlink_to(tmp_path / "1.0")
    monkeypatch.setattr(checks.systemd_unit, "verify", lambda *_: "")
    file = {"path": "/etc/app.yml", "content": "a: 1\n", "validate": [f"{link}/app", "%s"]}
    release = {"unit": "", "links": [{"path": str(link), "target": str(tmp_path / "1.1")}]}
    with pytest.raises(Refused, match=r"app refuses /etc/app\.yml: app: error: no such key"):
        checks.check(SimpleNamespace(name="app", unit="app.service"), release, [file], None, check_mode=False)
    release["links"][0]["target"] = str(tmp_path / "1.0")
    checks.check(SimpleNamespace(name="app", unit="app.service"), release, [file], None, check_mode=False)


def test_a_program_finds_the_new_live_files_next_to_the_one_that_it_checks(tmp_path, monkeypatch):
    program = tmp_path / "app"
    program.write_text(
        '#!/bin/sh\ncd "$(dirname "$1")"\n'
        'test "$(cat keys) $(stat -c %a keys)" = "new 600" -a ! -e other && exit 0\n'
        "echo 'app: error: old keys' >&2\nexit 1\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(checks.systemd_unit, "verify", lambda *_: "")
    files = [
        {"path": "/etc/app.env", "content": "KEYS=keys\n", "validate": [str(program), "%s"]},
        {"path": "/etc/keys", "content": "new", "validate": None, "live": True},
        {"path": "/etc/other", "content": "new", "validate": None},
    ]
    service, release = SimpleNamespace(name="app", unit="app.service"), {"unit": "", "links": []}
    checks.check(service, release, files, None, check_mode=False)
    with pytest.raises(Refused, match="old keys"):
        checks.check(service, release, [files[0], {**files[1], "live": False}], None, check_mode=False)
