"""Archives of released programs: complete, verified and in place, or absent; and downloads over a bad network."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from plugins.module_utils.errors import UserError
from plugins.module_utils.install import downloads, released_program
from plugins.module_utils.install.released_program import install, installed_checksum, place, sha256

PROGRAM = b"#!/bin/sh\necho hello\n"


@pytest.fixture(autouse=True)
def no_root(monkeypatch):
    """Owners need root on the target; here files stay this user's."""
    monkeypatch.setattr(released_program.shutil, "chown", lambda *_: None)


def tarball(path, members):
    """Create a .tar.gz; ``members`` maps names to (bytes, mode) or to a link's target."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            if isinstance(content, str):
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                archive.addfile(entry)
            else:
                entry.size, entry.mode = len(content[0]), content[1]
                archive.addfile(entry, io.BytesIO(content[0]))
    return path


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, (content, _) in members.items():
            archive.writestr(name, content)
    return path


class TestInstall:
    def test_a_tarball_loses_its_top_folder(self, tmp_path):
        members = {"app-1.0/app": (PROGRAM, 0o755), "app-1.0/LICENSE": (b"free", 0o666)}
        archive = tarball(tmp_path / "app.tar.gz", members)
        install(archive, sha256(archive), "app", tmp_path / "opt/app/1.0")
        assert (tmp_path / "opt/app/1.0/app").read_bytes() == PROGRAM
        assert (tmp_path / "opt/app/1.0/app").stat().st_mode & 0o777 == 0o755
        assert (tmp_path / "opt/app/1.0/LICENSE").stat().st_mode & 0o777 == 0o644
        assert [path.name for path in (tmp_path / "opt/app").iterdir()] == ["1.0"]

    def test_another_archive_of_the_same_version_goes_beside(self, tmp_path):
        home = tmp_path / "opt/app"

        def put(text):
            archive = tarball(tmp_path / "app.tar.gz", {"app-1.0/app": (text, 0o755)})
            directory = place(home, "1.0", sha256(archive))
            if installed_checksum(directory) != sha256(archive):
                install(archive, sha256(archive), "app", directory)
            return directory

        first = put(PROGRAM)
        second = put(b"another")
        assert first == home / "1.0" == put(PROGRAM)
        assert second.name.startswith("1.0-") and second == put(b"another")
        assert [path.joinpath("app").read_bytes() for path in (first, second)] == [PROGRAM, b"another"]
        shutil.rmtree(first)  # as a service does when no release needs it any more
        assert put(b"another") == second
        (second / "app").unlink()
        assert put(b"another") == first  # an incomplete directory is replaced

    def test_the_only_file_of_a_zip_gets_the_programs_name(self, tmp_path):
        archive = zipped(tmp_path / "app.zip", {"app-linux-amd64": (PROGRAM, 0)})
        install(archive, sha256(archive), "app", tmp_path / "opt/app/1.0")
        assert (tmp_path / "opt/app/1.0/app").read_bytes() == PROGRAM
        assert (tmp_path / "opt/app/1.0/app").stat().st_mode & 0o777 == 0o755

    def test_it_notes_what_it_was_made_from(self, tmp_path):
        archive = zipped(tmp_path / "app.zip", {"app": (PROGRAM, 0)})
        directory = tmp_path / "opt/app/1.0"
        assert installed_checksum(directory) is None
        install(archive, sha256(archive), "app", directory)
        assert installed_checksum(directory) == sha256(archive)
        (directory / released_program.MARKER).write_text("half of it")
        assert installed_checksum(directory) is None

    def test_another_archive_of_the_version_takes_its_place(self, tmp_path):
        directory = tmp_path / "opt/app/1.0"
        for text in (b"old", b"new"):
            archive = zipped(tmp_path / "app.zip", {"app": (text, 0), "only-" + text.decode(): (b"", 0)})
            install(archive, sha256(archive), "app", directory)
        assert (directory / "app").read_bytes() == b"new"
        assert not (directory / "only-old").exists()

    def test_what_was_there_stays_when_the_new_one_cannot_take_its_place(self, tmp_path, monkeypatch):
        directory = tmp_path / "opt/app/1.0"
        archive = zipped(tmp_path / "app.zip", {"app": (b"old", 0)})
        install(archive, sha256(archive), "app", directory)
        rename = Path.rename

        def refused(path, target):
            if path.name == "tree":
                assert not directory.exists()
                raise OSError("no")
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", refused)
        archive = zipped(tmp_path / "app.zip", {"app": (b"new", 0)})
        with pytest.raises(OSError, match="no"):
            install(archive, sha256(archive), "app", directory)
        assert (directory / "app").read_bytes() == b"old"
        assert [path.name for path in directory.parent.iterdir()] == ["1.0"]

    def test_a_missing_or_truncated_program_is_incomplete(self, tmp_path):
        archive = zipped(tmp_path / "app.zip", {"app": (PROGRAM, 0), "more": (b"", 0)})
        directory = tmp_path / "opt/app/1.0"
        install(archive, sha256(archive), "app", directory)
        (directory / "app").write_bytes(PROGRAM[:3])
        assert installed_checksum(directory) is None
        (directory / "app").unlink()
        assert installed_checksum(directory) is None
        (directory / released_program.MARKER).write_text('{"checksum": "sha256:aa"}')
        assert installed_checksum(directory) == "sha256:aa"

    @pytest.mark.parametrize(
        "members, failure",
        [
            ({"../../evil": (PROGRAM, 0o755)}, r"holds a path outside itself: \.\./\.\./evil"),
            ({"/etc/evil": (PROGRAM, 0o755)}, "holds a path outside itself: /etc/evil"),
            ({"app": (PROGRAM, 0o755), "link": "../../../etc/passwd"}, "holds a path outside itself"),
            ({"app-1.0/other": (PROGRAM, 0o755), "app-1.0/more": (b"", 0o644)}, "the archive has no app"),
        ],
    )
    def test_a_bad_archive_leaves_nothing(self, tmp_path, members, failure):
        archive = tarball(tmp_path / "app.tar.gz", members)
        with pytest.raises(UserError, match=failure):
            install(archive, sha256(archive), "app", tmp_path / "opt/app/1.0")
        assert list((tmp_path / "opt/app").iterdir()) == []
        assert not (tmp_path / "evil").exists()

    @pytest.mark.parametrize("cut", [3, 40])
    def test_a_damaged_archive_leaves_what_was_there(self, tmp_path, cut):
        directory = tmp_path / "opt/app/1.0"
        good = tarball(tmp_path / "app.tar.gz", {"app": (PROGRAM, 0o755)})
        install(good, sha256(good), "app", directory)
        half = tmp_path / "half.tar.gz"
        half.write_bytes(good.read_bytes()[:cut])
        with pytest.raises(UserError, match="the archive is damaged"):
            install(half, sha256(half), "app", directory)
        assert (directory / "app").read_bytes() == PROGRAM

    def test_a_wrong_checksum_is_reported_with_both(self, tmp_path):
        archive = zipped(tmp_path / "app.zip", {"app": (PROGRAM, 0)})
        with pytest.raises(UserError, match=f"the archive has {sha256(archive)}, expected sha256:aa"):
            install(archive, "sha256:aa", "app", tmp_path / "opt/app/1.0")
        assert not (tmp_path / "opt").exists()


class TestDownload:
    @pytest.fixture
    def network(self, monkeypatch):
        """A network with a list of answers: an HTTP status, or the bytes of a body and its Content-Length."""
        network = SimpleNamespace(answers=[], asked=0, slept=0)

        def fetch_url(module, url, timeout, ca_path):
            network.asked += 1
            answer = network.answers.pop(0)
            if isinstance(answer, int):
                return None, {"status": answer, "msg": "Connection refused" if answer < 0 else "HTTP Error"}
            body, length = answer
            return Body(body), {"status": 200, "msg": "OK", "content-length": str(length)}

        monkeypatch.setattr(downloads, "fetch_url", fetch_url)
        monkeypatch.setattr(downloads.time, "sleep", lambda seconds: None)
        return network

    @pytest.mark.parametrize(
        "answers",
        [
            [(b"whole", 5)],
            [503, (b"whole", 5)],
            [(b"wh", 5), (b"whole", 5)],
            [(TimeoutError("timed out"), 5), -1, (b"whole", 5)],
            [(b"whole", 0)],
            [429, 408, (b"whole", 5)],
        ],
    )
    def test_it_tries_again(self, tmp_path, network, answers):
        network.answers = list(answers)
        downloads.download(None, "http://mirror/app", tmp_path / "app")
        assert (tmp_path / "app").read_bytes() == b"whole"
        assert network.asked == len(answers)

    @pytest.mark.parametrize(
        "answers, failure, count",
        [
            ([404], "it answered 404", 1),
            ([503, 503, 503], "it answered 503", 3),
            ([-1, -1, -1], "Connection refused", 3),
            ([(b"wh", 5)] * 3, "the download broke off after 2 of 5 bytes", 3),
            ([(TimeoutError("timed out"), 5)] * 3, "the download broke off: timed out", 3),
            ([(b"", 1 << 60)], r"the disk of .* has \d+ MiB free, \d+ MiB are needed", 1),
        ],
    )
    def test_it_gives_up_with_the_reason(self, tmp_path, network, answers, failure, count):
        network.answers = list(answers)
        with pytest.raises(UserError, match=failure):
            downloads.download(None, "http://mirror/app", tmp_path / "app")
        assert network.asked == count


class Body(io.BytesIO):
    """A body of bytes that may fail while it is read."""

    def __init__(self, content):
        super().__init__(b"" if isinstance(content, Exception) else content)
        self.failure = content if isinstance(content, Exception) else None

    def read(self, *size):
        if self.failure:
            raise self.failure
        return super().read(*size)
