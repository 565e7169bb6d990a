"""A file is replaced in one step, and keeps every attribute that the writer did not name."""

from __future__ import annotations

import os

import pytest

from plugins.module_utils import atomic_file, host_text


def mode(path) -> int:
    return path.stat().st_mode & 0o7777


def test_a_new_file_is_readable_and_its_directory_is_made(tmp_path):
    path = tmp_path / "some/where/file"
    atomic_file.write(path, "text", directory_mode=0o700)
    assert path.read_text() == "text" and mode(path) == 0o644 and mode(path.parent) == 0o700
    assert list(path.parent.iterdir()) == [path]


def test_an_existing_file_keeps_its_mode_unless_one_is_given(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o640)
    os.utime(path, (1, 1))
    atomic_file.write(path, b"new")
    assert path.read_bytes() == b"new" and mode(path) == 0o640
    assert path.stat().st_mtime > 1, "others notice by its time that the file is new"
    atomic_file.write(path, "new", 0o600)
    assert mode(path) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_an_existing_file_keeps_its_owner_unless_one_is_given(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    os.chown(path, 12, 34)
    atomic_file.write(path, "new")
    assert (path.stat().st_uid, path.stat().st_gid) == (12, 34)
    atomic_file.write(path, "new", 0o600, "root", "root")
    assert (path.stat().st_uid, path.stat().st_gid) == (0, 0)


def test_no_other_user_sees_a_part_of_a_secret(tmp_path, monkeypatch):
    path, seen = tmp_path / "secret", []
    usual = os.fsync

    def fsync(descriptor):
        seen.append(os.fstat(descriptor).st_mode & 0o777)
        usual(descriptor)

    monkeypatch.setattr(atomic_file.os, "fsync", fsync)
    atomic_file.write(path, "text", 0o600)
    assert seen == [0o600]


@pytest.mark.parametrize(("owner", "error"), [(None, OSError), ("nobody-has-this-name", LookupError)])
def test_the_old_file_stays_if_the_new_one_cannot_be_written(tmp_path, monkeypatch, owner, error):
    path = tmp_path / "file"
    path.write_text("old")
    if owner is None:
        monkeypatch.setattr(atomic_file.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(error):
        atomic_file.write(path, "new", 0o600, owner)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_bytes_of_others_stay_as_they_are(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"caf\xe9\r\n")
    atomic_file.write(path, host_text.read(path))
    assert path.read_bytes() == b"caf\xe9\r\n"


def test_a_link_replaces_what_was_there(tmp_path):
    path = tmp_path / "some/where/current"
    atomic_file.link(path, "/first")
    atomic_file.link(path, tmp_path / "second")
    assert atomic_file.leads_to(path) == str(tmp_path / "second")
    assert list(path.parent.iterdir()) == [path]
    path.unlink()
    path.write_text("a file")
    assert atomic_file.leads_to(path) is None
    atomic_file.link(path, "/first")
    assert atomic_file.leads_to(path) == "/first"
