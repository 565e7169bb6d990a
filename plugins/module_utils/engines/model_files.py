"""Fetch a model and its adapters to this machine at their revision, before any service is touched.

The hub's own client, `huggingface_hub`, downloads them in the interpreter of the engine's environment and as the
service's user. A snapshot at a commit never changes, so a complete one is not requested again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path

from .. import unprivileged
from ..errors import UserError

COMMIT = re.compile(r"[0-9a-f]{40}")

# Runs in the engine's environment. Arguments and answer are JSON; the token is in an environment variable.
_FETCH = r"""
import json, shutil, sys
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub import errors as hub

want = json.load(sys.stdin)
try:
    info = HfApi().model_info(want["repo"], revision=want["revision"], files_metadata=True)
    size = sum(file.size or 0 for file in info.siblings)
    free = shutil.disk_usage(want["cache"]).free
    if size > free:
        answer = {"error": f"needs {size >> 20} MiB, the disk of {want['cache']} has {free >> 20} MiB free"}
    else:
        answer = {"path": snapshot_download(want["repo"], revision=want["revision"], cache_dir=want["cache"])}
except hub.GatedRepoError:
    answer = {"error": "is gated and the token has no access to it; ask for access and set vllm_huggingface_token"}
except hub.RevisionNotFoundError:
    answer = {"error": f"has no revision {want['revision']}"}
except hub.RepositoryNotFoundError:
    answer = {"error": "does not exist or is private; correct its name or set vllm_huggingface_token"}
except Exception as error:
    first = (str(error).splitlines() or [""])[0]
    answer = {"error": f"could not be fetched: {type(error).__name__}: {first}"}
json.dump(answer, sys.stdout)
"""


# Runs as the engine's user: reports which files it cannot open.
_OPEN = r"""
import os, sys
for place in sys.argv[1:]:
    try:
        for name in sorted(os.listdir(place)):
            if not os.path.isdir(os.path.join(place, name)):
                open(os.path.join(place, name), "rb").close()
    except OSError as error:
        print(f"{error.filename}: {error.strerror}")
"""
# Runs in the engine's environment: reports whether the tables of transformers and vLLM have a model's type. They are
# read and not imported, which would take as long as the engine's start. Without the tables it reports nothing.
_KNOWS = r"""
import importlib.util, pathlib, sys
tables = {"transformers": "models/auto/*.py", "vllm": "transformers_utils/config.py"}
found = {name: importlib.util.find_spec(name) for name in tables}
places = {name: pathlib.Path(spec.origin).parent for name, spec in found.items() if spec and spec.origin}
text = "".join(file.read_text() for name, place in places.items() for file in place.glob(tables[name]))
if "transformers" in places:
    kind = sys.argv[1]
    print("known" if f'"{kind}"' in text or f" {kind}=" in text else "unknown")
"""
HIDDEN = re.compile(r"/(home|root|run/user)(/|$)")  # from units with ProtectHome=yes


class Hub:
    """Snapshots below ``cache``, fetched by ``python`` as ``user`` with the variables of ``environment``."""

    def __init__(self, cache: Path, python: str, user: str | None, environment: dict):
        self.cache, self.python, self.user, self.environment = cache, python, user, environment

    def place(self, source: str, revision: str | None) -> tuple[Path, bool]:
        """Return ``(directory, complete)`` of a source: an absolute path unchanged, a hub name as its snapshot.

        Raises UserError for a missing path and for a hub name without a full commit.
        """
        if source.startswith("/"):
            if not Path(source).is_dir():
                raise UserError(f"{source}: there is no such directory; correct vllm_model or vllm_lora_adapters")
            return Path(source), True
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", source):
            raise UserError(f"{source!r} is neither an absolute path nor a name of the form owner/model")
        if not COMMIT.fullmatch(revision or ""):
            raise UserError(f"{source} needs its revision as a commit of 40 hexadecimal digits, not {revision!r}")
        snapshot = self.cache / f"models--{source.replace('/', '--')}" / "snapshots" / revision
        return snapshot, self._note(source, revision).exists() and snapshot.is_dir()

    def unreadable(self, places: list[Path]) -> list[str]:
        """Return what the engine's user cannot read in ``places``; root, who does the other checks, can read all."""
        hidden = [place for place in places if HIDDEN.match(str(place.resolve()))]
        problem = "is in a home directory, which the service does not see; move it below /srv."
        problems = [f"{place} {problem}" for place in hidden]
        seen = [str(place) for place in places if place not in hidden]
        lines = unprivileged.run(self.python, "-c", _OPEN, *seen, user=self.user).splitlines() if seen else []
        cure = "let it, such as by chmod -R a+rX on the directory, or repair the file."
        return problems + [f"{self.user} cannot read {line}; {cure}" for line in lines]

    def unknown(self, model_type: str, place: Path) -> list[str]:
        """Return an error if only untrusted code of the repository in ``place`` knows the ``model_type``."""
        if not model_type or not Path(self.python).exists():
            return []
        if unprivileged.run(self.python, "-c", _KNOWS, model_type, user=self.user).strip() != "unknown":
            return []
        problem = f"config.json of {place} is of the type {model_type}, which only the code beside it knows"
        return [f"{problem}: set vllm_trust_remote_code to true."]

    def fetch(self, source: str, revision: str) -> Path:
        """Download one complete snapshot and record it; return its directory."""
        done = subprocess.run(
            [self.python, "-c", _FETCH],
            input=json.dumps({"repo": source, "revision": revision, "cache": str(self.cache)}),
            capture_output=True, text=True, errors="replace", check=False, cwd="/",
            **unprivileged.identity(self.user), env={**os.environ, **self.environment}, umask=0o022,
        )  # fmt: skip
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            answer = {"error": f"could not be fetched: {last}"}
        if "error" in answer:
            raise UserError(f"{source} at {revision}: {answer['error']}")
        note = self._note(source, revision)
        note.parent.mkdir(exist_ok=True)
        note.touch()
        return Path(answer["path"])

    @staticmethod
    def fingerprint(places: list[Path]) -> str:
        """Return 16 hexadecimal digits that change when a file in ``places`` is replaced, or "" without places.

        A path does not say what it contains; names, sizes and times do, without reading gigabytes.
        """
        found = [
            (str(place), path.name, path.stat().st_size, path.stat().st_mtime_ns)
            for place in sorted(places)
            for path in sorted(place.iterdir())
            if path.is_file()
        ]
        return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16] if places else ""

    def _note(self, source: str, revision: str) -> Path:
        return self.cache / ".whole" / f"{source.replace('/', '--')}@{revision}"
