"""Files of a model on a hub or mirror, read in pieces over HTTP."""

from __future__ import annotations

import urllib.error
import urllib.parse
import urllib.request

from .errors import PlanError

TIMEOUT_S = 15


class _SameHostCredentials(urllib.request.HTTPRedirectHandler):
    """Hubs redirect to a content network: the token must not be sent there."""

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
            # The server ignores ranges: read no more of the body than needed.
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
