"""A small client of the Compute Engine API: authentication, retries, pages, operations with the API's reason.

The requests library reads HTTPS_PROXY and REQUESTS_CA_BUNDLE from the environment. Source of the answers' form:
https://cloud.google.com/compute/docs/reference/rest/v1, and google.rpc.Status for errors.
"""

from __future__ import annotations

import os
import random
import re
import ssl
import time
import uuid
from collections.abc import Generator, Iterable, Mapping
from typing import Any

import google.auth
import google.auth.exceptions
import requests
from google.auth.transport.requests import AuthorizedSession
from google.oauth2 import credentials as oauth2
from google.oauth2 import service_account
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from ..errors import UserError

ROOT = "https://compute.googleapis.com/compute/v1/"
DNS = "https://dns.googleapis.com/dns/v1/"
PERMISSIONS = "https://cloudresourcemanager.googleapis.com/v1/projects/{}:testIamPermissions"
SCOPES = (
    "https://www.googleapis.com/auth/compute",
    "https://www.googleapis.com/auth/cloud-platform.read-only",  # to ask which permissions the account has
    "https://www.googleapis.com/auth/ndev.clouddns.readwrite",
)
TIMEOUT = (10, 60)  # seconds to connect, seconds between two bytes

# Statuses after which the same request may succeed: too many requests, a conflicting change, a server error.
TRANSIENT = {409, 429, 500, 502, 503, 504}
# Compute sends the first two with status 403, and the last with 400 while another operation holds the resource.
LATER = {"rateLimitExceeded", "userRateLimitExceeded", "resourceNotReady"}
ABSENT = {"notFound", "RESOURCE_NOT_FOUND"}
TOKEN = re.compile(r"[!-~]+")
JITTER = 0.25  # the largest random share added to a pause, so that clients do not retry together
STOCKOUT = ("ZONE_RESOURCE_POOL_EXHAUSTED", "does not have enough resources", "resource_availability", "stockout")
HINTS = {
    401: "the credentials are not accepted: renew GCP_ACCESS_TOKEN (gcloud auth print-access-token) or run "
    "'gcloud auth application-default login'",
    403: "give the account the role Compute Instance Admin (v1) and Compute Security Admin on the project, "
    "and see that its Compute Engine API is enabled",
}

# Client.list hides the built-in name from the annotations of its class.
Items = list[dict]
Names = list[str]


class GcpError(UserError):
    """A request or an operation that failed; the text is one sentence with the cure.

    `status`: HTTP status, 0 where there is none, `reasons`: the API's codes, `zones_available`: the zones that the API
    names as having capacity.
    """

    def __init__(
        self, message: str, status: int = 0, reasons: Iterable[str] = (), zones_available: Iterable[str] = ()
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reasons = tuple(reasons)
        self.zones_available = tuple(zones_available)

    @property
    def stockout(self) -> bool:
        """Whether the zone has no capacity."""
        text = " ".join((*self.reasons, str(self)))
        return any(word in text for word in STOCKOUT)

    @property
    def exists(self) -> bool:
        """Whether the resource to create exists already."""
        return bool({"alreadyExists", "RESOURCE_ALREADY_EXISTS"}.intersection(self.reasons))

    @property
    def absent(self) -> bool:
        """Whether the resource to change does not exist."""
        return self.status == 404 or bool(ABSENT.intersection(self.reasons))


def credentials_for(service_account_file: str | None = None, environ: Mapping[str, str] | None = None) -> Any:
    """Return credentials: GCP_ACCESS_TOKEN, else the service account file, else application default credentials.

    Raises GcpError where the token is malformed or there are no credentials.
    """
    token = (os.environ if environ is None else environ).get("GCP_ACCESS_TOKEN", "").strip()
    if token and not TOKEN.fullmatch(token):
        raise GcpError(
            "GCP_ACCESS_TOKEN is not one word: it has a line break, a blank or another character that no token has; "
            "set it anew, as GCP_ACCESS_TOKEN=$(gcloud auth print-access-token)."
        )
    try:
        if token:
            return oauth2.Credentials(token)
        if service_account_file:
            return service_account.Credentials.from_service_account_file(service_account_file, scopes=SCOPES)
        return google.auth.default(scopes=SCOPES)[0]
    except (google.auth.exceptions.GoogleAuthError, OSError, ValueError) as error:
        raise GcpError(
            f"No credentials for Google Cloud ({one_line(error)}): set GCP_ACCESS_TOKEN, or gcp_service_account_file "
            "to a readable key file, or run 'gcloud auth application-default login'."
        ) from error


class Client:
    """Sends requests about one project. One client per thread: its session is not thread-safe.

    `tries`: attempts per request, `pause`: seconds before the second attempt, doubled for each further one,
    `operation_timeout`: seconds an operation may take.
    """

    def __init__(
        self, project: str, credentials: Any, tries: int = 6, pause: float = 1.0, operation_timeout: float = 900
    ) -> None:
        self.project = project
        self.tries = max(tries, 1)
        self.pause = pause
        self.operation_timeout = operation_timeout
        # google-auth renews credentials itself. A token alone cannot be renewed: the API's own error is reported.
        token_alone = isinstance(credentials, oauth2.Credentials) and not credentials.refresh_token
        self.session = AuthorizedSession(credentials, **({"refresh_status_codes": ()} if token_alone else {}))

    def get(self, path: str, missing_ok: bool = False, root: str = ROOT, **params: Any) -> Any:
        """Return the dictionary that GET of a path answers; None for a 404 with `missing_ok`. See `request`."""
        try:
            return self.request("GET", path, params=params, root=root)
        except GcpError as error:
            if missing_ok and error.status == 404:
                return None
            raise

    def list(self, path: str, **params: Any) -> Generator[dict, None, None]:
        """Yield the items of all pages, dictionaries with a name.

        Raises GcpError where a part of the list could not be reached: a resource missing from it may exist.
        """
        for page in self._pages(path, params):
            items = page.get("items") or []
            if unreachable(page):
                raise GcpError(f"GET {path}: the Compute API reaches only a part of it (UNREACHABLE): try later.")
            yield from checked_items(items, f"GET {path}")

    def aggregated(self, path: str, kind: str, **params: Any) -> tuple[Items, Names]:
        """Return (items of all zones or regions, zones or regions that could not be reached, sorted).

        `kind`: the field that has the items of one scope. Each item gets the name of its zone or region as "scope".
        Raises GcpError where parts could not be reached and the API does not name them.
        """
        found: Items = []
        unreached: Names = []
        for page in self._pages(path, params):
            scopes = page.get("items") or {}
            if not isinstance(scopes, dict):
                raise unexpected_answer(f"GET {path}")
            unreached += [last_part(one) for one in page.get("unreachables") or []]
            for scope, content in scopes.items():
                if not isinstance(content, dict):
                    raise unexpected_answer(f"GET {path}")
                unreached += [last_part(scope)] if unreachable(content) else []
                found += [
                    {**one, "scope": last_part(scope)} for one in checked_items(content.get(kind) or [], f"GET {path}")
                ]
            if unreachable(page) and not unreached:
                raise GcpError(f"GET {path}: the Compute API reaches only a part of it (UNREACHABLE): try later.")
        return found, sorted(set(unreached))

    def _pages(self, path: str, params: dict) -> Generator[dict, None, None]:
        token = None
        while True:
            page = self.get(path, **params, **({"pageToken": token} if token else {}))
            yield page
            token = page.get("nextPageToken")
            if not token:
                return

    def missing_permissions(self, permissions: Iterable[str]) -> Names | None:
        """Return the permissions that the account lacks on the project, sorted; None where that cannot be asked."""
        try:
            answer = self.session.request(
                "POST", PERMISSIONS.format(self.project), json={"permissions": sorted(permissions)}, timeout=TIMEOUT
            )
            granted = answer.json().get("permissions", []) if answer.ok else None
            return None if granted is None else sorted(set(permissions) - set(granted))
        except (OSError, ValueError, TypeError, AttributeError, google.auth.exceptions.GoogleAuthError):
            return None

    def change(self, method: str, path: str, body: dict | None = None, **params: Any) -> dict:
        """Send a change, wait for its operation and return the finished operation. Raises GcpError where it fails."""
        # The same requestId in a repeated request lets the API recognize it, so nothing is done twice.
        operation = self.request(method, path, body, params={"requestId": str(uuid.uuid4()), **params})
        where = path.split("/")
        return self.wait(
            operation, "/".join(where[:2]) if where[0] in ("zones", "regions") else "global", f"{method} {path}"
        )

    def wait(self, operation: dict, scope: str, what: str) -> dict:
        """Poll an operation until it is done and return it; `scope`: "global", "zones/ZONE" or "regions/REGION".

        Raises GcpError where it fails or is not done in time; `what`: the request, for the sentence.
        """
        deadline = time.monotonic() + self.operation_timeout
        pause = min(self.pause, 0.5)
        if not isinstance(operation.get("name"), str) or not isinstance(operation.get("status"), str):
            raise unexpected_answer(what)
        while operation.get("status") != "DONE":
            if time.monotonic() > deadline:
                raise GcpError(
                    f"{what}: operation {operation['name']} is still {operation.get('status')} after "
                    f"{self.operation_timeout} s: look at it in the console, or raise gcp_operation_timeout."
                )
            time.sleep(pause)
            pause = min(pause * 1.5, 5.0)
            operation = self.get(f"{scope}/operations/{operation['name']}")
        if operation.get("error"):
            raise operation_error(operation, what)
        return operation

    def request(
        self, method: str, path: str, body: dict | None = None, params: dict | None = None, root: str = ROOT
    ) -> dict:
        """Send one request, again after transient errors, and return the JSON object of the answer.

        `path`: relative to the project unless it begins with "projects/", `root`: the API (ROOT or DNS).
        Raises GcpError with the API's reason.
        """
        if not path.startswith("projects/"):
            path = f"projects/{self.project}/{path}".rstrip("/")
        # No urllib3 Retry: it decides by the status alone, and the API's reason in the body says whether to go on.
        for attempt in range(1, self.tries + 1):
            last = attempt == self.tries
            try:
                answer = self.session.request(method, root + path, json=body, params=params, timeout=TIMEOUT)
            except google.auth.exceptions.RefreshError as error:
                # google-auth tried to renew after a 401 and could not.
                raise GcpError(f"{method} {path}: 401 {one_line(error)}; {HINTS[401]}.", status=401) from error
            # All errors of requests are an OSError, and so is a missing REQUESTS_CA_BUNDLE.
            except (OSError, google.auth.exceptions.TransportError) as error:
                if last or is_permanent(error):
                    raise GcpError(
                        f"{method} {path}: the Compute API cannot be reached ({one_line(error)}): check the network, "
                        "HTTPS_PROXY and REQUESTS_CA_BUNDLE."
                    ) from error
                self._sleep(attempt)
                continue
            if answer.ok:
                return read_json(answer, f"{method} {path}")
            refusal = answer_error(answer, f"{method} {path}")
            # Only the caller knows what an existing resource means; a stockout needs another zone, not time.
            final = refusal.exists or refusal.stockout
            later = answer.status_code in TRANSIENT or LATER.intersection(refusal.reasons)
            retry_after = seconds_asked(answer.headers.get("Retry-After"))
            if last or final or not later or retry_after > self.operation_timeout:
                raise refusal
            self._sleep(attempt, retry_after)
        raise AssertionError("unreachable")

    def _sleep(self, attempt: int, retry_after: float = 0) -> None:
        """Wait before the next attempt, at least `retry_after` seconds, if the API says so."""
        pause = max(min(self.pause * 2 ** (attempt - 1), 60), retry_after)
        time.sleep(pause * random.uniform(1, 1 + JITTER))


def seconds_asked(text: str | None) -> float:
    """Return the seconds that a Retry-After header asks for, given as a number or a date; 0 for anything else."""
    try:
        return Retry().parse_retry_after(text or "")
    except InvalidHeader:
        return 0


def unexpected_answer(what: str) -> GcpError:
    """Return the error for an answer that does not have the form that the API documents."""
    return GcpError(
        f"{what}: the answer is not what the Compute API says: see that nothing between here and Google (HTTPS_PROXY) "
        "changes it, and try again."
    )


def unreachable(part: dict) -> bool:
    """Return whether a list, or its part of one zone, is incomplete because something could not be reached."""
    warning = part.get("warning")
    return isinstance(warning, dict) and warning.get("code") == "UNREACHABLE"


def checked_items(items: Any, what: str) -> list[dict]:
    """Return the items of a list. Raises GcpError where one is not an object with a name."""
    if not isinstance(items, list) or not all(isinstance(one, dict) and one.get("name") for one in items):
        raise unexpected_answer(what)
    return items


def last_part(scope: object) -> str:
    """Return the name of a scope: asia-northeast3-a of zones/asia-northeast3-a."""
    return str(scope).rstrip("/").rsplit("/", 1)[-1]


def is_permanent(error: Exception) -> bool:
    """Return whether a retry is useless, as with a proxy that does not exist or a certificate that is not trusted.

    A broken connection is retried, also behind a proxy, where urllib3 reports it as an error of the proxy.
    """
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    cause = getattr(reason, "original_error", None) or next(iter(getattr(reason, "args", ())), None)
    if isinstance(error, (requests.exceptions.ProxyError, requests.exceptions.SSLError)):
        return not isinstance(cause, (ConnectionError, ssl.SSLEOFError))
    broken = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return not isinstance(error, (*broken, google.auth.exceptions.TransportError))


def one_line(value: object) -> str:
    """Return a value's text with all whitespace as single spaces."""
    return " ".join(str(value).split())


def read_json(answer: requests.Response, what: str) -> dict:
    """Return the JSON object of an answer. Raises GcpError where it is something else."""
    try:
        content = answer.json()
    except ValueError as error:
        raise GcpError(
            f"{what}: the answer is not JSON but {answer.headers.get('Content-Type')}: is HTTPS_PROXY a portal?"
        ) from error
    if not isinstance(content, dict):
        raise unexpected_answer(what)
    return content


def answer_error(answer: requests.Response, what: str) -> GcpError:
    """Return the error for a refused request, whatever its body is."""
    status = answer.status_code
    try:
        error = answer.json()["error"]
        message = error.get("message") or answer.reason
        reasons = [one["reason"] for one in error.get("errors") or [] if one.get("reason")]
        details = error.get("details") or []
    except (ValueError, KeyError, TypeError, AttributeError):
        # An HTML page, as load balancers and proxies send it, is quoted without its markup.
        text = one_line(re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", answer.text, flags=re.DOTALL))
        message, reasons, details = text[:200] or answer.reason, [], []
    reasons += [one["reason"] for one in details if isinstance(one, dict) and one.get("reason")]
    quota = any("quota" in reason.lower() or reason in LATER for reason in reasons)
    hint = f"; {HINTS[status]}" if status in HINTS and not quota else ""
    codes = f" ({', '.join(dict.fromkeys(reasons))})" if reasons else ""
    return GcpError(f"{what}: {status}{codes} {one_line(message).rstrip('.')}{hint}.", status, reasons)


def project_sentence(project: str, error: GcpError) -> str:
    """Return what a refused request about the project itself means; only there a 404 means the project."""
    if error.status == 404:
        return f"Project '{project}' does not exist or is not yours: set gcp_project to its ID ({error})"
    return str(error)


def operation_error(operation: dict, what: str) -> GcpError:
    """Return the error for a finished operation that failed, whatever its details are."""
    error = operation["error"] if isinstance(operation["error"], dict) else {}
    errors = [one for one in error.get("errors") or [] if isinstance(one, dict)]
    errors = errors or [{"code": "UNKNOWN", "message": operation.get("httpErrorMessage", "")}]
    zones: list[str] = []
    for one in errors:
        for detail in one.get("errorDetails") or []:
            names = ((detail.get("errorInfo") or {}).get("metadatas") or {}).get("zonesAvailable", "")
            zones += [zone.strip() for zone in names.split(",") if zone.strip()]
    messages = "; ".join(f"{one.get('code')}: {one_line(one.get('message') or '').rstrip('.')}" for one in errors)
    return GcpError(
        f"{what} failed: {messages}.",
        status=operation.get("httpErrorStatusCode", 0),
        reasons=[str(one.get("code", "")) for one in errors],
        zones_available=zones,
    )
