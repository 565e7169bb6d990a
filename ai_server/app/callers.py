"""Authentication: named callers with their keys and limits.

AI_SERVER_API_KEYS is the short way: each key is a caller, named by the first characters of the key's digest.
CALLERS_FILE gives callers names. It is reloaded when it changes, so keys can be rotated with an overlap and without a
restart.

    {"callers": [{"name": "backend", "keys": [{"sha256": "9f86…", "expires": "2027-01-31"}], "models": ["base"],
                  "requests_per_minute": 60, "tokens_per_minute": 100000, "streams": 8}]}
"""

import datetime
import hashlib
import hmac
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    PositiveInt,
    StringConstraints,
    ValidationError,
    field_validator,
)

from app.watched import Watched

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """A caller and its limits; None if it has no limit of its own.

    models: the models it may use. requests_per_minute, tokens_per_minute: its rates. streams: concurrent requests.
    """

    name: str
    models: frozenset[str] | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    streams: int | None = None


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Key(_Strict):
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    expires: AwareDatetime | datetime.date | None = None

    def ends(self) -> float:
        """Return when the key expires, in seconds since the epoch: a date means the end of that day in UTC."""
        if self.expires is None:
            return float("inf")
        if isinstance(self.expires, datetime.datetime):
            return self.expires.timestamp()
        day = datetime.datetime.combine(self.expires, datetime.time(), datetime.timezone.utc)
        return day.timestamp() + 86_400


class _Entry(_Strict):
    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    keys: Annotated[list[_Key], Field(min_length=1)]
    models: Annotated[frozenset[str], Field(min_length=1)] | None = None
    requests_per_minute: PositiveInt | None = None
    tokens_per_minute: PositiveInt | None = None
    streams: PositiveInt | None = None

    def caller(self) -> Caller:
        return Caller(**self.model_dump(exclude={"keys"}))


class _File(_Strict):
    callers: list[_Entry]

    @field_validator("callers")
    @classmethod
    def _each_once(cls, callers: list[_Entry]) -> list[_Entry]:
        names = [entry.name for entry in callers]
        keys = [key.sha256 for entry in callers for key in entry.keys]
        for each, seen in (("name", names), ("key", keys)):
            twice = next((one for one in seen if seen.count(one) > 1), None)
            if twice:
                raise ValueError(f"the {each} {twice[:12]} occurs twice")
        return callers


class CallersError(ValueError):
    """The callers file cannot be used; the message is one sentence that contains no key."""


@dataclass(frozen=True)
class _Held:
    digest: bytes
    ends: float
    caller: Caller


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def read(path: Path, forbidden: str, listed: list[bytes], engine_keys: Iterable[str] = ()) -> list[_Held]:
    """Return the keys in the file; raise CallersError with the reason.

    forbidden: vLLM's key, which no caller may have. listed: the digests of AI_SERVER_API_KEYS, whose callers have no
    limits. engine_keys: the keys in ENGINES_FILE, which no caller may have either.
    """
    try:
        file = _File.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CallersError(f"{path} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise CallersError(f"{path}: {place + ': ' if place else ''}{first['msg']}") from None
    held = [
        _Held(bytes.fromhex(key.sha256), key.ends(), entry.caller()) for entry in file.callers for key in entry.keys
    ]
    if any(one.digest == digest(forbidden) for one in held):
        raise CallersError(f"{path} has VLLM_API_KEY among its keys: give the callers separate keys")
    if {one.digest for one in held} & set(map(digest, engine_keys)):
        raise CallersError(f"{path} has an engine's key among its keys: give the callers separate keys")
    if any(one.digest in listed for one in held):
        raise CallersError(f"{path} has one of AI_SERVER_API_KEYS among its keys: keep it in one of the two places")
    return held


class Callers:
    """The callers' keys, stored as digests. keys: AI_SERVER_API_KEYS; file: CALLERS_FILE, or None.

    The constructor reads the file and raises CallersError. When the file changes, it is read again; if the new content
    is invalid, the previous callers stay and `trouble` has the reason. engine_keys: returns the keys of ENGINES_FILE
    after that is read.
    """

    def __init__(
        self,
        keys: list[str],
        file: Path | None = None,
        forbidden: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        listed = [digest(key) for key in keys]
        self._listed = [_Held(one, float("inf"), Caller(one.hex()[:8])) for one in listed]
        self._file, self._forbidden, self._clock = file, forbidden, clock
        self.trouble = ""
        self.engine_keys: Callable[[], Iterable[str]] = tuple
        self._watched = Watched(file, clock) if file else None
        self._held = self._listed + (read(file, forbidden, listed) if file else [])

    def find(self, authorization: str) -> Caller | None:
        """Return the caller, or None if the header is not `Bearer <valid key>`.

        Every key is compared, each in constant time, so that the duration reveals nothing.
        """
        self._read_again()
        scheme, _, key = authorization.partition(" ")
        given, now = digest(key.strip()), self._clock()
        matches = [one for one in self._held if hmac.compare_digest(one.digest, given) and now < one.ends]
        return matches[0].caller if matches and scheme.lower() == "bearer" else None

    def named(self, name: str) -> Caller:
        """Return the caller of this name; if it no longer exists, one without limits of its own."""
        return next((one.caller for one in self._held if one.caller.name == name), Caller(name))

    def name(self, authorization: str) -> str | None:
        """Return the caller's name; None as in `find`."""
        found = self.find(authorization)
        return found and found.name

    def have(self, key: str) -> bool:
        """Return whether a caller has this key, even if the key has expired."""
        return digest(key) in {one.digest for one in self._held}

    def _read_again(self) -> None:
        if self._watched is None or not self._watched.changed():
            return
        try:
            listed = [one.digest for one in self._listed]
            self._held = self._listed + read(self._file, self._forbidden, listed, self.engine_keys())
        except CallersError as error:
            self.trouble = f"{error}; the previous callers stay in effect"
            logger.error("the file of callers cannot be used: %s", error)
        else:
            self.trouble = ""
            logger.info("the callers file was reloaded", extra={"keys": len(self._held)})
