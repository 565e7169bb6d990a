"""Sends the summary of an incident to a receiver that accepts Slack's incoming webhooks.

The address of a webhook is a secret: no message of this module contains it.
"""

from __future__ import annotations

import hashlib
import json
import time
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlsplit

from .. import atomic_file
from ..errors import UserError
from ..redaction import Redaction

TIMEOUT = 10  # seconds
LIMIT = 6000  # characters of a message; Slack truncates at 40000
REPEAT = 1800  # seconds during which the same message is not sent twice
SET = "set incident_webhook_url in the vault, or name a file of the controller that has it by incident_webhook_file"


def address(url: str | None, file: str | None) -> str:
    """Return the webhook's address from ``url`` or ``file``, whichever is given."""
    if not url and file:
        try:
            url = Path(file).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise UserError(f"incident_webhook_file is {file}, which cannot be read: {error}") from None
    url = (url or "").strip()
    if not url:
        raise UserError(f"neither incident_webhook_url nor incident_webhook_file is given; {SET}")
    try:
        good = urlsplit(url).scheme in ("http", "https") and bool(urlsplit(url).hostname)
    except ValueError:
        good = False
    if not good or any(character.isspace() for character in url):
        name = "incident_webhook_file" if file else "incident_webhook_url"
        raise UserError(f"{name} has no http(s) address, such as https://hooks.example.com/…; {SET}")
    return url


def message(text: str) -> dict:
    """Return the body of the request: the text as plain text, even if it contains Slack's markup."""
    text = text if len(text) <= LIMIT else f"{text[:LIMIT].rstrip()}\n…"
    for sign, written in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("```", "'''")):
        text = text.replace(sign, written)
    return {"text": f"```\n{text.strip()}\n```"}


def send(url: str, text: str) -> None:
    """Post ``text``. Raises UserError if the receiver does not accept it."""
    body = json.dumps(message(Redaction([url])(text))).encode()
    try:
        request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            answer.read()
    except urllib.error.HTTPError as error:
        with error:
            reply = Redaction([url])(" ".join(error.read(300).decode(errors="replace").split()))
        raise UserError(f"the receiver answered {error.code}: {reply or '(empty body)'}") from None
    except (OSError, ValueError, HTTPException) as error:
        why = Redaction([url])(str(getattr(error, "reason", error)))
        raise UserError(f"the receiver cannot be reached: {why}") from None


def sent_before(note: Path, rows: list[dict], now: float | None = None) -> float | None:
    """Return how many seconds ago a message of the same rows was sent; None if it was not, or long ago."""
    try:
        known = json.loads(note.read_text(encoding="utf-8"))
        age = (time.time() if now is None else now) - float(known["at"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return age if known.get("digest") == digest(rows) and 0 <= age < REPEAT else None


def keep(note: Path, rows: list[dict], now: float | None = None) -> None:
    """Record that a message of these rows was sent."""
    moment = time.time() if now is None else now
    atomic_file.write(note, json.dumps({"digest": digest(rows), "at": moment}), directory_mode=0o700)


def digest(rows: list[dict]) -> str:
    """Return a digest of the state: which rows are ok, without their figures."""
    return hashlib.sha256(json.dumps([[row.get("what"), row.get("ok")] for row in rows]).encode()).hexdigest()
