"""An engine, such as vLLM: requests passed through as they are, and whole answers for the endpoints of our own.

A client that leaves takes its request in the engine with it: `while_connected` cancels the call, the connection is
closed, and the engine aborts the generation when it sees that.
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
CLIENT_CLOSED_REQUEST = 499  # the customary status for the log; nobody is left to read it
KEEP_ALIVE_SEC = 15  # of silence; nginx and the usual load balancers give an idle connection up after 60
COMMENT = b": waiting\n\n"
STREAM = "text/event-stream"
PIECE = b"data:"  # of an answer: a token, in most streams
UNFINISHED = {None, "abort", "error"}  # the engine gave the answer up, or was stopped in the middle of it
MAX_TOLD = 300  # characters of an error page that are told on
UNBUFFERED = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))  # the second is for proxies such as nginx
EVENT_ENDS = (b"\n\n", b"\n\r\n")
MAX_HELD = 1 << 20  # bytes of half an event
NO_RETRY = {"X-Should-Retry": "false"}  # OpenAI's clients heed it; a generation repeated is a generation paid twice
LISTED_SEC = 60  # between two looks at the engine's list of models

T = TypeVar("T")
logger = logging.getLogger(__name__)


class ClientLeft(Exception):
    """The client closed its connection before it had its answer."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; cancel it and raise ClientLeft as soon as the client leaves.

    The request's body must have been read: from then on `receive` has nothing but the disconnect to tell.
    """
    this, left = asyncio.current_task(), False

    async def leave() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            pass
        left = True
        this.cancel()

    # The work stays in its own task: only the watching costs one, and a stop of the server still reaches the work.
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
    """One engine, asked with its key. Made inside the running event loop.

    timeout: seconds of silence (HTTP_TIMEOUT_SEC). title: its name in sentences. key: where its key is set.

    Every method raises Problem: 503 when the engine is away, 504 when it stays silent for too long, 502 when it
    refuses our key.
    """

    def __init__(self, entry: Entry, timeout: float, title: str, key: str) -> None:
        self.entry, self.name, self.title, self._key = entry, entry.name, title, key
        self._names = set(entry.models)
        self._listed, self._listing = float("-inf"), None
        headers = {
            "Authorization": f"Bearer {entry.api_key}",
            "Accept-Encoding": "identity",  # nothing is won by it on one machine
            "User-Agent": "ai-server",
        }
        self._http = http1.Client(entry.url.removesuffix("/v1"), headers, timeout)

    async def close(self) -> None:
        if self._listing:
            self._listing.cancel()
        await self._http.close()

    async def health(self) -> str:
        """Return "ok", or why the engine cannot serve."""
        try:
            response = await self._http.request("GET", "/health", timeout=HEALTH_TIMEOUT_SEC)
        except Failure as error:
            return f"away: {type(error).__name__}"
        response.release()
        status = response.status_code
        return "ok" if status == 200 else f"unhealthy: its /health answered {status}"

    async def models(self) -> list[dict]:
        """Return the engine's list of models. Raises Problem 502 for what is no list, besides the others."""
        async with self.stream("GET", "/models") as response:
            content = await self.read(response)
            try:
                listed = json.loads(content)["data"]
                self._names |= {model["id"] for model in listed if isinstance(model["id"], str)}
            except (ValueError, LookupError, TypeError, RecursionError):
                raise Problem(502, f"{self.title}'s list of models cannot be read.") from None
        return listed

    def known(self, model: object) -> str:
        """Return the model's name where the engine lists it, or `other`; an unknown one makes us look, now and then."""
        if isinstance(model, str) and model in self._names:
            return model
        if time.monotonic() - self._listed > LISTED_SEC:
            self._listed = time.monotonic()
            self._listing = asyncio.ensure_future(self._look())
        return metrics.OTHER

    async def _look(self) -> None:
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

        options: further fields of a chat completion, such as max_tokens. first: called when the first piece is here.
        used: told the usage, or the pieces that came where it ends before. A refusal by the engine is raised with the
        engine's own status and sentence.
        """
        messages = [{"role": "system", "content": instruction}, {"role": "user", "content": text}]
        # Streamed, so that HTTP_TIMEOUT_SEC limits the engine's silence and not the length of its answer.
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
                else:  # a whole answer, an error, or a page of something else
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
        """Yield the response as soon as its headers are here; transport errors, also while it is read, are Problems.

        body: an object, or one that is written as JSON already.
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
            raise self._away(error) from None
        except Failure as error:
            if response is not None:
                raise self.broken_off(error) from None
            if not isinstance(error, ReadTimeout):
                raise self._away(error) from None
            told = {"error": type(error).__name__, "path": path, "engine": self.name}
            logger.warning("%s was silent for too long", self.title, extra=told)
            raise Problem(504, f"{self.title} did not answer in time.", NO_RETRY) from None
        finally:
            if response is not None:
                response.release()  # ends the generation, unless all of it is here

    async def read(self, response: http1.Response) -> bytes:
        try:
            return await response.aread()
        except Failure as error:
            raise self.broken_off(error) from None

    def event(self, kind: str, data: str, model: str) -> dict | None:
        """Return an event of a streamed completion (or a whole one); None for what is neither words nor an error.

        Raises Problem: the engine's own for an error, Permanent for what cannot be read.
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
            return None  # such as the pings of a gateway
        if not isinstance(event, dict):
            raise self.no_completion()
        return event

    def no_completion(self) -> Problem:
        return Permanent(502, f"{self.title}'s answer is not a chat completion.")

    def unfinished(self) -> Problem:
        return Problem(502, f"{self.title}'s answer broke off.")

    def broken_off(self, error: Failure) -> Problem:
        """Return what is told when the connection ends, or no more comes, after the answer has begun."""
        told = {"error": type(error).__name__, "engine": self.name}
        logger.warning("%s's answer broke off", self.title, extra=told)
        if isinstance(error, ReadTimeout):
            return Problem(504, f"{self.title}'s answer broke off: no more of it came in time.", NO_RETRY)
        return Problem(502, f"{self.title}'s answer broke off: the connection was lost.")

    def _add(self, answer: dict, kind: str, data: str) -> None:
        """Put one event of a streamed chat completion (or a whole completion) to the answer so far; raises as event."""
        event = self.event(kind, data, answer["model"])
        if event is None:
            return
        try:
            for choice in event["choices"]:
                if not choice.get("index"):  # one was asked for; a second one's words do not belong between its own
                    said = choice.get("delta") or choice.get("message") or {}
                    answer["result"] += said.get("content") or said.get("refusal") or ""
                    answer["finish_reason"] = str(choice.get("finish_reason") or "") or answer["finish_reason"]
            answer["usage"] = event.get("usage") or answer["usage"]
        except (LookupError, TypeError, AttributeError):
            raise self.no_completion() from None

    def _refusal(self, status: int, content: bytes, model: str, headers: Mapping[str, str] | None = None) -> Problem:
        """Return its refusal with its status and sentence, but for what only this server's operator can mend."""
        if status in (401, 403):
            return self._refused_key()
        if status == 404:
            return Problem(502, f"{self.title} does not serve {model!r}; the operator has to load it.")
        if not 400 <= status < 600:
            return Permanent(502, f"{self.title} answered {status}, which is not a chat completion.")
        try:
            said = _sentence(json.loads(content))
        except (ValueError, RecursionError):
            text = " ".join(content.decode(errors="replace").split())
            page = text.startswith("<")  # of a proxy
            said = f"{self.title} said: {text[:MAX_TOLD]}" if text and not page else ""
        wait = (headers or {}).get("retry-after")
        return Problem(status, said or f"{self.title} answered {status}.", {"Retry-After": wait} if wait else None)

    def _refused_key(self) -> Problem:
        started = f"give it the key that {self.title} was started with"
        logger.error("%s refused %s: %s", self.title, self._key, started, extra={"engine": self.name})
        return Problem(502, f"{self.title} refused this server's key; its operator has to mend {self._key}.")

    def _away(self, error: Failure) -> Problem:
        told = {"error": f"{type(error).__name__}: {error}", "engine": self.name}
        logger.warning("%s is away", self.title, extra=told)
        why = f"{self.title} is not reachable or is just starting; try again later."
        return Problem(503, why, {"Retry-After": "10"})


DECODE = json.JSONDecoder(parse_constant=no_json).decode
ENCODE = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def _sentence(body: object) -> str:
    """Return what an error body says, in any of the shapes that engines and gateways use; "" where it is none."""
    if not isinstance(body, dict):
        return ""
    error = body.get("error") or (body if body.get("object") == "error" else None) or body.get("detail")
    if isinstance(error, dict):
        error = error.get("message")
    return well_formed(error).strip() if isinstance(error, str) else ""


def _status(body: dict) -> int:
    """Return the HTTP status that an error in the middle of a 200 names; 502 where it names none."""
    error = body["error"] if isinstance(body.get("error"), dict) else body
    code = str(error.get("code"))
    if re.fullmatch("[45][0-9][0-9]", code):
        return int(code)
    return 400 if error.get("type") in ("BadRequestError", "invalid_request_error") else 502


class Pulse:
    """Send a comment after each KEEP_ALIVE_SEC of silence between two events, so that proxies see a stream alive.

    One timer, looked at when it is due: a task for each chunk would cost more than the chunk.
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
                told = self._send({"type": "http.response.body", "body": COMMENT, "more_body": True})
                self._comment = asyncio.ensure_future(told)
            self._last, left = self._loop.time(), KEEP_ALIVE_SEC
        self._timer = self._loop.call_later(left, self._due)

    async def stop(self) -> None:
        self._timer.cancel()
        if self._comment:
            self._comment.cancel()
            await asyncio.gather(self._comment, return_exceptions=True)


class Relay(Response):
    """A response that is the engine's own: its status and its bytes, each chunk sent on when it arrives.

    body: the request's, or None. A completion that is asked for whole is streamed inside and answered whole, so that
    HTTP_TIMEOUT_SEC limits the engine's silence and not the length of its answer. While the engine computes the first
    token of a long text, or the next one, comments tell proxies that a stream still lives.
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
            logger.info("the client left before the end")
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
            # For the account. Who leaves before the end, where the engine tells the usage, is charged what came.
            scope["usage"] = self._usage or {"completion_tokens": self._pieces}

    async def _whole(self, scope: Scope, send: Send, body: dict) -> None:
        """Stream inside, answer whole."""
        streamed = body | {"stream": True, "stream_options": {"include_usage": True}}
        async with self._engine.stream("POST", self._path, _written(streamed), passed_on(scope)) as upstream:
            if upstream.status_code != 200 or not upstream.headers.get("content-type", STREAM).startswith(STREAM):
                content = await self._engine.read(upstream)
                if not (upstream.status_code == 400 and b"stream" in content.lower()):
                    await self._answer(send, upstream, content)
                    return
                content = None  # what it can only answer whole it refuses before it begins: ask for that
            else:
                content = await self._collected(upstream, str(body.get("model")))
        if content is None:
            await self._relay(scope, send, body)
        else:
            await self._send(send, 200, b"application/json", content)

    async def _collected(self, upstream: http1.Response, model: str) -> bytes:
        """Return the whole answer as JSON; raises Problem where the stream tells of an error, or breaks off."""
        whole, reader, first = Whole(self._path, model), sse.Reader(), True
        try:
            async for chunk in upstream.aiter_bytes():
                self._pieces += chunk.count(PIECE)
                if first:
                    self._first()
                    first = False
                for kind, data in reader.feed(chunk):
                    self._add(whole, self._engine.event(kind, data, model))
            for kind, data in reader.end():
                self._add(whole, self._engine.event(kind, data, model))
            if whole.reasons() & UNFINISHED:
                raise self._engine.unfinished()
            return json.dumps(whole.answer()).encode()
        except (LookupError, TypeError, AttributeError):
            raise self._engine.no_completion() from None

    def _add(self, whole: Whole, event: dict | None) -> None:
        if event is not None:
            whole.add(event)
            self._usage = event.get("usage") or self._usage

    async def _relay(self, scope: Scope, send: Send, body: dict | None) -> None:
        """Pass the engine's own answer on."""
        content, ours = None, False
        if body is not None:
            ours = self._path in STREAMED and bool(body.get("stream")) and _wants_no_usage(body)
            if ours:
                body = body | {"stream_options": (body.get("stream_options") or {}) | {"include_usage": True}}
            content = _written(body)
        async with self._engine.stream(self._method, self._path, content, passed_on(scope)) as upstream:
            if not upstream.headers.get("content-type", "application/json").startswith(STREAM):
                # One piece anyway. Read before it is answered, so that a failure still finds its status.
                answer = await upstream.aread()
                if body is not None and upstream.status_code == 200:
                    self._first()
                    self._usage = _usage(answer)
                await self._answer(send, upstream, answer)
                return
            await self._pass_on(send, upstream, ours)

    async def _pass_on(self, send: Send, upstream: http1.Response, ours: bool) -> None:
        """Send the stream on. ours: that the engine counts the tokens was our wish, so the caller does not see it."""
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
        """Answer with the engine's own status and what it said."""
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
    """Read the usage off a stream that passes; take its event out where it was our wish. Everything else stays."""

    def __init__(self, ours: bool) -> None:
        self._ours, self._held = ours, b""
        self.usage: object = None

    def passed(self, chunk: bytes) -> bytes:
        """Return what is to be sent on now. Where an event is taken out, half an event waits for its other half."""
        read = self._held + chunk
        ends = [read.rfind(end) + len(end) for end in EVENT_ENDS if end in read]
        end = len(read) if len(read) > MAX_HELD else max(ends, default=0)
        self._held = read[end:]
        kept = self._without(read[:end])
        return kept if self._ours else chunk

    def rest(self) -> bytes:
        """Return what is still held back at the end."""
        return self._held if self._ours else b""

    def _read(self, chunk: bytes) -> bool:
        """Note the usage of events; say whether the last one has nothing but the usage."""
        alone = False
        for line in chunk.split(b"\n"):
            if line.startswith(b"data:") and b'"usage"' in line:
                with contextlib.suppress(ValueError, RecursionError, AttributeError):
                    event = json.loads(line[5:])
                    # The responses' endpoint has it one deeper, in the event that ends the stream.
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
    """Return the body as JSON; raises Problem 400 for what Python reads and no JSON can carry on."""
    try:
        return ENCODE(body).encode()
    except (ValueError, RecursionError):
        raise Problem(400, "The body is not a JSON object.") from None


def passed_on(scope: Scope) -> dict[str, str]:
    """Return the request headers for the engine: the request ID.

    Callers choose ids, and an engine must not meet one twice at the same time: each is made unique by its end.
    """
    ident = scope.get("request_id")
    return {"X-Request-Id": f"{ident}-{uuid.uuid4().hex[:8]}"} if ident else {}


def _kept(upstream: http1.Response) -> tuple:
    wait = upstream.headers.get("retry-after")
    return ((b"retry-after", wait.encode("latin-1")),) if wait else ()


def _says_error(content: bytes) -> bool:
    """Say whether it is an error in the engine's own shape; a 404 of a path that it lacks is not."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        return False
    return isinstance(body, dict) and (bool(body.get("error")) or body.get("object") == "error")


async def client_left(request: Request, error: ClientLeft) -> Response:
    """FastAPI's exception handler: only the log and the metrics see it."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)
