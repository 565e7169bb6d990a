"""Filters for the callers of ai-server: errors in them, and the file that the application reads."""

from __future__ import annotations

import datetime
import hashlib
import json
import re

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
KEY = re.compile(r"[!-+.-~-]{16,}")
LIMITS = ("models", "requests_per_minute", "tokens_per_minute", "streams")
SHA256 = re.compile(r"[0-9a-f]{64}")


def caller_problems(callers: list[dict], keys: list[str], engine_key: str) -> list[str]:
    """Return a sentence for each of ``callers`` that cannot be used; no sentence contains a key.

    ``keys`` are those of ai_server_api_keys and ``engine_key`` is vLLM's: no caller may have one of them.
    """
    problems, names, seen = [], set(), {_digest(key) for key in keys}
    for number, caller in enumerate(callers):
        name = str(caller.get("name", ""))
        where = f"ai_server_callers: {name or f'number {number + 1}'}"
        if not NAME.fullmatch(name):
            problems.append(f"{where} needs a name of small letters, digits, '.', '_' and '-'.")
        if name in names:
            problems.append(f"{where} occurs twice; give one caller several keys.")
        names.add(name)
        for key in caller.get("keys") or []:
            problems += [f"{where} has a key {why}." for why in _key_problems(key, engine_key, seen)]
            seen.add(_sha256(key))
        if not caller.get("keys"):
            problems.append(f"{where} has no keys.")
    return problems


def _key_problems(key: dict, engine_key: str, seen: set[str]) -> list[str]:
    text, digest = key.get("key") or "", key.get("sha256") or ""
    if bool(text) == bool(digest):
        return ["that needs either key or sha256"]
    if text and not KEY.fullmatch(str(text)):
        return ["that is not of 16 visible characters or more without a comma"]
    if digest and not SHA256.fullmatch(str(digest)):
        return ["whose sha256 is not 64 hexadecimal digits in small letters"]
    if _sha256(key) == _digest(engine_key):
        return ["that is vLLM's own"]
    if _sha256(key) in seen:
        return ["that another caller has, or it itself"]
    if key.get("expires"):
        try:
            datetime.date.fromisoformat(str(key["expires"]))
        except ValueError:
            return [f"that expires on {key['expires']}, which is no day such as 2027-01-31"]
    return []


def callers_file(callers: list[dict]) -> str:
    """Return the text of CALLERS_FILE: digests in place of keys; limits that are not set are left out."""
    entries = [
        {
            "name": caller["name"],
            "keys": [
                {"sha256": _sha256(key), **({"expires": str(key["expires"])} if key.get("expires") else {})}
                for key in caller["keys"]
            ],
            **{name: caller[name] for name in LIMITS if caller.get(name)},
        }
        for caller in callers
    ]
    return json.dumps({"callers": entries}, indent=1) + "\n"


def _sha256(key: dict) -> str:
    return str(key.get("sha256") or "") or _digest(key.get("key") or "")


def _digest(key: str) -> str:
    return hashlib.sha256(str(key).encode()).hexdigest()


class FilterModule:
    def filters(self):
        return {"caller_problems": caller_problems, "callers_file": callers_file}
