"""Where a model's files are read from: a directory, or a hub that supports range requests.

Only the requested pieces are read; of a weight file of many gigabytes only its header.
"""

from __future__ import annotations

import json
from pathlib import Path

from .errors import PlanError

# A repository cloned without its large files has a few lines of text in place of each.
POINTERS = (b"version https://git-lfs.", b"/annex/objects/")


class LocalSource:
    """The files of one directory."""

    def __init__(self, directory: str):
        self.directory = Path(directory)
        self.label = directory
        if not self.directory.is_dir():
            raise PlanError(f"Model directory {directory} does not exist: give the path the files were downloaded to.")

    def names(self) -> list[str]:
        """Return the names of the files in the directory, sorted."""
        return sorted(path.name for path in self.directory.iterdir())

    def exists(self, name: str) -> bool:
        return (self.directory / name).is_file()

    def size(self, name: str) -> int:
        """Return the size of the file in bytes."""
        return (self.directory / name).stat().st_size

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """Return `length` bytes from `start` (fewer at the end of the file); all of it without a length."""
        path = self.directory / name
        try:
            with path.open("rb") as handle:
                handle.seek(start)
                return handle.read() if length is None else handle.read(length)
        except PermissionError:
            raise PlanError(f"{path} may not be read by this user: give it read permission.") from None


def is_pointer(source, name: str) -> bool:
    """Return whether the file is only the pointer to a large file."""
    return source.read(name, 0, 64).startswith(POINTERS)


def pointer_told(source, name: str, what: str = "the file itself") -> str:
    return f"{name} of {source.label} is a large-file pointer and not {what}: run git lfs pull, or download it again."


def read_json(source, name: str) -> dict:
    """Return the JSON object in the file. Raises PlanError if it is not one."""
    try:
        text = source.read(name)
        if text.startswith(POINTERS):
            raise PlanError(pointer_told(source, name))
        value = json.loads(text.decode("utf-8"))
    except FileNotFoundError:
        raise PlanError(f"{name} is not in {source.label}: the model is incomplete, download it again.") from None
    except (ValueError, RecursionError):
        raise PlanError(f"{name} of {source.label} is not valid JSON: download it again.") from None
    if not isinstance(value, dict):
        raise PlanError(f"{name} of {source.label} is not a JSON object: download it again.")
    return value


def cached_snapshot(hf_home: str, model: str, revision: str = "") -> str | None:
    """Return the directory of the model's snapshot in a Hugging Face cache, None if it is not there."""
    root = Path(hf_home) / "hub" / ("models--" + model.replace("/", "--"))
    wanted = revision or "main"
    reference = root / "refs" / wanted
    if reference.is_file():
        wanted = reference.read_text(encoding="utf-8").strip()
    snapshot = root / "snapshots" / wanted
    return str(snapshot) if snapshot.is_dir() else None


def open_model(model: str, revision: str = "", hub_url: str = "", hf_home: str = "", token: str = ""):
    """Return the source that has `model`: (source, GGUF file name or "").

    A path is tried first, then the cache under `hf_home`, then the hub. Raises PlanError if none has it.
    """
    if model.startswith(("/", "./", "../", "~")):
        path = Path(model).expanduser()
        if path.suffix == ".gguf":
            if not path.is_file():
                raise PlanError(f"Model file {path} does not exist: give the path of the GGUF file.")
            return LocalSource(str(path.parent)), path.name
        return LocalSource(str(path)), ""
    if hf_home:
        snapshot = cached_snapshot(hf_home, model, revision)
        if snapshot:
            return LocalSource(snapshot), ""
    if hub_url:
        from .hub import HubSource  # a question about local files does not wait for the import of an HTTP client

        parts = model.split("/")
        if model.endswith(".gguf") and len(parts) > 2:
            return HubSource(hub_url, "/".join(parts[:2]), revision, token), "/".join(parts[2:])
        return HubSource(hub_url, model, revision, token), ""
    raise PlanError(f"Model {model} is not on this host and no hub_url is given: download it first, or name a hub.")
