"""vLLM: requests passed through as they are, and whole answers for the endpoints of our own.

A client that leaves takes its request in vLLM with it: `while_connected` cancels the call, httpx closes the
connection, and vLLM aborts the generation when it sees that.
"""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from app import sse
from app.errors import Permanent, Problem
from app.settings import Settings
from app.text import well_formed

HEALTH_TIMEOUT_SEC = 2
CLIENT_CLOSED_REQUEST = 499  # the customary status for the log; nobody is left to read it
KEEP_ALIVE_SEC = 15  # of silence; nginx and the usual load balancers give an idle connection up after 60
COMMENT = b": waiting\n\n"
STREAM = "text/event-stream"
UNFINISHED = {None, "abort", "error"}  # the engine gave the answer up, or was stopped in the middle of it
MAX_TOLD = 300  # characters of an error page that are told on
UNBUFFERED = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}  # the second is for proxies such as nginx

T = TypeVar("T")
logger = logging.getLogger(__name__)


class ClientLeft(Exception):
    """The client closed its connection before it had its answer."""


async def while_connected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; cancel it and raise ClientLeft as soon as the client leaves.

    The request's body must have been read: from then on `receive` has nothing but the disconnect to tell.
    """

    async def leave() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(leave())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeft
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


class Vllm:
    """The engine behind VLLM_BASE_URL, asked with VLLM_API_KEY.

    Every method raises Problem: 503 when the engine is away, 504 when it stays silent for HTTP_TIMEOUT_SEC, 502
    when it refuses our key.
    """

    def __init__(self, settings: Settings) -> None:
        self._base = settings.vllm_base_url
        self._http = httpx.AsyncClient(
            headers={
                "Authorization": f"Bearer {settings.vllm_api_key.get_secret_value()}",
                "Accept-Encoding": "identity",  # nothing is won by it on one machine
            },
            timeout=settings.http_timeout_sec,
            # vLLM has a queue of its own. It drops idle connections after 5 s: be the first to let go.
            limits=httpx.Limits(max_connections=None, keepalive_expiry=2),
            trust_env=False,  # a proxy for the outside world must not see these requests
            verify=httpx.create_ssl_context(),  # SSL_CERT_FILE counts all the same
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def health(self) -> str:
        """Return "ok", or why vLLM cannot serve."""
        try:
            response = await self._http.get(self._base.removesuffix("/v1") + "/health", timeout=HEALTH_TIMEOUT_SEC)
        except httpx.HTTPError as error:
            return f"away: {type(error).__name__}"
        return "ok" if response.status_code == 200 else f"unhealthy: its /health answered {response.status_code}"

    async def models(self, allowed: frozenset[str]) -> dict:
        """Return vLLM's list of models with those that are allowed."""
        async with self.stream("GET", "/models") as response:
            content = await response.aread()
        try:
            listed = json.loads(content)
            return listed | {"data": [model for model in listed["data"] if model["id"] in allowed]}
        except (ValueError, LookupError, TypeError):
            raise Problem(502, "vLLM's list of models cannot be read.") from None

    async def complete(self, model: str, instruction: str, text: str, options: dict) -> dict:
        """Return `{"model": str, "result": str, "finish_reason": str, "usage": {…}}`, generated at temperature 0.

        options: further fields of a chat completion, such as max_tokens. A refusal by vLLM is raised with vLLM's
        own status and sentence.
        """
        messages = [{"role": "system", "content": instruction}, {"role": "user", "content": text}]
        # Streamed, so that HTTP_TIMEOUT_SEC limits vLLM's silence and not the length of its answer.
        how = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
        answer = {"model": model, "result": "", "finish_reason": None, "usage": None}
        body = {"model": model, "messages": messages, **how, **options}
        async with self.stream("POST", "/chat/completions", body) as response:
            if response.status_code != 200:
                raise _refusal(response.status_code, await response.aread(), model, response.headers)
            if response.headers.get("content-type", STREAM).startswith(STREAM):
                async for kind, data in sse.events(response.aiter_bytes()):
                    _add(answer, kind, data)
            else:  # a whole answer, an error, or a page of something else
                _add(answer, "message", (await response.aread()).decode(errors="replace"))
        if answer["finish_reason"] in UNFINISHED:
            raise Problem(502, "vLLM's answer broke off.")
        return answer | {"result": well_formed(answer["result"])}

    @asynccontextmanager
    async def stream(self, method: str, path: str, body: dict | None = None) -> AsyncIterator[httpx.Response]:
        """Yield the response as soon as its headers are here; transport errors, also while it is read, are Problems."""
        begun = False
        try:
            async with self._http.stream(method, self._base + path, json=body) as response:
                begun = True
                if response.status_code in (401, 403):
                    raise _refused_key()
                yield response
        except httpx.ConnectTimeout as error:
            raise _away(error) from None
        except httpx.TimeoutException as error:
            if begun:
                raise broken_off(error) from None
            logger.warning("vLLM was silent for too long", extra={"error": type(error).__name__, "path": path})
            raise Problem(504, "vLLM did not answer in time.") from None
        except httpx.HTTPError as error:
            raise (broken_off if begun else _away)(error) from None


def _add(answer: dict, kind: str, data: str) -> None:
    """Put one event of a streamed chat completion (or a whole completion) to the answer so far.

    Raises Problem: the engine's own for an error, Permanent for what is neither.
    """
    if data.strip() == "[DONE]":
        return
    try:
        event = json.loads(data, parse_constant=_no_json)
    except (ValueError, RecursionError):
        event = None
    fields = event if isinstance(event, dict) else {}
    if kind == "error" or fields.get("error") or ("choices" not in fields and _sentence(fields)):
        raise _refusal(_status(fields), data.encode(), answer["model"])
    if kind != "message" and "choices" not in fields:
        return  # such as the pings of a gateway
    try:
        for choice in event["choices"]:
            if not choice.get("index"):  # one was asked for; a second one's words do not belong between its own
                said = choice.get("delta") or choice.get("message") or {}
                answer["result"] += said.get("content") or said.get("refusal") or ""
                answer["finish_reason"] = str(choice.get("finish_reason") or "") or answer["finish_reason"]
        answer["usage"] = event.get("usage") or answer["usage"]
    except (LookupError, TypeError, AttributeError):
        raise Permanent(502, "vLLM's answer is not a chat completion.") from None


def _no_json(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


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


def _refusal(status: int, content: bytes, model: str, headers: Mapping[str, str] | None = None) -> Problem:
    """Return vLLM's refusal with its status and sentence, but for what only this server's operator can mend."""
    if status in (401, 403):
        return _refused_key()
    if status == 404:
        return Problem(502, f"vLLM does not serve {model!r}; the operator has to load it.")
    if not 400 <= status < 600:
        return Permanent(502, f"vLLM answered {status}, which is not a chat completion.")
    try:
        said = _sentence(json.loads(content))
    except (ValueError, RecursionError):
        text = " ".join(content.decode(errors="replace").split())
        said = f"vLLM said: {text[:MAX_TOLD]}" if text and not text.startswith("<") else ""  # no page of a proxy
    wait = (headers or {}).get("retry-after")
    return Problem(status, said or f"vLLM answered {status}.", {"Retry-After": wait} if wait else None)


def _refused_key() -> Problem:
    logger.error("vLLM refused VLLM_API_KEY: give it the key that vLLM was started with")
    return Problem(502, "vLLM refused this server's key; its operator has to mend VLLM_API_KEY.")


def broken_off(error: httpx.HTTPError) -> Problem:
    """Return what is told when the connection ends, or no more comes, after the answer has begun."""
    logger.warning("vLLM's answer broke off", extra={"error": type(error).__name__})
    if isinstance(error, httpx.TimeoutException):
        return Problem(504, "vLLM's answer broke off: no more of it came in time.")
    return Problem(502, "vLLM's answer broke off: the connection was lost.")


def _away(error: httpx.HTTPError) -> Problem:
    logger.warning("vLLM is away", extra={"error": f"{type(error).__name__}: {error}"})
    return Problem(503, "vLLM is not reachable or is just starting; try again later.", {"Retry-After": "10"})


async def with_pauses(chunks: AsyncIterator[bytes], seconds: float) -> AsyncIterator[bytes | None]:
    """Yield the chunks as they come, and None each time that none came for so long."""
    coming = None
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(chunks, None))
            await asyncio.wait({coming}, timeout=seconds)
            if not coming.done():
                yield None
                continue
            chunk, coming = coming.result(), None
            if chunk is None:
                return
            yield chunk
    finally:
        if coming:
            coming.cancel()
            await asyncio.gather(coming, return_exceptions=True)


class Relay(Response):
    """A response that is vLLM's own: its status and its bytes, each chunk sent on when it arrives.

    While vLLM computes the first token of a long text, or the next one, comments tell proxies that this still lives.
    """

    def __init__(self, vllm: Vllm, method: str, path: str, body: dict | None = None) -> None:
        super().__init__()
        self._vllm, self._call = vllm, (method, path, body)
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._relay(scope, receive, send))
        except ClientLeft:
            logger.info("the client left before the end")
            if not self._started:
                await Response(status_code=CLIENT_CLOSED_REQUEST)(scope, receive, send)

    async def _relay(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._vllm.stream(*self._call) as upstream:
            kind = upstream.headers.get("content-type", "application/json")
            kept = {name: value for name, value in upstream.headers.items() if name == "retry-after"}
            if not kind.startswith(STREAM):
                # One piece anyway. Read before it is answered, so that a failure still finds its status.
                whole = Response(await upstream.aread(), upstream.status_code, kept, kind)
                await whole(scope, receive, send)
                return
            started = Response(None, upstream.status_code, UNBUFFERED | kept, kind)
            headers = [pair for pair in started.raw_headers if pair[0] != b"content-length"]
            self._started = True
            await send({"type": "http.response.start", "status": upstream.status_code, "headers": headers})
            between = True  # two events: the one place for a comment
            try:
                async for chunk in with_pauses(upstream.aiter_bytes(), KEEP_ALIVE_SEC):
                    if chunk is not None:
                        between = chunk.endswith((b"\n\n", b"\r\n\r\n"))
                    elif between:
                        chunk = COMMENT
                    if chunk:
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except httpx.HTTPError as error:
                broken = JSONResponse({"error": broken_off(error).body}).body
                await send({"type": "http.response.body", "body": b"\n\ndata: " + broken + b"\n\n", "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def client_left(request: Request, error: ClientLeft) -> Response:
    """FastAPI's exception handler: only the log and the metrics see it."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)
