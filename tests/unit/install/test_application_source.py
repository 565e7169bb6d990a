"""A source gets its own directory: complete, named by its content, or refused with one sentence."""

import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from plugins.module_utils.errors import UserError
from plugins.module_utils.install import application_source as source

UV = shutil.which("uv") or str(Path(__file__).resolve().parents[3] / ".venv/bin/uv")


@pytest.fixture
def tree(tmp_path):
    """An application with some of the files that usually surround one."""
    root = tmp_path / "tree"
    for name, text in {
        "app/main.py": "app = None\n",
        "app/__pycache__/main.pyc": "cache",
        "requirements.txt": "uvicorn==1\n",
        ".git/HEAD": "ref",
        ".env": "KEY=secret",
        ".venv/bin/python": "python",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.fixture
def packed(tree, tmp_path):
    archive = tmp_path / "source.tar.gz"
    source.pack(tree, source.EXCLUDED, archive)
    return archive


def test_history_environments_secrets_and_caches_stay_behind(tree, packed):
    assert [str(path) for path in source.files(tree, source.EXCLUDED)] == ["app/main.py", "requirements.txt"]
    with tarfile.open(packed) as archive:
        assert archive.getnames() == ["source/app/main.py", "source/requirements.txt"]


def test_a_path_can_be_excluded(tree):
    assert [str(path) for path in source.files(tree, [*source.EXCLUDED, "app/main.py"])] == ["requirements.txt"]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda tree: os.utime(tree / "app/main.py", (1, 1)), True),
        (lambda tree: (tree / ".env").write_text("other"), True),
        (lambda tree: (tree / "app/main.py").write_text("app = 1\n"), False),
        (lambda tree: (tree / "app/main.py").rename(tree / "app/other.py"), False),
        (lambda tree: (tree / "app/main.py").chmod(0o755), False),
        (lambda tree: (tree / "link").symlink_to("app"), False),
    ],
)
def test_the_digest_follows_what_the_application_is(tree, change, same):
    before = source.tree_digest(tree, source.EXCLUDED)
    change(tree)
    assert (source.tree_digest(tree, source.EXCLUDED) == before) is same


def test_a_directory_is_created_completely(packed, tmp_path):
    directory = tmp_path / "releases" / "0123"
    noted = source.install(packed, {"tree": "x"}, directory, UV, None)
    assert noted == source.made(directory) == {"origin": {"tree": "x"}, "requirements": "uvicorn==1\n"}
    assert (directory / "app/main.py").stat().st_mode & 0o777 == 0o644
    assert [path.name for path in directory.parent.iterdir()] == ["0123"]


def test_half_a_directory_is_made_anew(packed, tmp_path):
    directory = tmp_path / "releases" / "0123"
    directory.mkdir(parents=True)
    (directory / "half").touch()
    assert source.made(directory) is None
    source.install(packed, {}, directory, UV, None)
    assert not (directory / "half").exists()


@pytest.mark.parametrize(
    ("lacking", "message"),
    [("app/main.py", "no app/main.py"), ("requirements.txt", "neither a uv.lock nor a requirements.txt")],
)
def test_a_source_without_the_application_is_refused_and_leaves_nothing(tree, tmp_path, lacking, message):
    (tree / lacking).unlink()
    (tree / "more").touch()
    archive = tmp_path / "source.tar.gz"
    source.pack(tree, source.EXCLUDED, archive)
    with pytest.raises(UserError, match=message):
        source.install(archive, {}, tmp_path / "releases/0123", UV, None)
    assert list((tmp_path / "releases").iterdir()) == []


def test_a_truncated_archive_is_refused_and_leaves_nothing(packed, tmp_path):
    packed.write_bytes(packed.read_bytes()[:-40])
    with pytest.raises(UserError, match="damaged"):
        source.install(packed, {}, tmp_path / "releases/0123", UV, None)
    assert list((tmp_path / "releases").iterdir()) == []


def test_a_lock_goes_before_the_requirements_file(tree):
    (tree / "pyproject.toml").write_text('[project]\nname = "x"\nversion = "1"\nrequires-python = ">=3.10"\n')
    (tree / "uv.lock").write_text(
        'version = 1\nrequires-python = ">=3.10"\n\n[[package]]\nname = "x"\nversion = "1"\n'
        'source = { virtual = "." }\ndependencies = [{ name = "idna" }]\n\n'
        '[[package]]\nname = "idna"\nversion = "3.10"\nsource = { registry = "https://index.example/simple" }\n'
        f'wheels = [{{ url = "https://index.example/idna-3.10-py3-none-any.whl", hash = "sha256:{"a" * 64}" }}]\n'
    )
    text = source.requirements(tree, UV, None)
    assert text.split() == ["idna==3.10", "\\", f"--hash=sha256:{'a' * 64}"]


def test_requirements_that_are_not_utf_8_are_named(tree):
    (tree / "requirements.txt").write_bytes(b"# caf\xe9\nidna==3.10\n")
    with pytest.raises(UserError, match=r"its requirements\.txt cannot be read: .*write it in UTF-8"):
        source.requirements(tree, UV, None)


# -- repositories ------------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tree):
    def git(*argv):
        named = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
        return subprocess.run(
            ["git", *named, *argv], cwd=tree, check=True, capture_output=True, text=True
        ).stdout.strip()

    shutil.rmtree(tree / ".git")
    git("init", "-q", "-b", "main")
    git("add", "app", "requirements.txt")
    git("commit", "-qm", "first")
    git("tag", "v1")
    return tree, git("rev-parse", "HEAD")


def test_a_tag_and_a_commit_give_the_same_source(repository, tmp_path):
    tree, commit = repository
    for version in ("v1", commit):
        source.export(f"file://{tree}", version, tmp_path / "archive", None)
        directory = tmp_path / "releases" / version
        source.install(tmp_path / "archive", {}, directory, UV, None)
        assert sorted(path.name for path in directory.iterdir()) == [source.MARKER, "app", "requirements.txt"]


@pytest.mark.parametrize("version", ["main", "v2", "--upload-pack=x", "HEAD"])
def test_what_moves_or_is_unknown_is_refused_with_what_is_known(repository, tmp_path, version):
    with pytest.raises(UserError, match=r"there is no tag .*newest tags: v1"):
        source.export(f"file://{repository[0]}", version, tmp_path / "archive", None)


def test_a_repository_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere"):
        source.export(f"file://{tmp_path}/nowhere", "v1", tmp_path / "archive", None)
