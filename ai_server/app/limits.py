"""Authentication, rate limits and body sizes: 401, 429 and 413, before anything else is done."""

import asyncio
import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.callers import Caller, Callers
from app.errors import Problem, answer
from app.settings import Settings

DISCARD_SECONDS, DISCARD_BYTES = 2.0, 1 << 20
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"}
MAX_ADDRESSES = 10_000  # for which wrong keys are counted
RATE_HEADERS = [f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")]
UPLOADS = {"/v1/easy-contract", "/v1/checklist"}
OPEN = {"/health", "/health/ready", "/metrics"}  # for load balancers, watchdogs and Prometheus, which have no key


class Rate:
    """Token buckets by name: they hold one minute's allowance and refill evenly. Wall-clock time survives a restart.

    left: (tokens left, time) for each bucket; `usage.Usage` stores it. A value can be negative, since the tokens of an
    answer are only known afterwards.
    """

    def __init__(self, per_minute: int = 0, clock: Callable[[], float] = time.time) -> None:
        self._per_minute, self._clock = per_minute, clock
        self.left: dict[str, tuple[float, float]] = {}

    def now(self, name: str, per_minute: int | None = None) -> float:
        """Return the tokens that are left now."""
        capacity, now = per_minute or self._per_minute, self._clock()
        left, since = self.left.get(name, (capacity, now))
        if since > now:  # the clock was set back
            since = now
            self.left[name] = (left, now)
        return min(capacity, left + (now - since) * capacity / 60)

    def wait(self, name: str, per_minute: int | None = None, take: float = 1) -> float:
        """Take ``take`` tokens and return 0; if less than one is left, return the seconds until there is one."""
        capacity = per_minute or self._per_minute
        left = self.now(name, per_minute)
        if left < 1:
            return (1 - left) * 60 / capacity
        if take:
            self.left[name] = (left - take, self._clock())
        return 0

    def use(self, name: str, per_minute: int, amount: float) -> None:
        """Take ``amount`` tokens, even if fewer are left."""
        self.left[name] = (self.now(name, per_minute) - amount, self._clock())

    def until_full(self, name: str, per_minute: int) -> float:
        """Return the seconds until the bucket is full."""
        return (per_minute - self.now(name, per_minute)) * 60 / per_minute


class Limits:
    """The limits of each caller and how much of them is used. One object, shared by the gate and the service."""

    def __init__(self, settings: Settings) -> None:
        self._requests_per_minute = settings.rate_limit_per_minute
        self._tokens_per_minute = settings.token_limit_per_minute
        self._streams = settings.max_streams
        self._rate = Rate()
        self._running: Counter[str] = Counter()

    @property
    def rates(self) -> dict[str, tuple[float, float]]:
        return self._rate.left

    def enter(self, caller: Caller) -> None:
        """Count a request as running until `leave` is called; raise Problem 429 if it exceeds a limit."""
        requests, _, streams = self._of(caller)
        if streams and self._running[caller.name] >= streams:
            running = f"{streams} running request{'s' * (streams > 1)}"
            raise _too_many(f"This caller already has {running}, the maximum.", 1)
        self.check_tokens(caller)
        if seconds := self._rate.wait(f"requests {caller.name}", requests):
            raise _too_many("Too many requests with this key.", seconds)
        self._running[caller.name] += 1

    def check_tokens(self, caller: Caller) -> None:
        """Raise Problem 429 if the caller's tokens per minute are used up."""
        tokens = self._of(caller)[1]
        if tokens and (seconds := self._rate.wait(f"tokens {caller.name}", tokens, take=0)):
            raise _too_many(f"This caller's {tokens} tokens per minute are used up.", seconds)

    def leave(self, caller: Caller) -> None:
        self._running[caller.name] -= 1
        if not self._running[caller.name]:
            del self._running[caller.name]

    def used(self, caller: Caller, tokens: int) -> None:
        """Subtract the tokens of an answer from the caller's allowance."""
        if allowed := self._of(caller)[1]:
            self._rate.use(f"tokens {caller.name}", allowed, tokens)

    def headers(self, caller: Caller) -> dict[str, str]:
        """Return the x-ratelimit-… headers in OpenAI's format."""
        requests, tokens, _ = self._of(caller)
        headers = {}
        for kind, allowed in (("requests", requests), ("tokens", tokens)):
            if allowed:
                name = f"{kind} {caller.name}"
                headers[f"x-ratelimit-limit-{kind}"] = str(allowed)
                headers[f"x-ratelimit-remaining-{kind}"] = str(max(0, int(self._rate.now(name, allowed))))
                headers[f"x-ratelimit-reset-{kind}"] = f"{self._rate.until_full(name, allowed):.3f}s"
        return headers

    def _of(self, caller: Caller) -> tuple[int, int | None, int | None]:
        """Return the caller's requests per minute, tokens per minute and concurrent requests."""
        return (
            caller.requests_per_minute or self._requests_per_minute,
            caller.tokens_per_minute or self._tokens_per_minute,
            caller.streams or self._streams,
        )


class Methods:
    """ASGI middleware: reject methods that are not in HTTP itself, such as those of WebDAV, before anything else."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] not in METHODS:
            problem = Problem(501, "HTTP does not define this method.", {"Connection": "close"})
            response = await answer(Request(scope), problem)
            await response(scope, receive, send)
        else:
            await self.app(scope, receive, send)


class Gate:
    """ASGI middleware: check key, rate limits and body size of every request, except for the paths in OPEN."""

    def __init__(self, app: ASGIApp, settings: Settings, callers: Callers, limits: Limits) -> None:
        self.app = app
        self._callers, self._limits = callers, limits
        self._guesses, self._guesses_per_minute = Rate(), settings.wrong_keys_per_minute
        self._max_body, self._max_upload = settings.max_body_bytes, settings.max_upload_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN:
            await self.app(scope, receive, send)
            return
        caller, entered = None, False
        try:
            caller = self._caller(scope)
            self._limits.enter(caller)
            entered = True
            limit = self._size(scope)
        except Problem as problem:
            if entered:
                self._limits.leave(caller)
            if problem.status_code == 413 and "expect" not in Headers(scope=scope):
                await _discard(receive)
            response = await answer(Request(scope), problem)
            response.headers.update(self._limits.headers(caller) if caller else {})
            await response(scope, receive, send)
            return

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._limits.headers(caller))
            await send(message)

        try:
            await self.app(scope, _limited(receive, limit), send_with_limits)
        finally:
            self._limits.leave(caller)

    def _caller(self, scope: Scope) -> Caller:
        """Return the caller and store it in the scope. The number of wrong keys from one address is limited."""
        authorization = Headers(scope=scope).get("authorization", "")
        caller = self._callers.find(authorization)
        if caller is None:
            client = scope["client"][0] if scope.get("client") else ""
            if authorization and (seconds := self._guesses.wait(client, self._guesses_per_minute)):
                raise _too_many("Too many wrong keys from this address.", seconds)
            if len(self._guesses.left) > MAX_ADDRESSES:
                self._guesses.left.clear()
            raise Problem(401, "Send a valid key as `Authorization: Bearer KEY`.", {"WWW-Authenticate": "Bearer"})
        scope["caller"], scope["caller_bounds"] = caller.name, caller
        return caller

    def _size(self, scope: Scope) -> int:
        """Return the allowed size of the request body in bytes; raises Problem 413 if it declares a larger one.

        The limit for uploads only applies to the paths that accept uploads.
        """
        headers = Headers(scope=scope)
        upload = scope["path"] in UPLOADS and media_type(headers) == "multipart/form-data"
        limit = self._max_upload if upload else self._max_body
        declared = headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > limit:
            raise _too_large(limit)
        return limit


def media_type(headers: Headers) -> str:
    """Return the body's media type in lower case, since case does not matter."""
    return headers.get("content-type", "").partition(";")[0].strip().lower()


def _limited(receive: Receive, limit: int) -> Receive:
    """Count the bytes that really arrive, since a chunked body declares no length."""
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
    """Read and drop the rest, within limits: closing with unread data resets the connection and loses the answer."""

    async def read() -> None:
        discarded = 0
        while discarded < DISCARD_BYTES:
            message = await receive()
            if not message.get("more_body"):
                return
            discarded += len(message["body"])

    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(read(), DISCARD_SECONDS)


def _too_many(sentence: str, seconds: float) -> Problem:
    return Problem(429, sentence, {"Retry-After": str(math.ceil(seconds))})


def _too_large(limit: int) -> Problem:
    # The rest of the body may not have been read, so the connection cannot serve another request.
    return Problem(413, f"The body is larger than {limit} bytes.", {"Connection": "close"})
