"""A Go program from a tag: the commit is compared, the build is complete or absent, one digest per recipe."""

from __future__ import annotations

import dataclasses
import subprocess

import pytest

from plugins.module_utils.errors import UserError
from plugins.module_utils.install import go_program
from plugins.module_utils.install.go_program import Build, Workshop

# Replaces the toolchain: `go -C TREE build … -o TARGET …` writes a program that prints the tag's version.
GO = """#!/bin/sh
[ -e "$2/broken" ] && { echo "main.go:1: syntax error" >&2; exit 1; }
while [ "$1" != -o ]; do shift; done
printf '#!/bin/sh\\necho "version 1.0.0"\\n' > "$2"
chmod 755 "$2"
"""


@pytest.fixture
def repository(tmp_path):
    """Return a repository with the tag 1.0.0 and its commit."""
    tree = tmp_path / "repository"
    tree.mkdir()
    (tree / "main.go").write_text("package main\n")
    git = ["git", "-C", str(tree), "-c", "user.name=x", "-c", "user.email=x@localhost"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "one"], ["tag", "1.0.0"]):
        subprocess.run([*git, *words], check=True)
    (tree / "broken").write_text("")
    for words in (["add", "."], ["commit", "-qm", "two"], ["tag", "2.0.0"]):
        subprocess.run([*git, *words], check=True)

    def commit(tag: str) -> str:
        return subprocess.run([*git, "rev-parse", tag], check=True, capture_output=True, text=True).stdout.strip()

    return tree, commit


@pytest.fixture
def shop(tmp_path):
    go = tmp_path / "go/bin/go"
    go.parent.mkdir(parents=True)
    go.write_text(GO)
    go.chmod(0o755)
    (tmp_path / "home").mkdir()
    return Workshop(tmp_path / "home", tmp_path / "go")


def build_of(repository, tag="1.0.0", **others) -> Build:
    tree, commit = repository
    return Build(**{
        "name": "tool", "version": tag, "source": str(tree), "commit": commit(tag), "package": ".", "toolchain": "1.23",
        "says": "version 1.0.0", **others,
    })  # fmt: skip


def test_only_the_program_stays(repository, shop):
    directory = shop.make(build_of(repository))
    assert directory.name.startswith("1.0.0-")
    assert sorted(path.name for path in directory.iterdir()) == [".build.json", "tool"]
    assert (directory / "tool").stat().st_mode & 0o777 == 0o755
    assert [path.name for path in shop.home.iterdir()] == [directory.name]


@pytest.mark.parametrize(
    ("others", "sentence"),
    [
        ({"commit": "0" * 40}, "expected 0{40}; do not use it"),
        ({"says": "version 9"}, "the built program says 'version 1.0.0' instead of 'version 9'"),
        ({"tag": "2.0.0"}, "syntax error"),
        ({"source": "/nowhere"}, "repository '/nowhere' does not exist"),
    ],
)
def test_failure_leaves_nothing(repository, shop, others, sentence):
    with pytest.raises(UserError, match=sentence):
        shop.make(build_of(repository, **others))
    assert list(shop.home.iterdir()) == []


def test_unknown_tag_is_named(repository, shop):
    with pytest.raises(UserError, match=r"3\.0\.0"):
        shop.make(dataclasses.replace(build_of(repository), version="3.0.0"))


def test_full_disk_is_refused_before_anything_is_fetched(repository, shop, monkeypatch):
    monkeypatch.setattr(go_program, "NEEDED_MIB", 1 << 40)
    with pytest.raises(UserError, match="MiB free"):
        shop.make(build_of(repository))


def test_directory_changes_with_the_recipe_but_not_with_the_mirror(repository):
    one = build_of(repository)
    same = dataclasses.replace(one, source="https://mirror/repository.git")
    assert same.directory_name == one.directory_name
    for change in ({"commit": "1" * 40}, {"toolchain": "1.24"}, {"ldflags": "-s"}, {"package": "./cmd"}):
        assert dataclasses.replace(one, **change).directory_name != one.directory_name
