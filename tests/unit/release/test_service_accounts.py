"""Incomplete accounts: completed, used as they are, or refused by name; accounts of others are never removed."""

from __future__ import annotations

import grp
import pwd
from types import SimpleNamespace

import pytest

from plugins.module_utils import unprivileged
from plugins.module_utils.release import account, contents, removal, store, systemd_unit
from plugins.module_utils.release.description import Refused
from plugins.module_utils.release.store import Service


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host whose users and groups are two mappings, name to number, and that records the commands run on it."""
    users, groups, said = {"root": (0, 0), "nobody": (65534, 65534)}, {"root": 0, "adm": 4, "nogroup": 65534}, []

    def user(name):
        return pwd.struct_passwd((name, "x", *users[name], "", "/", "/bin/false"))

    def group(name):
        return grp.struct_group((name, "x", groups[name], []))

    def group_by_number(number):
        return group({gid: name for name, gid in groups.items()}[number])

    monkeypatch.setattr(pwd, "getpwnam", user)
    monkeypatch.setattr(grp, "getgrnam", group)
    monkeypatch.setattr(grp, "getgrgid", group_by_number)
    # A directory server does not list its users.
    monkeypatch.setattr(pwd, "getpwall", list)
    monkeypatch.setattr(grp, "getgrall", list)
    monkeypatch.setattr(store, "STORE", tmp_path / "services")
    monkeypatch.setattr(store, "UNITS", tmp_path / "units")
    monkeypatch.setattr(store, "LOCKS", tmp_path)
    monkeypatch.setattr(systemd_unit, "run", lambda *argv, **_: said.append(argv))
    return SimpleNamespace(users=users, groups=groups, said=said, service=Service("app"))


def wanted(**change):
    blank = {"directories": [], "files": [], "secrets": [], "user": "app", "groups": []}
    return {**blank, "state": "present", **change}


def entry(owner="root", group="root"):
    return {"path": "/etc/app", "owner": owner, "group": group}


def test_a_new_user_has_a_group_of_his_name(host):
    account.add_user(host.service, "app", "/nonexistent")
    assert "--user-group" in host.said[0]


def test_a_group_that_is_there_without_its_user_is_used_and_stays(host):
    host.groups["app"] = 990
    account.add_user(host.service, "app", "/nonexistent")
    assert "--user-group" not in host.said[0]
    assert host.said[0][host.said[0].index("--gid") + 1] == "app"
    host.users["app"] = (990, 990)
    host.said.clear()
    removal.remove(host.service, purge=True)
    assert host.said == [("usermod", "--gid", "nogroup", "app"), ("userdel", "app")]


def test_the_group_that_came_with_a_user_goes_with_him(host):
    account.add_user(host.service, "app", "/nonexistent")
    host.users["app"] = (990, 990)
    host.said.clear()
    removal.remove(host.service, purge=True)
    assert host.said == [("userdel", "app")]


def test_a_user_whom_only_a_directory_server_knows_is_there(host):
    host.users["app"] = (70001, 70000)
    host.groups["app"] = 70000
    assert not account.missing_user("app")
    removal.remove(host.service, purge=True)
    assert host.said == []


@pytest.mark.parametrize("part", ["directories", "files", "secrets"])
def test_a_user_implies_his_primary_group_whatever_its_name(host, part):
    host.users["app"] = (990, 65534)
    asked = wanted(**{part: [entry("app", "app"), entry("root", "adm"), entry("root", "root")]})
    account.settle_groups(host.service, asked)
    assert [each["group"] for each in asked[part]] == ["nogroup", "adm", "root"]


def test_so_does_he_in_the_unit_and_for_programs_that_run_as_him(host):
    host.users["app"] = (990, 65534)
    unit = {"Service": {"User": "app", "Group": "app", "ExecStart": "/bin/app"}}
    assert "\nGroup=nogroup\n" in contents.build(host.service, [], [], unit)["unit"]
    assert unprivileged.identity("app") == {"user": 990, "group": 65534, "extra_groups": []}


def test_on_a_new_host_the_user_and_his_group_are_still_to_come(host):
    asked = wanted(directories=[entry("app", "app")])
    account.settle_groups(host.service, asked)
    assert asked["directories"][0]["group"] == "app"


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"directories": [entry("root", "logs")]}, "app: there is no group logs on this host, to which /etc/app is to"),
        ({"secrets": [entry("build", "root")]}, "app: there is no user build on this host, to which /etc/app is to"),
        ({"groups": ["adm", "video", "render"]}, "there is no group video, render on this host .* out of app_groups$"),
        ({"groups": ["video"]}, "there is no group video on this host for the service to join"),
    ],
)
def test_what_the_host_lacks_is_refused_by_name(host, change, sentence):
    with pytest.raises(Refused, match=sentence):
        account.settle_groups(host.service, wanted(**change))
    assert host.said == []


def test_removal_needs_no_group(host):
    account.settle_groups(host.service, wanted(state="absent", groups=["video"]))


def test_groups_to_join_are_in_the_unit(host):
    unit = contents.build(host.service, [], [], {"Service": {"ExecStart": "/bin/app"}}, groups=["adm", "video"])["unit"]
    assert "\nSupplementaryGroups=adm video\n" in unit
