"""Fetch GGUF files to this machine, complete and compatible with each other, before any service is touched.

A file on the hub is fetched from ``<hub>/<repository>/resolve/<commit>/<file>`` as the service's user. An interrupted
download continues where it stopped, and the SHA-256 is verified. A verified file is recorded with its size and time, so
that not every run reads gigabytes again. Plain Python.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .. import unprivileged
from ..errors import UserError
from ..gpu.memory.errors import PlanError
from ..gpu.memory.sources import LocalSource
from ..gpu.memory.tensors import Gguf, gguf_header
from ..install import released_program
from .model_files import COMMIT, HIDDEN

REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
PART = re.compile(r"-\d{5}-of-\d{5}\.gguf\Z")

# Runs as the service's user. The request comes on standard input, including the token, and the answer is JSON.
_FETCH = r"""
import json, os, shutil, sys, time, urllib.error, urllib.parse, urllib.request

want = json.load(sys.stdin)
target = want["target"]


class SameHost(urllib.request.HTTPRedirectHandler):
    # The hub sends large files from another host, which must not get the token.
    def redirect_request(self, request, *rest):
        new = super().redirect_request(request, *rest)
        if new is not None and urllib.parse.urlsplit(new.full_url).netloc != urllib.parse.urlsplit(want["url"]).netloc:
            new.remove_header("Authorization")
        return new


def attempt():
    there = os.path.getsize(target) if os.path.exists(target) else 0
    request = urllib.request.Request(want["url"], headers={"User-Agent": "llm-server"})
    if there:
        request.add_header("Range", f"bytes={there}-")
    if want["token"]:
        request.add_header("Authorization", "Bearer " + want["token"])
    with urllib.request.build_opener(SameHost).open(request, timeout=60) as answer:
        resumed = answer.status == 206
        length = int(answer.headers.get("Content-Length") or 0)
        free = shutil.disk_usage(os.path.dirname(target)).free
        if length > free:
            return f"needs {length >> 20} MiB, the disk of {os.path.dirname(target)} has {free >> 20} MiB free"
        with open(target, "ab" if resumed else "wb") as handle:
            shutil.copyfileobj(answer, handle, 1 << 20)
    got, wanted = os.path.getsize(target), length + (there if resumed else 0)
    if length and got != wanted:
        raise OSError(f"it broke off after {got} of {wanted} bytes")
    return ""


problem = ""
for left in (2, 1, 0):
    try:
        problem = attempt()
        break
    except urllib.error.HTTPError as error:
        if error.code == 416:  # all of it is there
            break
        problem = {
            401: "does not exist, or is private or gated; correct its name or set llama_cpp_huggingface_token",
            403: "is gated and the token has no access to it; ask for access, or set llama_cpp_huggingface_token",
            404: "is not there; correct the repository, the revision or the file",
        }.get(error.code, f"could not be fetched: the hub answered {error.code}")
        if error.code in (401, 403, 404):
            break
    except Exception as error:
        problem = f"could not be fetched: {getattr(error, 'reason', None) or error or type(error).__name__}"
    time.sleep(want["pause"] * (3 - left) if left else 0)
json.dump({"problem": problem}, sys.stdout)
"""


@dataclass(frozen=True)
class Wanted:
    """One file: an absolute path, or a repository of the hub with the file in it, its commit and its SHA-256."""

    what: str  # its name in a sentence, such as `the model` or `adapter code`
    source: str
    file: str = ""
    revision: str = ""
    sha256: str = ""


class Store:
    """Fetched files below ``cache``, owned by ``user``, who must be able to read files given by path too."""

    def __init__(self, cache: Path, user: str | None, hub: str = "", token: str = "", environment: dict | None = None):
        self.cache, self.user, self.hub, self.token = cache, user, hub.rstrip("/"), token
        self.environment = environment or {}
        self.pause = 2.0  # seconds before the hub is asked again

    def place(self, wanted: Wanted) -> tuple[Path, bool]:
        """Return where the file is, and whether it exists and was verified before."""
        if wanted.source.startswith("/"):
            path = Path(wanted.source)
            if not path.is_file():
                raise UserError(f"{wanted.what}: there is no file {path}; correct the path")
            return path, True
        if not REPOSITORY.fullmatch(wanted.source) or not wanted.file:
            raise UserError(f"{wanted.what}: give the absolute path of a .gguf file, or owner/name and the file in it")
        if not COMMIT.fullmatch(wanted.revision):
            raise UserError(f"{wanted.what}: the revision must be a commit of 40 hexadecimal digits")
        if not wanted.sha256:
            raise UserError(f"{wanted.what}: a file of the hub needs its sha256, which the hub shows beside it")
        if PART.search(wanted.file):
            raise UserError(
                f"{wanted.what}: {wanted.file} is one of several parts; join them by llama-gguf-split --merge and "
                "give the path of the whole"
            )
        path = self.cache / wanted.source.replace("/", "--") / wanted.revision / wanted.file
        return path, path.is_file() and self._compared(path, wanted.sha256)

    def bring(self, wanted: Wanted) -> Path:
        """Fetch the file if needed and verify its checksum; return its path. Raises UserError if that fails."""
        path, complete = self.place(wanted)
        if not complete:
            self._fetch(wanted, path)
        elif wanted.sha256 and not self._compared(path, wanted.sha256):
            found = released_program.sha256(path).removeprefix("sha256:")
            if found != wanted.sha256:
                raise UserError(
                    f"{wanted.what}: {path} has the sha256 {found}, expected {wanted.sha256}; it is another file or "
                    "was damaged"
                )
            self._note(path, wanted.sha256)
        return path

    def _fetch(self, wanted: Wanted, path: Path) -> None:
        self._own_folder(path.parent)
        unfinished = path.with_name(f"{path.name}.part")
        request = {
            "url": f"{self.hub}/{wanted.source}/resolve/{wanted.revision}/{wanted.file}",
            "target": str(unfinished), "token": self.token, "pause": self.pause,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", _FETCH], input=json.dumps(request), capture_output=True, text=True, errors="replace",
            cwd="/", umask=0o027, env={**os.environ, **self.environment}, check=False,
            **unprivileged.identity(self.user),
        )  # fmt: skip
        try:
            problem = json.loads(done.stdout)["problem"]
        except (ValueError, KeyError):
            last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            problem = f"could not be fetched: {last}"
        name = f"{wanted.what}: {wanted.file} of {wanted.source} at {wanted.revision}"
        if problem:
            raise UserError(f"{name} {problem}")
        found = released_program.sha256(unfinished).removeprefix("sha256:")
        if found != wanted.sha256:
            unfinished.unlink()
            raise UserError(
                f"{name} has the sha256 {found}, expected {wanted.sha256}; do not use it before you know why"
            )
        unfinished.rename(path)
        self._note(path, wanted.sha256)

    def _own_folder(self, folder: Path) -> None:
        missing = [each for each in [*reversed(folder.parents), folder] if not each.exists()]
        for each in missing:
            each.mkdir(mode=0o750)
            unprivileged.own(each, self.user)

    def _note_of(self, path: Path) -> Path:
        return self.cache / ".compared" / f"{hashlib.sha256(str(path).encode()).hexdigest()[:16]}.json"

    def _compared(self, path: Path, sha256: str) -> bool:
        try:
            return json.loads(self._note_of(path).read_text()) == self._identity(path, sha256)
        except (OSError, ValueError):
            return False

    def _note(self, path: Path, sha256: str) -> None:
        note = self._note_of(path)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(self._identity(path, sha256)))

    @staticmethod
    def _identity(path: Path, sha256: str) -> dict:
        seen = path.stat()
        return {"path": str(path), "sha256": sha256, "size": seen.st_size, "time": seen.st_mtime_ns}

    def unreadable(self, path: Path) -> str:
        """Return why the service's user cannot read a file; "" if the user can."""
        if HIDDEN.match(str(path.resolve())):
            return f"{path} is in a home directory, which the service does not see; move it below /srv"
        return unprivileged.barred(path, self.user, "r") or ""


def header(wanted: Wanted, path: Path) -> Gguf:
    """Return the header of a file. Raises UserError if it is truncated, damaged or not a GGUF file."""
    try:
        return gguf_header(LocalSource(str(path.parent)), path.name)
    except PlanError as error:
        raise UserError(f"{wanted.what}: {str(error).rstrip('.')}") from None


def model_problem(model: Gguf) -> str:
    """Return why a file cannot be served as a model; "" if it can."""
    if model.metadata.get("general.type", "model") != "model":
        return f"is of the type {model.metadata['general.type']}, not a model"
    return "" if model.tensors and model.metadata.get("general.architecture") else "has no model inside"


def adapter_problem(adapter: Gguf, model: Gguf) -> str:
    """Return why an adapter does not match the model; "" if it does. Source: llama-adapter.cpp of llama.cpp."""
    if adapter.metadata.get("general.type") != "adapter" or adapter.metadata.get("adapter.type") != "lora":
        return "is not a LoRA adapter; convert it by convert_lora_to_gguf.py"
    own, base = (each.metadata.get("general.architecture") for each in (adapter, model))
    if own != base:
        return f"is for the architecture {own}, the model has {base}"
    if not adapter.tensors:
        return "has no tensors"
    for name, tensor in adapter.tensors.items():
        target, _, part = name.rpartition(".lora_")
        if target not in model.tensors:
            return f"changes {target or name}, which the model does not have"
        shape = model.tensors[target].shape
        # The adapter of the embedding is stored transposed.
        sides = {"a": (-1, -1), "b": (0, 0)} if target != "token_embd.weight" else {"a": (-1, 0), "b": (0, -1)}
        mine, theirs = sides.get(part, (0, 0))
        if part in sides and len(shape) == 2 and tensor.shape[mine] != shape[theirs]:
            return f"has {name} of the shape {list(tensor.shape)}, which does not fit the model's {list(shape)}"
    return ""


def fingerprint(paths: list[Path]) -> str:
    """Return 16 hexadecimal digits that change when one of the files is replaced."""
    found = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(paths)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]
