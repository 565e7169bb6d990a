"""Where a model's files are read from: a directory, or a hub that answers range requests.

Only the pieces that are asked for are read; a weight file of many gigabytes costs its header.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from .errors import PlanError

TIMEOUT_S = 15
# A repository that was cloned without its large files has a few lines in the place of each.
POINTERS = (b"version https://git-lfs.", b"/annex/objects/")


class LocalSource:
    """The files of one directory."""

    def __init__(self, directory: str):
        self.directory = Path(directory)
        self.label = directory
        if not self.directory.is_dir():
            raise PlanError(f"Model directory {directory} does not exist: give the path the files were downloaded to.")

    def names(self) -> list[str]:
        """Names of the files in the directory, sorted."""
        return sorted(path.name for path in self.directory.iterdir())

    def exists(self, name: str) -> bool:
        return (self.directory / name).is_file()

    def size(self, name: str) -> int:
        """Bytes of the file."""
        return (self.directory / name).stat().st_size

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """`length` bytes from `start` (fewer at the end of the file); all of it without a length."""
        path = self.directory / name
        try:
            with path.open("rb") as handle:
                handle.seek(start)
                return handle.read() if length is None else handle.read(length)
        except PermissionError:
            raise PlanError(f"{path} may not be read by this user: give it read permission.") from None


class _SameHostCredentials(urllib.request.HTTPRedirectHandler):
    """Hubs redirect to a content network: the token must not travel there."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None and urllib.parse.urlsplit(newurl).netloc != urllib.parse.urlsplit(req.full_url).netloc:
            new.headers.pop("Authorization", None)
            new.unredirected_hdrs.pop("Authorization", None)
        return new


class HubSource:
    """The files of one model revision on a hub or mirror (`<base>/<model>/resolve/<revision>/<file>`)."""

    def __init__(self, base: str, model: str, revision: str = "main", token: str = ""):
        self.model, self.revision, self.token = model, revision or "main", token
        self.base = base.rstrip("/")
        self.label = f"{model} at {self.base}"
        self._sizes: dict[str, int] = {}
        self._opener = urllib.request.build_opener(_SameHostCredentials)

    def names(self) -> list[str]:
        return []

    def _request(self, name: str, start: int, length: int | None) -> bytes:
        quoted = "/".join(urllib.parse.quote(part) for part in (self.model, "resolve", self.revision, name))
        request = urllib.request.Request(f"{self.base}/{quoted}")
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        if length is not None:
            request.add_header("Range", f"bytes={start}-{start + length - 1}")
        with self._opener.open(request, timeout=TIMEOUT_S) as answer:
            content_range = answer.headers.get("Content-Range", "")
            if "/" in content_range and content_range.rsplit("/", 1)[1].isdigit():
                self._sizes[name] = int(content_range.rsplit("/", 1)[1])
            elif answer.headers.get("Content-Length"):
                self._sizes[name] = int(answer.headers["Content-Length"])
            if answer.status == 206 or length is None:
                return answer.read() if length is None else answer.read(length)
            # The server ignores ranges: take no more of the body than what was wanted.
            return answer.read(start + length)[start:]

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        try:
            return self._request(name, start, length)
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise PlanError(
                    f"Model {self.model} is gated or private (HTTP {error.code} from {self.base}): "
                    "accept its licence and give a token that may read it."
                ) from None
            if error.code == 404:
                raise PlanError(
                    f"{name} of model {self.model} at revision {self.revision} is not on {self.base}: "
                    "check the model's name and revision."
                ) from None
            raise PlanError(f"{self.base} answered HTTP {error.code} for {name} of {self.model}: try again.") from None
        except (urllib.error.URLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise PlanError(f"{self.base} cannot be reached ({reason}): check hub_url, or give a local path.") from None

    def exists(self, name: str) -> bool:
        try:
            self._request(name, 0, 1)
        except urllib.error.HTTPError as error:
            if error.code in (404, 416):
                return error.code == 416
            self.read(name, 0, 1)
        except (urllib.error.URLError, OSError, ValueError):
            self.read(name, 0, 1)
        return True

    def size(self, name: str) -> int:
        if name not in self._sizes:
            self.read(name, 0, 1)
        return self._sizes.get(name, 0)


def is_pointer(source, name: str) -> bool:
    """Whether there is the pointer to a large file in the place of the file."""
    return source.read(name, 0, 64).startswith(POINTERS)


def pointer_told(source, name: str, what: str = "the file itself") -> str:
    return f"{name} of {source.label} is a large-file pointer and not {what}: run git lfs pull, or download it again."


def read_json(source, name: str) -> dict:
    """The JSON object in the file; a file that is none is a PlanError."""
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
    """Directory of the model's snapshot in a Hugging Face cache, None when it is not there."""
    root = Path(hf_home) / "hub" / ("models--" + model.replace("/", "--"))
    wanted = revision or "main"
    reference = root / "refs" / wanted
    if reference.is_file():
        wanted = reference.read_text(encoding="utf-8").strip()
    snapshot = root / "snapshots" / wanted
    return str(snapshot) if snapshot.is_dir() else None


def open_model(model: str, revision: str = "", hub_url: str = "", hf_home: str = "", token: str = ""):
    """The source that holds `model`: (source, GGUF file name or "").

    A path wins, then the cache under `hf_home`, then the hub. PlanError when none has it.
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
        parts = model.split("/")
        if model.endswith(".gguf") and len(parts) > 2:
            return HubSource(hub_url, "/".join(parts[:2]), revision, token), "/".join(parts[2:])
        return HubSource(hub_url, model, revision, token), ""
    raise PlanError(f"Model {model} is not on this host and no hub_url is given: download it first, or name a hub.")
