"""A removed service leaves its data, and nothing else."""

import pytest

from plugins.module_utils.release import account, removal, store, systemd_unit


@pytest.fixture
def service(tmp_path, tmp_path_factory, monkeypatch):
    """A service with a directory that contains data, a log directory, and parent directories that it created."""
    monkeypatch.setattr(store, "STORE", tmp_path / "var/llm-server/services")
    monkeypatch.setattr(store, "UNITS", tmp_path / "units")
    monkeypatch.setattr(store, "LOCKS", tmp_path_factory.mktemp("run"))
    made = store.Service("thing")
    root = tmp_path / "srv/root"
    declared = [(root, False), (root / "program", False), (root / "data", True), (tmp_path / "log/deep", True)]
    entries = [{"path": str(tmp_path / name), "keep": False, "declared": False} for name in ("srv", "log")]
    entries += [{"path": str(path), "keep": keep, "declared": True} for path, keep in declared]
    for path, _ in declared:
        path.mkdir(parents=True)
    (root / "program/file").touch()
    with made.lock():
        made.note(created={"user": None, "directories": entries})
    return made


def remove(service, purge=False):
    with service.lock():
        return removal.remove(service, purge)


def test_data_below_a_directory_that_goes_stays(service, tmp_path):
    (tmp_path / "srv/root/data/file").touch()
    assert remove(service)
    assert [str(path.relative_to(tmp_path)) for path in sorted(tmp_path.rglob("file"))] == ["srv/root/data/file"]
    assert not (tmp_path / "srv/root/program").exists()


def test_a_second_removal_changes_nothing_and_a_later_purge_takes_the_rest(service, tmp_path):
    (tmp_path / "srv/root/data/file").touch()
    (tmp_path / "log/deep/file").touch()
    assert remove(service)
    assert not removal.removable(service, purge=False)
    assert not remove(service)
    assert removal.removable(service, purge=True)
    assert remove(service, purge=True)
    assert not (tmp_path / "srv").exists()
    assert not (tmp_path / "log").exists()
    assert not service.store.exists()


def test_without_data_nothing_is_left(service, tmp_path):
    assert remove(service)
    assert [path.name for path in tmp_path.rglob("*")] == ["var"]


def test_what_others_put_into_a_parent_stays(service, tmp_path):
    (tmp_path / "srv/other").touch()
    assert remove(service, purge=True)
    assert [path.name for path in (tmp_path / "srv").iterdir()] == ["other"]


@pytest.fixture
def other(service):
    """A second service below a directory that the first one created."""
    made = store.Service("other")
    with made.lock():
        made.note(created={"user": None, "directories": []})
    return made


def test_what_another_service_needs_becomes_its_own(service, other, tmp_path):
    with other.lock():
        account.need(other, "nobody", [{"path": str(tmp_path / "srv/root/program")}])
    assert remove(service, purge=True)
    assert (tmp_path / "srv/root/program/file").exists()
    assert not (tmp_path / "srv/root/data").exists()
    inherited = [entry["path"] for entry in other.state()["created"]["directories"]]
    assert inherited == [str(tmp_path / name) for name in ("srv", "srv/root", "srv/root/program")]
    assert remove(other, purge=True)
    assert not (tmp_path / "srv").exists()


def test_a_user_that_another_service_runs_as_stays_and_goes_with_it(service, other, monkeypatch):
    ran = []
    monkeypatch.setattr(systemd_unit, "run", lambda *argv, **_: ran.append(argv))
    with service.lock():
        service.note(created={"user": "nobody", "group": "nobody", "directories": []})
    with other.lock():
        account.need(other, "nobody", [])
    assert not remove(service, purge=True)
    assert ("userdel", "nobody") not in ran
    assert other.state()["created"]["user"] == "nobody"
    remove(other, purge=True)
    assert ("userdel", "nobody") in ran
