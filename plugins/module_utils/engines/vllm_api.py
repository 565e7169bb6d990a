"""Reads which models a vLLM server serves, and distinguishes its failures.

Plain Python with the standard library; the key goes into one header and nowhere else.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import urllib.error
import urllib.request
from http.client import HTTPException, InvalidURL

from ..errors import UserError

BODY_LIMIT = 4 << 20


class ApiError(UserError):
    """No list of models: `kind` is a word for programs, the text one sentence with the cure. Never contains the key."""

    def __init__(self, kind: str, text: str):
        super().__init__(text)
        self.kind = kind


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirects: a redirect would send the key to another server."""

    def redirect_request(self, req, fp, code, msg, headers, newurl):
        return None


def models_url(base: str) -> str:
    """Return `<base>/v1/models`, whether or not the base ends in /v1."""
    base = base.rstrip("/")
    return base + ("/models" if base.endswith("/v1") else "/v1/models")


def fetch(base: str, key: str = "", timeout: float = 10, ca_path: str = "", validate: bool = True) -> list[dict]:
    """Return the models of a server: id, root, parent, max_model_len (None if the server does not report it).

    Raises ApiError of kind refused, timeout, unreachable, closed, tls, not_http, unauthorized, not_found, status,
    not_json or not_models.
    """
    url = models_url(base)
    try:
        request = urllib.request.Request(url, headers={"Accept": "application/json"})
        if key:
            request.add_header("Authorization", f"Bearer {key}")
        context = ssl.create_default_context(cafile=ca_path or None)
        if not validate:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context), _NoRedirect
        )
        with opener.open(request, timeout=timeout) as answer:
            body = answer.read(BODY_LIMIT)
    except urllib.error.HTTPError as error:
        raise _status(url, error.code, bool(key)) from None
    except (urllib.error.URLError, HTTPException, OSError, ValueError, UnicodeError) as error:
        raise _transport(url, error, timeout) from None
    return parse(url, body)


def _status(url: str, code: int, with_key: bool) -> ApiError:
    if code in (401, 403):
        cure = "the key is not the server's" if with_key else "no key was given"
        return ApiError("unauthorized", f"{url} answered {code}: {cure}, give the key the server was started with.")
    if code == 404:
        return ApiError("not_found", f"{url} answered 404: this is not a vLLM server, or the address has a wrong path.")
    return ApiError("status", f"{url} answered {code}: look into the server's journal.")


def _transport(url: str, error: Exception, timeout: float) -> ApiError:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError | socket.timeout) or "timed out" in str(reason):
        return ApiError("timeout", f"{url} gave no answer within {timeout:g} s: the server is busy or hangs.")
    if isinstance(reason, ConnectionRefusedError):
        return ApiError("refused", f"{url} refused the connection: the server is not started, or on another port.")
    if isinstance(reason, ssl.SSLCertVerificationError):
        why = getattr(reason, "verify_message", "") or "verification failed"
        return ApiError("tls", f"{url} has a certificate that is not trusted ({why}): give ca_path.")
    if isinstance(reason, ssl.SSLError):
        return ApiError("tls", f"{url} does not speak TLS: use http:// or the port that does.")
    if isinstance(reason, ConnectionResetError | BrokenPipeError) or "Remote end closed" in str(reason):
        return ApiError("closed", f"{url} closed the connection: the server speaks TLS, or it is stopping.")
    if isinstance(reason, ssl.CertificateError | FileNotFoundError):
        return ApiError("tls", "ca_path does not name a readable file of certificates.")
    if isinstance(reason, InvalidURL):
        return ApiError("unreachable", f"{url} is no address ({reason}): check it.")
    if isinstance(reason, HTTPException):
        return ApiError("not_http", f"{url} gave no answer in HTTP ({reason!r}): another program has this port.")
    kind = type(reason).__name__
    if isinstance(reason, socket.gaierror):
        return ApiError("unreachable", f"{url} has a host name that does not resolve: check the address.")
    if isinstance(reason, OSError) and reason.strerror:
        return ApiError("unreachable", f"{url} cannot be reached ({reason.strerror}): check the address.")
    return ApiError("unreachable", f"{url} cannot be asked ({kind}): check the address.")


def parse(url: str, body: bytes) -> list[dict]:
    """Return the models in an answer's body."""
    try:
        value = json.loads(body)
    except ValueError:
        text = f"{url} answered something that is not JSON: another program has this port."
        raise ApiError("not_json", text) from None
    data = value.get("data") if isinstance(value, dict) else None
    if not isinstance(data, list) or not all(isinstance(item, dict) and item.get("id") for item in data):
        raise ApiError("not_models", f"{url} answered JSON without a list of models: another program has this port.")
    keys = ("id", "root", "parent", "max_model_len")
    return [{key: item.get(key) for key in keys} for item in data]


def events(text: str) -> list[str]:
    """Return the data of each server-sent event; lines end only at CR LF, LF or CR, unlike `str.splitlines`."""
    blocks = re.split("\n\n+", re.sub("\r\n?", "\n", text.removeprefix("\ufeff")))
    found = [[line[5:].removeprefix(" ") for line in block.split("\n") if line.startswith("data:")] for block in blocks]
    return ["\n".join(lines) for lines in found if lines]


def difference(
    models: list[dict], base: str = "", adapters: list[str] | None = None, max_model_len: int | None = None
) -> dict:
    """Return the differences from the wanted models: `missing`, `unexpected` (ids) and `problems` (sentences).

    A base model has no parent. Without `base` any base model is right, with `adapters` None any adapters are, and with
    `max_model_len` None any context length of the base model is.
    """
    bases = [m for m in models if not m["parent"]]
    served = [m for m in models if m["parent"]]
    missing, unexpected, problems = [], [], []
    if base:
        if base not in {m["id"] for m in bases}:
            missing.append(base)
            if base in {m["id"] for m in served}:
                problems.append(f"{base} is served as an adapter, not as the base model")
        unexpected += [m["id"] for m in bases if m["id"] != base]
    if adapters is not None:
        have = [m["id"] for m in served]
        missing += [name for name in adapters if name not in have]
        unexpected += [name for name in have if name not in adapters]
    for card in bases if max_model_len is not None else []:
        if card["max_model_len"] != max_model_len:
            problems.append(f"{card['id']} has max_model_len {card['max_model_len']}, wanted {max_model_len}")
    return {"missing": missing, "unexpected": unexpected, "problems": problems}


def describe(models: list[dict], diff: dict) -> str:
    """Return the difference in one sentence; "" if there is none."""
    parts = []
    if diff["missing"]:
        parts.append(f"missing: {', '.join(diff['missing'])}")
    if diff["unexpected"]:
        parts.append(f"unexpected: {', '.join(diff['unexpected'])}")
    parts += diff["problems"]
    if not parts:
        return ""
    served = ", ".join(m["id"] for m in models) or "nothing"
    return f"{'; '.join(parts)} (served: {served})"
