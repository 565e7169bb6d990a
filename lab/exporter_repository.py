"""Stand-in of the dcgm-exporter repository: its tags, each with the program of `lab/stand_ins/dcgm_exporter`.

It is a bare repository in the mirror, at its origin's path, and git reads it over plain HTTP.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from lab import builds, go_toolchain, host

SOURCE = Path(__file__).with_name("stand_ins") / "dcgm_exporter"
PLACE = "github.com/NVIDIA/dcgm-exporter.git"
# The tags, oldest first, each with the major version of the library that it opens.
TAGS = {"3.3.8-3.6.0": 3, "3.3.9-3.6.1": 3, "4.0.0-4.0.1": 4}
MISSING = {3: "the engine's library cannot be opened", 4: "the libdcgm.so.4 library was not found"}
WHO = {"NAME": "laboratory", "EMAIL": "laboratory@localhost", "DATE": "2025-01-01T00:00:00Z"}
IDENTITY = {f"GIT_{role}_{key}": value for role in ("AUTHOR", "COMMITTER") for key, value in WHO.items()}


def ensure() -> dict[str, Any]:
    """Create the repository if it is missing or outdated, and return what a build of the exporter needs.

    Returns `commits` {tag: commit} and `go`, the version and checksums of the toolchain in the mirror.
    """
    host.ensure_packages({"git": "git"})
    target = builds.MIRROR / PLACE
    recipe = host.digest([path.read_text() for path in [Path(__file__), *sorted(SOURCE.rglob("*"))] if path.is_file()])
    stamp = target / "recipe"
    with host.lock("exporter"):
        if not stamp.exists() or stamp.read_text() != recipe:
            with host.step("Making the stand-in of the dcgm-exporter repository", "1 s"):
                make(target)
            stamp.write_text(recipe)
    commits = {tag: host.run(["git", "-C", str(target), "rev-parse", f"{tag}^{{commit}}"]).strip() for tag in TAGS}
    return {"commits": commits, "go": go_toolchain.ensure()}


def make(target: Path) -> None:
    """Write the repository: one commit per tag, always with the same digests."""
    shutil.rmtree(target, ignore_errors=True)
    builds.prepared(target.parent)
    with tempfile.TemporaryDirectory() as work:
        tree = Path(work) / "tree"
        shutil.copytree(SOURCE, tree)
        git("init", "--quiet", "--initial-branch=main", str(tree))
        for tag, major in TAGS.items():
            (tree / "cmd/dcgm-exporter/library.go").write_text(library(major))
            git("-C", str(tree), "add", "--all")
            git("-C", str(tree), "commit", "--quiet", "--allow-empty", "--message", f"Release {tag}")
            git("-C", str(tree), "tag", tag)
        git("clone", "--quiet", "--bare", str(tree), str(target))
    git("-C", str(target), "update-server-info")


def library(major: int) -> str:
    """Return library.go of a release; the name of the library it opens has no major version up to 3.x."""
    name = "libdcgm.so" if major < 4 else f"libdcgm.so.{major}"
    return f"""package main

// The library that this release opens: without a major up to 3.x, with it from 4.0.0.
const (
	libraryMajor   = "{major}"
	libraryName    = "{name}"
	libraryMissing = "{MISSING[major]}"
)
"""


def git(*words: str) -> None:
    host.run(["git", *words], env={**IDENTITY, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"})
