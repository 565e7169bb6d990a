"""The source of an application as a directory named by its inputs: complete or absent, never changed in place.

Plain Python; fetching is passed in or done by git, so everything here can be tested without a network.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import shutil
import tarfile
import tempfile
from pathlib import Path

from .. import unprivileged
from ..errors import UserError
from .released_program import unpack

MARKER = ".source.json"
TAGS_SHOWN = 8
# Contents of a working tree that are not source: history, environments, secrets and caches.
EXCLUDED = [".git", ".venv", ".env", "__pycache__", "*.pyc", ".pytest_cache", ".ruff_cache", ".mypy_cache"]


def named(origin: dict) -> str:
    """Return 12 hexadecimal digits over the inputs of a source, such as its archive's checksum."""
    return hashlib.sha256(json.dumps(origin, sort_keys=True).encode()).hexdigest()[:12]


def made(directory: Path) -> dict | None:
    """Return the record of how ``directory`` was made (origin, requirements), or None if it is not complete."""
    try:
        return json.loads((directory / MARKER).read_text())
    except (OSError, ValueError):
        return None


# -- a tree on the controller ---------------------------------------------------------------------------------------


def files(tree: Path, excluded: list[str]) -> list[Path]:
    """Return the files and links of ``tree``, relative and sorted, without those that match ``excluded``."""
    found = []
    for path in sorted(tree.iterdir()):
        found += _below(tree, path, excluded)
    return found


def _below(tree: Path, path: Path, excluded: list[str]) -> list[Path]:
    relative = path.relative_to(tree)
    if any(fnmatch.fnmatch(path.name, one) or fnmatch.fnmatch(str(relative), one) for one in excluded):
        return []
    if path.is_dir() and not path.is_symlink():
        return [one for child in sorted(path.iterdir()) for one in _below(tree, child, excluded)]
    return [relative]


def tree_digest(tree: Path, excluded: list[str]) -> str:
    """Return ``sha256:<hex>`` over names, contents, links and executable bits; owners and times do not count."""
    total = hashlib.sha256()
    for relative in files(tree, excluded):
        path = tree / relative
        if path.is_symlink():
            kind, text = "link", str(path.readlink()).encode()
        else:
            kind, text = ("program" if path.stat().st_mode & 0o100 else "file"), path.read_bytes()
        total.update(f"{kind} {relative}\0{hashlib.sha256(text).hexdigest()}\n".encode())
    return f"sha256:{total.hexdigest()}"


def pack(tree: Path, excluded: list[str], archive: Path) -> None:
    """Write the files of ``tree`` below one top folder into the .tar.gz ``archive``."""
    with tarfile.open(archive, "w:gz") as packed:
        for relative in files(tree, excluded):
            packed.add(tree / relative, arcname=f"source/{relative}", recursive=False)


# -- a repository -----------------------------------------------------------------------------------------------------


def export(repository: str, version: str, archive: Path, user: str | None) -> None:
    """Write the tag or commit ``version`` of a git repository into the .tar ``archive``, below one top folder.

    Raises UserError for a repository that cannot be read, and if ``version`` is neither a tag nor a full commit
    hash.
    """
    with tempfile.TemporaryDirectory(prefix="repository-") as stage:
        unprivileged.own(Path(stage), user)
        clone, packed = f"{stage}/clone", f"{stage}/source.tar"

        def git(*argv: str) -> str:
            return unprivileged.run("git", *argv, user=user, environment=environment)

        environment = {
            "LC_ALL": "C",
            "GIT_TERMINAL_PROMPT": "0",
            # A stalled mirror must not block the run.
            "GIT_HTTP_LOW_SPEED_LIMIT": "1000",
            "GIT_HTTP_LOW_SPEED_TIME": "60",
        }
        git("clone", "--quiet", "--bare", "--", repository, clone)
        commit = _commit(git(f"--git-dir={clone}", "tag", "--list", "--sort=-v:refname").split(), version)
        git(f"--git-dir={clone}", "archive", "--format=tar", "--prefix=source/", f"--output={packed}", commit)
        shutil.copyfile(packed, archive)


def _commit(tags: list[str], version: str) -> str:
    if version in tags:
        return f"refs/tags/{version}"
    if re.fullmatch(r"[0-9a-f]{40}", version):
        return version
    known = ", ".join(tags[:TAGS_SHOWN]) or "none"
    raise UserError(
        f"there is no tag {version} (newest tags: {known}); name a tag or a commit by its 40 digits, "
        "since a branch moves"
    )


# -- from an archive to a directory -----------------------------------------------------------------------------------


def install(archive: Path, origin: dict, directory: Path, uv: str, user: str | None) -> dict:
    """Make ``directory`` from ``archive``, complete or not at all; return its record.

    Everything belongs to root and is readable by all. The requirements are read here, once, so that a later run needs
    neither uv nor the source for them.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{directory.name}-", dir=directory.parent) as stage:
        Path(stage).chmod(0o755)
        tree = Path(stage) / "source"
        tree.mkdir()
        unpack(archive, tree)
        _settle(tree)
        if not (tree / "app" / "main.py").is_file():
            raise UserError("it has no app/main.py, which is what the service runs (app.main:app)")
        noted = {"origin": origin, "requirements": requirements(tree, uv, user)}
        (tree / MARKER).write_text(json.dumps(noted, indent=1))
        (tree / MARKER).chmod(0o644)
        if directory.exists():
            shutil.rmtree(directory)
        tree.rename(directory)
    return noted


def _settle(tree: Path) -> None:
    """Make root the owner of everything below ``tree``, readable by all and writable by nobody else."""
    for path in [tree, *tree.rglob("*")]:
        if path.is_symlink():
            continue
        if not (path.is_dir() or path.is_file()):
            raise UserError(f"it has {path.relative_to(tree)}, which is neither a file nor a directory")
        shutil.chown(path, 0, 0)
        path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)


def requirements(tree: Path, uv: str, user: str | None) -> str:
    """Return the application's requirements with their hashes, from its uv.lock or else from its requirements.txt."""
    if (tree / "uv.lock").is_file():
        try:
            return unprivileged.run(
                uv, "export", "--project", str(tree), "--frozen", "--no-dev", "--no-emit-project", "--no-header",
                "--no-annotate", "--offline", "--no-cache", "--no-python-downloads", "--quiet", user=user,
            )  # fmt: skip
        except unprivileged.CommandError as error:
            raise UserError(f"its uv.lock cannot be read: {error}") from None
    if (tree / "requirements.txt").is_file():
        try:
            return (tree / "requirements.txt").read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise UserError(f"its requirements.txt cannot be read: {error}; write it in UTF-8") from None
    raise UserError("it has neither a uv.lock nor a requirements.txt: the application brings its requirements")
