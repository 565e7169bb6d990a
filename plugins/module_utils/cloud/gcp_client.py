"""A small client of the Compute Engine API: authentication, retries, pages, operations with the API's reason.

The requests library honours HTTPS_PROXY and REQUESTS_CA_BUNDLE, so nothing about the way is set here.
"""

from __future__ import annotations

import datetime
import email.utils
import os
import random
import re
import ssl
import time
import uuid

import google.auth
import google.auth.exceptions
import requests
from google.auth.transport.requests import AuthorizedSession
from google.oauth2 import credentials as oauth2
from google.oauth2 import service_account

ROOT = "https://compute.googleapis.com/compute/v1/"
DNS = "https://dns.googleapis.com/dns/v1/"
PERMISSIONS = "https://cloudresourcemanager.googleapis.com/v1/projects/{}:testIamPermissions"
SCOPES = (
    "https://www.googleapis.com/auth/compute",
    "https://www.googleapis.com/auth/cloud-platform.read-only",  # to ask which permissions the account has
    "https://www.googleapis.com/auth/ndev.clouddns.readwrite",
)
TIMEOUT = (10, 60)  # seconds to connect, seconds between two bytes

# Answers that say "later": too many requests, a conflict with another change, a server in trouble.
TRANSIENT = {409, 429, 500, 502, 503, 504}
# Compute says the first two with status 403, and the last with 400 of a resource that another operation still holds.
LATER = {"rateLimitExceeded", "userRateLimitExceeded", "resourceNotReady"}
ABSENT = {"notFound", "RESOURCE_NOT_FOUND"}
TOKEN = re.compile(r"[!-~]+")
JITTER = 0.25  # share of a pause that is added by chance, so that clients do not come back together
STOCKOUT = ("ZONE_RESOURCE_POOL_EXHAUSTED", "does not have enough resources", "resource_availability", "stockout")
HINTS = {
    401: "the credentials are not accepted: renew GCP_ACCESS_TOKEN (gcloud auth print-access-token) or run "
    "'gcloud auth application-default login'",
    403: "give the account the role Compute Instance Admin (v1) and Compute Security Admin on the project, "
    "and see that its Compute Engine API is enabled",
}


class GcpError(Exception):
    """One refusal of the API or of an operation.

    Attributes: status (HTTP status, 0 where there is none), reasons (the API's codes), stockout (the zone has no
    capacity), zones_available (zones that the API names as having some).
    """

    def __init__(self, message, status=0, reasons=(), zones_available=()):
        super().__init__(message)
        self.status = status
        self.reasons = tuple(reasons)
        self.zones_available = tuple(zones_available)

    @property
    def stockout(self):
        said = " ".join((*self.reasons, str(self)))
        return any(word in said for word in STOCKOUT)

    @property
    def exists(self):
        """Whether what was to be made is there already."""
        return bool({"alreadyExists", "RESOURCE_ALREADY_EXISTS"}.intersection(self.reasons))

    @property
    def absent(self):
        """Whether what was to be changed is not there."""
        return self.status == 404 or bool(ABSENT.intersection(self.reasons))


def credentials_for(service_account_file=None, environ=None):
    """Choose credentials: GCP_ACCESS_TOKEN, else the service account file, else application default credentials."""
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
    """Requests within one project; `tries` counts attempts, `pause` (s) is the first wait between two of them."""

    def __init__(self, project, credentials, tries=6, pause=1.0, operation_timeout=900):
        self.project = project
        self.tries = max(tries, 1)
        self.pause = pause
        self.operation_timeout = operation_timeout
        # google-auth renews what it can renew itself; of a token alone the API's own refusal is to be told.
        token_alone = isinstance(credentials, oauth2.Credentials) and not credentials.refresh_token
        self.session = AuthorizedSession(credentials, **({"refresh_status_codes": ()} if token_alone else {}))

    def get(self, path, missing_ok=False, root=ROOT, **params):
        """Return the answer to GET of a path below the project; None for a 404 when missing_ok."""
        try:
            return self.request("GET", path, params=params, root=root)
        except GcpError as error:
            if missing_ok and error.status == 404:
                return None
            raise

    def list(self, path, **params):
        """Yield the items of every page, each an object with a name.

        Raises GcpError where a part of the list could not be reached: what is missing from it may be there.
        """
        for page in self._pages(path, params):
            items = page.get("items") or []
            if unreachable(page):
                raise GcpError(f"GET {path}: the Compute API reaches only a part of it (UNREACHABLE): try later.")
            yield from named(items, f"GET {path}")

    def aggregated(self, path, kind, **params):
        """Return (items of every zone or region with the scope's last name as "scope", scopes not reached)."""
        found, dark = [], []
        for page in self._pages(path, params):
            scopes = page.get("items") or {}
            if not isinstance(scopes, dict):
                raise not_understood(f"GET {path}")
            dark += [last_part(one) for one in page.get("unreachables") or []]
            for scope, content in scopes.items():
                if not isinstance(content, dict):
                    raise not_understood(f"GET {path}")
                dark += [last_part(scope)] if unreachable(content) else []
                found += [{**one, "scope": last_part(scope)} for one in named(content.get(kind) or [], f"GET {path}")]
            if unreachable(page) and not dark:
                raise GcpError(f"GET {path}: the Compute API reaches only a part of it (UNREACHABLE): try later.")
        return found, sorted(set(dark))

    def _pages(self, path, params):
        token = None
        while True:
            page = self.get(path, **params, **({"pageToken": token} if token else {}))
            yield page
            token = page.get("nextPageToken")
            if not token:
                return

    def lacking(self, permissions):
        """Return which of the permissions the account lacks on the project; None where that cannot be asked."""
        try:
            answer = self.session.request(
                "POST", PERMISSIONS.format(self.project), json={"permissions": sorted(permissions)}, timeout=TIMEOUT
            )
            granted = answer.json().get("permissions", []) if answer.ok else None
            return None if granted is None else sorted(set(permissions) - set(granted))
        except (OSError, ValueError, TypeError, AttributeError, google.auth.exceptions.GoogleAuthError):
            return None

    def change(self, method, path, body=None, **params):
        """Send a change and wait for its operation; return the finished operation."""
        # The same requestId in a repeated request lets the API recognize it, so nothing is done twice.
        operation = self.request(method, path, body, params={"requestId": str(uuid.uuid4()), **params})
        where = path.split("/")
        return self.wait(
            operation, "/".join(where[:2]) if where[0] in ("zones", "regions") else "global", f"{method} {path}"
        )

    def wait(self, operation, scope, what):
        """Ask for an operation until it is done. `scope`: "global" or "zones/ZONE"."""
        deadline = time.monotonic() + self.operation_timeout
        pause = min(self.pause, 0.5)
        if not isinstance(operation.get("name"), str) or not isinstance(operation.get("status"), str):
            raise not_understood(what)
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

    def request(self, method, path, body=None, params=None, root=ROOT):
        """Send one request, again while the answer is transient; return the JSON body.

        `path` is relative to the project unless it begins with "projects/"; `root`: ROOT or DNS, the API that is asked.
        Raises GcpError with the API's reason.
        """
        if not path.startswith("projects/"):
            path = f"projects/{self.project}/{path}".rstrip("/")
        for attempt in range(1, self.tries + 1):
            last = attempt == self.tries
            try:
                answer = self.session.request(method, root + path, json=body, params=params, timeout=TIMEOUT)
            except google.auth.exceptions.RefreshError as error:
                # google-auth tried to renew after a 401 and could not.
                raise GcpError(f"{method} {path}: 401 {one_line(error)}; {HINTS[401]}.", status=401) from error
            # All that requests raises is an OSError, as is a REQUESTS_CA_BUNDLE that is not there.
            except (OSError, google.auth.exceptions.TransportError) as error:
                if last or lasting(error):
                    raise GcpError(
                        f"{method} {path}: the Compute API cannot be reached ({one_line(error)}): check the network, "
                        "HTTPS_PROXY and REQUESTS_CA_BUNDLE."
                    ) from error
                self._sleep(attempt)
                continue
            if answer.ok:
                return read_json(answer, f"{method} {path}")
            error = answer_error(answer, f"{method} {path}")
            # Only the caller knows what an existing resource means, and a stockout is worth another zone, not time.
            final = error.exists or error.stockout
            later = answer.status_code in TRANSIENT or LATER.intersection(error.reasons)
            asked = seconds_asked(answer.headers.get("Retry-After"))
            if last or final or not later or asked > self.operation_timeout:
                raise error
            self._sleep(attempt, asked)
        raise AssertionError("unreachable")

    def _sleep(self, attempt, asked=0):
        """Wait before the next attempt, at least the seconds that the API asked for."""
        pause = max(min(self.pause * 2 ** (attempt - 1), 60), asked)
        time.sleep(pause * random.uniform(1, 1 + JITTER))


def seconds_asked(text, now=None):
    """Return the seconds that a Retry-After header asks for, given as a number or as a date; 0 for anything else."""
    text = (text or "").strip()
    if text.isdigit():
        return int(text)
    try:
        when = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return 0
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.timezone.utc)
    return max((when - (now or datetime.datetime.now(datetime.timezone.utc))).total_seconds(), 0)


def not_understood(what):
    return GcpError(
        f"{what}: the answer is not what the Compute API says: see that nothing between here and Google (HTTPS_PROXY) "
        "changes it, and try again."
    )


def unreachable(part):
    """Say whether a list, or the part of a zone in it, tells that not everything could be asked."""
    warning = part.get("warning")
    return isinstance(warning, dict) and warning.get("code") == "UNREACHABLE"


def named(items, what):
    """Return the items of a list; raises GcpError where one is no object with a name."""
    if not isinstance(items, list) or not all(isinstance(one, dict) and one.get("name") for one in items):
        raise not_understood(what)
    return items


def last_part(scope):
    return str(scope).rstrip("/").rsplit("/", 1)[-1]


def lasting(error):
    """Say whether asking again is in vain, as with a proxy that is not there or a certificate that is not trusted.

    A connection that breaks is worth another try, also behind a proxy, which urllib3 then blames for it.
    """
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    cause = getattr(reason, "original_error", None) or next(iter(getattr(reason, "args", ())), None)
    if isinstance(error, (requests.exceptions.ProxyError, requests.exceptions.SSLError)):
        return not isinstance(cause, (ConnectionError, ssl.SSLEOFError))
    broken = (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError)
    return not isinstance(error, (*broken, google.auth.exceptions.TransportError))


def one_line(value):
    return " ".join(str(value).split())


def read_json(answer, what):
    try:
        said = answer.json()
    except ValueError as error:
        raise GcpError(
            f"{what}: the answer is not JSON but {answer.headers.get('Content-Type')}: is HTTPS_PROXY a portal?"
        ) from error
    if not isinstance(said, dict):
        raise not_understood(what)
    return said


def answer_error(answer, what):
    """Make a GcpError from a refused request, whatever its body looks like."""
    status = answer.status_code
    try:
        error = answer.json()["error"]
        message = error.get("message") or answer.reason
        reasons = [one["reason"] for one in error.get("errors") or [] if one.get("reason")]
        details = error.get("details") or []
    except (ValueError, KeyError, TypeError, AttributeError):
        # A page for people, as balancers and proxies send it, is told without its markup.
        text = one_line(re.sub(r"<(style|script).*?</\1>|<[^>]*>", " ", answer.text, flags=re.DOTALL))
        message, reasons, details = text[:200] or answer.reason, [], []
    reasons += [one["reason"] for one in details if isinstance(one, dict) and one.get("reason")]
    quota = any("quota" in reason.lower() or reason in LATER for reason in reasons)
    hint = f"; {HINTS[status]}" if status in HINTS and not quota else ""
    said = f" ({', '.join(dict.fromkeys(reasons))})" if reasons else ""
    return GcpError(f"{what}: {status}{said} {one_line(message).rstrip('.')}{hint}.", status, reasons)


def project_sentence(project, error):
    """Say what a refused first request means for the project; only there a 404 is the project's."""
    if error.status == 404:
        return f"Project '{project}' does not exist or is not yours: set gcp_project to its ID ({error})"
    return str(error)


def operation_error(operation, what):
    """Make a GcpError from a finished operation that failed, whatever it says about it."""
    error = operation["error"] if isinstance(operation["error"], dict) else {}
    errors = [one for one in error.get("errors") or [] if isinstance(one, dict)]
    errors = errors or [{"code": "UNKNOWN", "message": operation.get("httpErrorMessage", "")}]
    zones = []
    for one in errors:
        for detail in one.get("errorDetails") or []:
            told = ((detail.get("errorInfo") or {}).get("metadatas") or {}).get("zonesAvailable", "")
            zones += [zone.strip() for zone in told.split(",") if zone.strip()]
    said = "; ".join(f"{one.get('code')}: {one_line(one.get('message') or '').rstrip('.')}" for one in errors)
    return GcpError(
        f"{what} failed: {said}.",
        status=operation.get("httpErrorStatusCode", 0),
        reasons=[str(one.get("code", "")) for one in errors],
        zones_available=zones,
    )
