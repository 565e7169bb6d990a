"""Removes secrets from a text: those with known values, and text that looks like a secret.

Two ways, because neither is enough. A host knows its own secrets, so each value is removed wherever and in whatever
form it appears. Unknown secrets are recognized by their form: a header, a token of a known kind, a webhook, a login in
an address, a value after a name such as API_KEY. Plain Python; reveals nothing of what was removed.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

HIDDEN = "********"
CUT = "…"
DEEP = 48  # characters of a secret that a pattern matches one by one
NAMED = 4  # minimum length of a secret whose name says that it is one
UNNAMED = 8  # otherwise: `LOG_LEVEL=INFO` is not a secret, although it is in a file of secrets

_NAME = r"(?:(?:API)?KEY|\w*TOKEN|PASS\w*|SECRET\w*|AUTH\w*|CREDENTIAL\w*)"
_SECRET_NAME = re.compile(rf"(^|_){_NAME}(_|$)", re.IGNORECASE)

# Text in a log line that may be a key: a bearer, the hub's tokens, a login in an address, an argument of that name.
LIKE_A_KEY = re.compile(
    r"(?<=Bearer )[\w.~+/=-]{8,}|\b(?:hf_|sk-)[\w-]{8,}|(?<=://)[^/\s@]+(?=@)"
    r"|(?<=api_key': )\[[^\]]*\]|(?i:(?<=api-key[ =])|(?<=password[ =])|(?<=token[ =]))[\w.~+/=-]{8,}"
)
# Each has a group `kept` for the text before the secret, which stays.
_FORMS = (
    re.compile(r"(?P<kept>)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    # The full value of a header: Bearer, Basic and other schemes.
    re.compile(
        r"(?P<kept>\b(?:proxy-)?authorization\b[\"']?\s*[:=,]\s*[b\"'(]{0,3})(?:[A-Za-z]+\s+)?[^\s\"',)}\]]+",
        re.IGNORECASE,
    ),
    re.compile(r"(?P<kept>\b(?:Bearer|Basic)\s+)(?=\S*[\d=._~+/-])[\w.~+/=-]{4,}", re.IGNORECASE),
    # A webhook's address is its secret: the part after the host grants access.
    re.compile(r"(?P<kept>https?://hooks\.[^\s/\"']+/)[^\s\"'<>\\]+", re.IGNORECASE),
    re.compile(r"(?P<kept>https?://[^\s/\"']{1,300}/(?:[^\s\"'<>\\]{0,300}/)?webhooks?/)[^\s\"'<>\\]+", re.IGNORECASE),
    re.compile(r"(?P<kept>\bhf_)[A-Za-z\d]{8,}"),
    re.compile(r"(?P<kept>\b(?:sk-|gh[pousr]_|github_pat_|xox[abeprs]-|ya29\.|AKIA|AIza))[\w.-]{8,}"),
    re.compile(r"(?P<kept>\beyJ)[\w-]{8,}\.[\w-]+\.[\w-]*"),
    re.compile(r"(?P<kept>--[\w-]{0,60}(?:key|token|password|secret)\s+[\"']?)[^\s\"']+", re.IGNORECASE),
    re.compile(r"(?P<kept>://)[^/\s@\"']+(?=@)"),
)
# NAME=value, "name": "value", {'name': ['value']}, ?name=value; the name decides whether it is a secret.
_PAIR = re.compile(
    r"(?P<kept>(?<![\w-])(?P<name>[\w-]{3,120})[\"']?\s{0,9}[=:]\s{0,9}[\[(]?\s{0,9}[\"']?)"
    r"(?!\*{8})(?!(?:None|null|true|false|yes|no)\b)[^\s\"',;&)}\]]+",
    re.IGNORECASE,
)


def names_secret(name: str) -> bool:
    """Return whether a variable's name says that its value is a secret."""
    return bool(_SECRET_NAME.search(name))


def written(secret: str) -> set[str]:
    """Return the forms in which a secret may appear in a log: unchanged, in JSON, in an address, in base64."""
    forms = {secret, json.dumps(secret)[1:-1], quote(secret, safe=""), quote_plus(secret), repr(secret)[1:-1]}
    return forms | {base64.b64encode(secret.encode("utf-8", "surrogateescape")).decode().rstrip("=")}


class Redaction:
    """The known secrets of one machine, and how to remove them from a text."""

    def __init__(self, secrets: Iterable[str] = ()):
        self._forms: set[str] = set()
        self.add(*secrets)

    def add(self, *secrets: str) -> None:
        """Add values that are secrets, whatever their names are."""
        self._forms |= {form for secret in secrets if len(secret) >= NAMED for form in written(secret)}

    def add_lines(self, text: str, plain: Iterable[str] = ()) -> None:
        """Add the values of a file of lines ``NAME=value``, except those of the names in ``plain``."""
        for line in text.split("\n"):
            name, found, value = line.partition("=")
            name, value = name.removeprefix("export ").strip(), value.strip().strip("\"'")
            if not found or name.startswith("#") or name in set(plain):
                continue
            if len(value) >= (NAMED if names_secret(name) else UNNAMED):
                self.add(value)
                # A list of keys, such as those of callers.
                self.add(*(part for part in re.split(r"[\s,\[\]\"']+", value) if len(part) >= UNNAMED))

    def add_file(self, text: str) -> None:
        """Add the text of a file that is one secret; of JSON, what stands under a name that says so."""
        try:
            content = json.loads(text)
        except ValueError:
            content = None
        self.add(*(_named(content) if isinstance(content, (dict, list)) else [text.strip(), *text.split()]))

    def __call__(self, text: str) -> str:
        """Return ``text`` without secrets."""
        forms = sorted(self._forms, key=len, reverse=True)
        for form in forms:
            text = text.replace(form, HIDDEN)
        # A program that shortened a line may have cut a secret in two.
        if forms and CUT in text:
            text = re.sub(rf"(?:{'|'.join(map(_beginning, forms))})(?=\s?{CUT})", HIDDEN, text)
        for pattern in _FORMS:
            text = pattern.sub(lambda match: f"{match['kept']}{HIDDEN}", text)
        return _PAIR.sub(_pair, text)


def _named(content: dict | list) -> list[str]:
    """Return the texts in JSON under names that say that they are secrets."""
    if isinstance(content, list):
        return [text for each in content if isinstance(each, (dict, list)) for text in _named(each)]
    own = [str(value) for name, value in content.items() if isinstance(value, str) and names_secret(name)]
    return own + _named([value for value in content.values() if isinstance(value, (dict, list))])


def _beginning(secret: str) -> str:
    """Return a pattern for at least the first `NAMED` characters of a secret."""
    pattern = r"\S{0,4000}" if len(secret) > DEEP else ""
    for character in reversed(secret[NAMED:DEEP]):
        pattern = f"(?:{re.escape(character)}{pattern})?"
    return re.escape(secret[:NAMED]) + pattern


def _pair(match: re.Match) -> str:
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", match["name"]).replace("-", "_")
    # A KeyError names what is missing.
    return f"{match['kept']}{HIDDEN}" if names_secret(name) and not name.endswith("Error") else match[0]
