"""Who may ask, how often, how much: 401, 429 and 413, before anything else is done."""

import asyncio
import contextlib
import hashlib
import hmac
import math
import time

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import Problem, answer
from app.settings import Settings

DISCARD_SECONDS, DISCARD_BYTES = 2.0, 1 << 20
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"}
OPEN = {"/health", "/health/ready", "/metrics"}  # for load balancers, watchdogs and Prometheus, which hold no key


class Callers:
    """The callers' keys, kept as digests. A caller's name is the beginning of its key's digest."""

    def __init__(self, keys: list[str]) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def name(self, authorization: str) -> str | None:
        """Return the caller's name, or None for a header that is not `Bearer <one of the keys>`.

        Every key is compared, each in constant time, so that the time taken tells nothing.
        """
        scheme, _, key = authorization.partition(" ")
        given = hashlib.sha256(key.strip().encode()).digest()
        matches = [digest for digest in self._digests if hmac.compare_digest(digest, given)]
        return matches[0].hex()[:8] if matches and scheme.lower() == "bearer" else None


class Rate:
    """A token bucket for each caller: a minute's allowance at once, then refilled evenly."""

    def __init__(self, per_minute: int, clock=time.monotonic) -> None:
        self._capacity, self._clock = per_minute, clock
        self._buckets: dict[str, tuple[float, float]] = {}  # caller -> tokens left, when

    def wait(self, caller: str) -> float:
        """Take one token: 0, or the seconds until there is one."""
        now = self._clock()
        tokens, since = self._buckets.get(caller, (self._capacity, now))
        tokens = min(self._capacity, tokens + (now - since) * self._capacity / 60)
        self._buckets[caller] = (max(tokens - 1, 0) if tokens >= 1 else tokens, now)
        return 0 if tokens >= 1 else (1 - tokens) * 60 / self._capacity


class Methods:
    """ASGI middleware, to be the outermost: refuse methods that are none before they become labels of metrics."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in METHODS:
            response = await answer(Request(scope), Problem(501, "HTTP has no such method.", {"Connection": "close"}))
            await response(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class Gate:
    """ASGI middleware: everything but OPEN needs a caller's key, keeps to its rate, and stays within its size."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self._callers = Callers([key.get_secret_value() for key in settings.ai_server_api_keys])
        self._rate = Rate(settings.rate_limit_per_minute)
        self._max_body, self._max_upload = settings.max_body_bytes, settings.max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self.app(scope, receive, send)
            return
        try:
            limit = self._admit(scope)
        except Problem as problem:
            if problem.status_code == 413 and "expect" not in Headers(scope=scope):
                await _discard(receive)
            response = await answer(Request(scope), problem)
            await response(scope, receive, send)
        else:
            await self.app(scope, _limited(receive, limit), send)

    def _admit(self, scope: Scope) -> int:
        """Return the bytes that the request's body may have; note the caller in the scope."""
        headers = Headers(scope=scope)
        caller = self._callers.name(headers.get("authorization", ""))
        if caller is None:
            raise Problem(401, "Send a valid key as `Authorization: Bearer KEY`.", {"WWW-Authenticate": "Bearer"})
        scope["caller"] = caller
        if seconds := self._rate.wait(caller):
            raise Problem(429, "Too many requests with this key.", {"Retry-After": str(math.ceil(seconds))})
        upload = headers.get("content-type", "").startswith("multipart/form-data")
        limit = self._max_upload if upload else self._max_body
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise _too_large(limit)
        return limit


def _limited(receive: Receive, limit: int) -> Receive:
    """Count what really arrives: a body sent in chunks declares no length."""
    received = 0

    async def receive_within_limit() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            if message.get("more_body"):
                await _discard(receive)
            raise _too_large(limit)
        return message

    return receive_within_limit


async def _discard(receive: Receive) -> None:
    """Read what still arrives, within bounds: a connection closed on unread data is reset, and the answer lost."""

    async def read() -> None:
        discarded = 0
        while discarded < DISCARD_BYTES:
            message = await receive()
            if not message.get("more_body"):
                return
            discarded += len(message["body"])

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), DISCARD_SECONDS)


def _too_large(limit: int) -> Problem:
    # The rest of the body may not have been read, so the connection cannot serve another request.
    return Problem(413, f"The body is larger than {limit} bytes.", {"Connection": "close"})
