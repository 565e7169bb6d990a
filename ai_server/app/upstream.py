"""An engine, such as vLLM: relays requests to it, and gets complete answers for this server's own endpoints.

When a client disconnects, `while_connected` cancels the call, which closes the connection to the engine; the engine
then aborts the generation.
"""

import asyncio
import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app import http1, metrics, sse, tracing
from app.body import no_json
from app.errors import Permanent, Problem, no_such_path
from app.http1 import ConnectError, Failure, ReadTimeout
from app.table import Entry
from app.text import well_formed
from app.whole import STREAMED, Whole, can_stream

HEALTH_TIMEOUT_SEC = 2
CLIENT_CLOSED_REQUEST = 499  # nginx's status for this, for the log; the client does not see it
KEEP_ALIVE_SEC = 15  # of silence; nginx and common load balancers close an idle connection after 60 s
COMMENT = b": waiting\n\n"
STREAM = "text/event-stream"
PIECE = b"data:"  # one event of an answer: in most streams, one token
UNFINISHED = {None, "abort", "error"}  # finish reasons if the engine gave up or was stopped during the answer
MAX_QUOTED = 300  # characters of an error page that the caller gets
UNBUFFERED = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))  # the second is for proxies such as nginx
EVENT_ENDS = (b"\n\n", b"\n\r\n")
MAX_HELD = 1 << 20  # bytes of an incomplete event
NO_RETRY = {"X-Should-Retry": "false"}  # OpenAI's clients obey it; a retry would repeat the complete generation
LISTED_SEC = 60  # between two requests for the engine's list of models

T = TypeVar("T")
logger = logging.getLogger(__name__)


class ClientLeft(Exception):
    """The client closed its connection before the end of its answer."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`; if the client disconnects, cancel it and raise ClientLeft.

    The request body must have been read: after that, `receive` only returns the disconnect.
    """
    this, left = asyncio.current_task(), False

    async def leave() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        this.cancel()

    # The work stays in this task: only the watching needs a new one, and a server stop still cancels the work.
    leaving = asyncio.ensure_future(leave())
    try:
        return await work
    except asyncio.CancelledError:
        if not left:
            raise
        if hasattr(this, "uncancel"):  # from Python 3.11
            this.uncancel()
        raise ClientLeft from None
    finally:
        leaving.cancel()


class Engine:
    """One engine, called with its key. Create it inside the running event loop.

    timeout: idle timeout in seconds (HTTP_TIMEOUT_SEC). title: its name in messages. key: where its key is set.

    Every method raises Problem: 503 if the engine is unreachable, 504 after the idle timeout, 502 if it rejects the
    key.
    """

    def __init__(self, entry: Entry, timeout: float, title: str, key: str) -> None:
        self.entry, self.name, self.title, self._key = entry, entry.name, title, key
        self._names = set(entry.models)
        self._listed, self._listing = float("-inf"), None
        headers = {
            "Authorization": f"Bearer {entry.api_key}",
            "Accept-Encoding": "identity",  # on one machine compression gains nothing
            "User-Agent": "ai-server",
        }
        self._http = http1.Client(entry.url.removesuffix("/v1"), headers, timeout)

    async def close(self) -> None:
        if self._listing:
            self._listing.cancel()
        await self._http.close()

    async def health(self) -> str:
        """Return "ok", or the reason why the engine cannot serve."""
        try:
            response = await self._http.request("GET", "/health", timeout=HEALTH_TIMEOUT_SEC)
        except Failure as error:
            return f"away: {type(error).__name__}"
        response.release()
        status = response.status_code
        return "ok" if status == 200 else f"unhealthy: its /health answered {status}"

    async def models(self) -> list[dict]:
        """Return the engine's list of models. Also raises Problem 502 if the response is not such a list."""
        async with self.stream("GET", "/models") as response:
            content = await self.read(response)
            try:
                listed = json.loads(content)["data"]
                self._names |= {model["id"] for model in listed if isinstance(model["id"], str)}
            except (ValueError, LookupError, TypeError, RecursionError):
                raise Problem(502, f"{self.title}'s list of models cannot be read.") from None
        return listed

    def known(self, model: object) -> str:
        """Return the model's name if the engine lists it, otherwise `other`.

        For an unknown name the list is fetched again in the background, at most once in LISTED_SEC.
        """
        if isinstance(model, str) and model in self._names:
            return model
        if time.monotonic() - self._listed > LISTED_SEC:
            self._listed = time.monotonic()
            self._listing = asyncio.ensure_future(self._list_models())
        return metrics.OTHER

    async def _list_models(self) -> None:
        with contextlib.suppress(Problem):
            await self.models()

    async def complete(
        self,
        model: str,
        instruction: str,
        text: str,
        options: dict,
        first: Callable[[], None],
        used: Callable[[dict], None],
    ) -> dict:
        """Return `{"model": str, "result": str, "finish_reason": str, "usage": {…}}`, generated at temperature 0.

        options: further fields of a chat completion, such as max_tokens. first: called when the first piece arrives.
        used: called with the usage or, if the answer ends without one, the number of pieces. An error of the engine is
        raised with the engine's status and message.
        """
        messages = [{"role": "system", "content": instruction}, {"role": "user", "content": text}]
        # Streamed, so that HTTP_TIMEOUT_SEC is an idle timeout and does not limit the length of the answer.
        how = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
        answer: dict[str, Any] = {"model": model, "result": "", "finish_reason": None, "usage": None}
        body = {"model": model, "messages": messages, **how, **options}
        pieces = 0
        try:
            async with self.stream("POST", "/chat/completions", body) as response:
                if response.status_code != 200:
                    raise self._refusal(response.status_code, await response.aread(), model, response.headers)
                if response.headers.get("content-type", STREAM).startswith(STREAM):
                    async for kind, data in sse.events(response.aiter_bytes()):
                        if not pieces:
                            first()
                        pieces += 1
                        self._add(answer, kind, data)
                else:  # a complete answer, an error, or some other page
                    self._add(answer, "message", (await response.aread()).decode(errors="replace"))
        finally:
            used(answer["usage"] or {"completion_tokens": pieces})
        if answer["finish_reason"] in UNFINISHED:
            raise self.unfinished()
        return answer | {"result": well_formed(answer["result"])}

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, body: dict | bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[http1.Response]:
        """Yield the response when its headers have arrived; transport errors, also while reading it, raise Problem.

        body: an object, or its JSON as bytes.
        """
        response = None
        content = ENCODE(body).encode() if isinstance(body, dict) else body
        fields = {**(headers or {}), **({"Content-Type": "application/json"} if content is not None else {})}
        try:
            with tracing.asking(method, "/v1" + path) as trace:
                response = await self._http.request(method, "/v1" + path, content, {**fields, **trace})
                if response.status_code in (401, 403):
                    raise self._refused_key()
                yield response
        except ConnectError as error:
            raise self._unreachable(error) from None
        except Failure as error:
            if response is not None:
                raise self.broken_off(error) from None
            if not isinstance(error, ReadTimeout):
                raise self._unreachable(error) from None
            log_fields = {"error": type(error).__name__, "path": path, "engine": self.name}
            logger.warning("%s was silent for too long", self.title, extra=log_fields)
            raise Problem(504, f"{self.title} did not answer in time.", NO_RETRY) from None
        finally:
            if response is not None:
                response.release()  # ends an incomplete generation

    async def read(self, response: http1.Response) -> bytes:
        try:
            return await response.aread()
        except Failure as error:
            raise self.broken_off(error) from None

    def event(self, kind: str, data: str, model: str) -> dict | None:
        """Return an event of a streamed completion (or a complete one); None if it has neither content nor an error.

        Raises Problem: the engine's error if it is one, Permanent if it is invalid.
        """
        if data.strip() == "[DONE]":
            return None
        try:
            event = DECODE(data)
        except (ValueError, RecursionError):
            event = None
        fields = event if isinstance(event, dict) else {}
        if kind == "error" or fields.get("error") or ("choices" not in fields and _sentence(fields)):
            raise self._refusal(_status(fields), data.encode(), model)
        if kind != "message" and "choices" not in fields:
            return None  # for example a gateway's ping
        if not isinstance(event, dict):
            raise self.no_completion()
        return event

    def no_completion(self) -> Problem:
        return Permanent(502, f"{self.title}'s answer is not a chat completion.")

    def unfinished(self) -> Problem:
        return Problem(502, f"{self.title}'s answer broke off.")

    def broken_off(self, error: Failure) -> Problem:
        """Return the Problem for a connection that ends, or stays silent, after the answer has begun."""
        fields = {"error": type(error).__name__, "engine": self.name}
        logger.warning("%s's answer broke off", self.title, extra=fields)
        if isinstance(error, ReadTimeout):
            return Problem(504, f"{self.title}'s answer broke off: nothing more arrived in time.", NO_RETRY)
        return Problem(502, f"{self.title}'s answer broke off: the connection was lost.")

    def _add(self, answer: dict, kind: str, data: str) -> None:
        """Add an event of a streamed chat completion (or a complete one) to the answer; raises what `event` raises."""
        event = self.event(kind, data, answer["model"])
        if event is None:
            return
        try:
            for choice in event["choices"]:
                if not choice.get("index"):  # only one was requested; ignore others
                    delta = choice.get("delta") or choice.get("message") or {}
                    answer["result"] += delta.get("content") or delta.get("refusal") or ""
                    answer["finish_reason"] = str(choice.get("finish_reason") or "") or answer["finish_reason"]
            answer["usage"] = event.get("usage") or answer["usage"]
        except (LookupError, TypeError, AttributeError):
            raise self.no_completion() from None

    def _refusal(self, status: int, content: bytes, model: str, headers: Mapping[str, str] | None = None) -> Problem:
        """Return the engine's error with its status and message, or 502 for errors that only the operator can fix."""
        if status in (401, 403):
            return self._refused_key()
        if status == 404:
            return Problem(502, f"{self.title} does not serve {model!r}; the operator must load it.")
        if not 400 <= status < 600:
            return Permanent(502, f"{self.title} answered {status}, which is not a chat completion.")
        try:
            message = _sentence(json.loads(content))
        except (ValueError, RecursionError):
            text = " ".join(content.decode(errors="replace").split())
            page = text.startswith("<")  # a proxy's HTML
            message = f"{self.title} said: {text[:MAX_QUOTED]}" if text and not page else ""
        wait = (headers or {}).get("retry-after")
        return Problem(status, message or f"{self.title} answered {status}.", {"Retry-After": wait} if wait else None)

    def _refused_key(self) -> Problem:
        started = f"give it the key that {self.title} was started with"
        logger.error("%s refused %s: %s", self.title, self._key, started, extra={"engine": self.name})
        return Problem(502, f"{self.title} rejected this server's key; the operator must correct {self._key}.")

    def _unreachable(self, error: Failure) -> Problem:
        fields = {"error": f"{type(error).__name__}: {error}", "engine": self.name}
        logger.warning("%s is away", self.title, extra=fields)
        why = f"{self.title} is not reachable or is just starting; try again later."
        return Problem(503, why, {"Retry-After": "10"})


DECODE = json.JSONDecoder(parse_constant=no_json).decode
ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def _sentence(body: object) -> str:
    """Return the message of an error body in any format of engines and gateways; "" if it is not an error."""
    if not isinstance(body, dict):
        return ""
    error = body.get("error") or (body if body.get("object") == "error" else None) or body.get("detail")
    if isinstance(error, dict):
        error = error.get("message")
    return well_formed(error).strip() if isinstance(error, str) else ""


def _status(body: dict) -> int:
    """Return the HTTP status of an error inside a 200 response: its code, 400 by its type, otherwise 502."""
    error = body["error"] if isinstance(body.get("error"), dict) else body
    code = str(error.get("code"))
    if re.fullmatch("[45][0-9][0-9]", code):
        return int(code)
    return 400 if error.get("type") in ("BadRequestError", "invalid_request_error") else 502


class Pulse:
    """Send a comment after each KEEP_ALIVE_SEC of silence between two events, so that proxies keep the stream open.

    It uses one timer, which is checked when it fires: a task per chunk would cost more than the chunk.
    """

    def __init__(self, send: Send) -> None:
        self._send, self._loop = send, asyncio.get_running_loop()
        self._last, self._between, self._sending = self._loop.time(), True, False
        self._comment: asyncio.Future | None = None
        self._timer = self._loop.call_later(KEEP_ALIVE_SEC, self._due)

    async def send(self, chunk: bytes) -> None:
        self._sending, self._last = True, self._loop.time()
        await self._send({"type": "http.response.body", "body": chunk, "more_body": True})
        self._sending, self._between = False, chunk.endswith((b"\n\n", b"\r\n\r\n"))

    def _due(self) -> None:
        left = self._last + KEEP_ALIVE_SEC - self._loop.time()
        if left <= 0:
            if self._between and not self._sending:
                sending = self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})
                self._comment = asyncio.ensure_future(sending)
            self._last, left = self._loop.time(), KEEP_ALIVE_SEC
        self._timer = self._loop.call_later(left, self._due)

    async def stop(self) -> None:
        self._timer.cancel()
        if self._comment:
            self._comment.cancel()
            await asyncio.gather(self._comment, return_exceptions=True)


class Relay(Response):
    """The engine's response, relayed: its status and its bytes, each chunk sent when it arrives.

    body: the request's, or None. A completion without `stream` is still streamed from the engine and then answered in
    one piece, so that HTTP_TIMEOUT_SEC is an idle timeout and does not limit the length of the answer. While the
    engine computes the next token, comments keep proxies from closing the stream.
    """

    def __init__(self, engine: Engine, method: str, path: str, body: dict | None = None) -> None:
        super().__init__()
        self._engine, self._method, self._path, self._body = engine, method, path, body
        self._started, self._pieces = False, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if self._body is None:
                await while_connected(receive, self._relay(scope, send, None))
            else:
                await self._generate(scope, receive, send, self._body)
        except ClientLeft:
            logger.info("the client disconnected before the end")
            if not self._started:
                await Response(status_code=CLIENT_CLOSED_REQUEST)(scope, receive, send)

    async def _generate(self, scope: Scope, receive: Receive, send: Send, body: dict) -> None:
        self._metrics = metrics.generations(scope["model"], scope["caller"], self._engine.name)
        self._usage: object = None
        try:
            with self._metrics.measured() as self._first:
                if body.get("stream") or not can_stream(self._path, body):
                    work = self._relay(scope, send, body)
                else:
                    work = self._whole(scope, send, body)
                await while_connected(receive, work)
        finally:
            # For accounting. The usage comes last; a client that disconnects before is charged for what it received.
            scope["usage"] = self._usage or {"completion_tokens": self._pieces}

    async def _whole(self, scope: Scope, send: Send, body: dict) -> None:
        """Stream from the engine; answer in one piece."""
        streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
        async with self._engine.stream("POST", self._path, _written(streamed), passed_on(scope)) as upstream:
            if upstream.status_code != 200 or not upstream.headers.get("content-type", STREAM).startswith(STREAM):
                content = await self._engine.read(upstream)
                if not (upstream.status_code == 400 and b"stream" in content.lower()):
                    await self._answer(send, upstream, content)
                    return
                content = None  # the engine cannot stream this request: send it without `stream`
            else:
                content = await self._collected(upstream, str(body.get("model")))
        if content is None:
            await self._relay(scope, send, body)
        else:
            await self._send(send, 200, b"application/json", content)

    async def _collected(self, upstream: http1.Response, model: str) -> bytes:
        """Return the complete answer as JSON; raises Problem if the stream contains an error or breaks off."""
        collected, reader, first = Whole(self._path, model), sse.Reader(), True
        try:
            async for chunk in upstream.aiter_bytes():
                self._pieces += chunk.count(PIECE)
                if first:
                    self._first()
                    first = False
                for kind, data in reader.feed(chunk):
                    self._add(collected, self._engine.event(kind, data, model))
            for kind, data in reader.end():
                self._add(collected, self._engine.event(kind, data, model))
            if collected.reasons() & UNFINISHED:
                raise self._engine.unfinished()
            return json.dumps(collected.answer()).encode()
        except (LookupError, TypeError, AttributeError):
            raise self._engine.no_completion() from None

    def _add(self, collected: Whole, event: dict | None) -> None:
        if event is not None:
            collected.add(event)
            self._usage = event.get("usage") or self._usage

    async def _relay(self, scope: Scope, send: Send, body: dict | None) -> None:
        """Relay the engine's answer."""
        content, ours = None, False
        if body is not None:
            ours = self._path in STREAMED and bool(body.get("stream")) and _wants_no_usage(body)
            if ours:
                body = body | {"stream_options": (body.get("stream_options") or {}) | {"include_usage": True}}
            content = _written(body)
        async with self._engine.stream(self._method, self._path, content, passed_on(scope)) as upstream:
            if not upstream.headers.get("content-type", "application/json").startswith(STREAM):
                # Not a stream: read it first, so that a failure can still set the status.
                answer = await upstream.aread()
                if body is not None and upstream.status_code == 200:
                    self._first()
                    self._usage = _usage(answer)
                await self._answer(send, upstream, answer)
                return
            await self._pass_on(send, upstream, ours)

    async def _pass_on(self, send: Send, upstream: http1.Response, ours: bool) -> None:
        """Relay the stream. ours: this server added include_usage, so the caller does not get the usage event."""
        kind = upstream.headers["content-type"].encode("latin-1")
        headers = [(b"content-type", kind), *UNBUFFERED, *_kept(upstream)]
        self._started = True
        await send({"type": "http.response.start", "status": upstream.status_code, "headers": headers})
        pulse, count, first = Pulse(send), UsageFilter(ours), True
        try:
            async for chunk in upstream.aiter_bytes():
                if first and self._body is not None:
                    self._first()
                first = False
                self._pieces += chunk.count(PIECE)
                if chunk := count.passed(chunk):
                    await pulse.send(chunk)
            if chunk := count.rest():
                await pulse.send(chunk)
        except Failure as error:
            problem = self._engine.broken_off(error)
            if self._body is not None:
                self._metrics.failed(problem.status_code)
            await pulse.send(sse.error(problem.body))
        finally:
            await pulse.stop()
            self._usage = count.usage
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _answer(self, send: Send, upstream: http1.Response, content: bytes) -> None:
        """Answer with the engine's status and body."""
        if upstream.status_code == 404 and not _says_error(content):
            raise no_such_path(f"/v1{self._path}", "the engine has no such endpoint")
        if self._body is not None and upstream.status_code >= 400:
            self._metrics.failed(upstream.status_code)
        kind = upstream.headers.get("content-type", "application/json").encode("latin-1")
        await self._send(send, upstream.status_code, kind, content, _kept(upstream))

    async def _send(self, send: Send, status: int, kind: bytes, content: bytes, more: tuple = ()) -> None:
        headers = [(b"content-type", kind), (b"content-length", b"%d" % len(content)), *more]
        self._started = True
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": content, "more_body": False})


class UsageFilter:
    """Read the usage from a relayed stream; remove its event if this server asked for it (`ours`)."""

    def __init__(self, ours: bool) -> None:
        self._ours, self._held = ours, b""
        self.usage: object = None

    def passed(self, chunk: bytes) -> bytes:
        """Return the bytes to send now. If the event is to be removed, an incomplete event is held back."""
        read = self._held + chunk
        ends = [read.rfind(end) + len(end) for end in EVENT_ENDS if end in read]
        end = len(read) if len(read) > MAX_HELD else max(ends, default=0)
        self._held = read[end:]
        kept = self._without(read[:end])
        return kept if self._ours else chunk

    def rest(self) -> bytes:
        """Return the bytes that are still held back at the end of the stream."""
        return self._held if self._ours else b""

    def _read(self, chunk: bytes) -> bool:
        """Store the usage of events; return whether the last one contains only the usage."""
        alone = False
        for line in chunk.split(b"\n"):
            if line.startswith(b"data:") and b'"usage"' in line:
                with contextlib.suppress(ValueError, RecursionError, AttributeError):
                    event = json.loads(line[5:])
                    # /v1/responses has it one level deeper, in the last event of the stream.
                    usage = event.get("usage") or (event.get("response") or {}).get("usage")
                    if isinstance(usage, dict):
                        self.usage, alone = usage, event.get("choices") == []
        return alone

    def _without(self, chunk: bytes) -> bytes:
        if b'"usage"' not in chunk:
            return chunk
        events = re.split(rb"(?<=\n\n)|(?<=\n\r\n)", chunk)
        return b"".join(event for event in events if not (b'"usage"' in event and self._read(event)))


def _wants_no_usage(body: dict) -> bool:
    options = body.get("stream_options")
    return options is None or (isinstance(options, dict) and not options.get("include_usage"))


def _usage(content: bytes) -> object:
    try:
        return json.loads(content).get("usage")
    except (ValueError, RecursionError, AttributeError):
        return None


def _written(body: dict) -> bytes:
    """Return the body as JSON; raises Problem 400 for values that Python can parse but JSON cannot represent."""
    try:
        return ENCODE(body).encode()
    except (ValueError, RecursionError):
        raise Problem(400, "The body is not a JSON object.") from None


def passed_on(scope: Scope) -> dict[str, str]:
    """Return the request headers for the engine: the request ID.

    Callers choose request IDs, but an engine must not get the same ID twice at a time; a suffix makes each unique.
    """
    ident = scope.get("request_id")
    return {"X-Request-Id": f"{ident}-{uuid.uuid4().hex[:8]}"} if ident else {}


def _kept(upstream: http1.Response) -> tuple:
    wait = upstream.headers.get("retry-after")
    return ((b"retry-after", wait.encode("latin-1")),) if wait else ()


def _says_error(content: bytes) -> bool:
    """Return whether this is an error in the engine's format; the 404 for an unknown path is not."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(body, dict) and (bool(body.get("error")) or body.get("object") == "error")


async def client_left(request: Request, error: ClientLeft) -> Response:
    """FastAPI's exception handler for a client that left: only the log and the metrics get this response."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)
