"""vLLM: requests passed through as they are, and whole answers for the endpoints of our own.

A client that leaves takes its request in vLLM with it: `while_connected` cancels the call, httpx closes the
connection, and vLLM aborts the generation when it sees that.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from app.errors import Problem
from app.settings import Settings

HEALTH_TIMEOUT_SEC = 2
CLIENT_CLOSED_REQUEST = 499  # the customary status for the log; nobody is left to read it
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
                "Accept-Encoding": "identity",  # so that the bytes can be relayed as they are
            },
            timeout=settings.http_timeout_sec,
            # vLLM has a queue of its own. It drops idle connections after 5 s: be the first to let go.
            limits=httpx.Limits(max_connections=None, keepalive_expiry=2),
            trust_env=False,  # a proxy for the outside world must not see these requests
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

    async def complete(self, model: str, instruction: str, text: str, options: dict) -> dict:
        """Return `{"model": str, "result": str, "finish_reason": str, "usage": {…}}`, generated at temperature 0.

        options: further fields of a chat completion, such as max_tokens. A refusal by vLLM is raised with vLLM's
        own status and sentence.
        """
        messages = [{"role": "system", "content": instruction}, {"role": "user", "content": text}]
        # Streamed, so that HTTP_TIMEOUT_SEC limits vLLM's silence and not the length of its answer.
        how = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
        answer = {"model": model, "result": "", "finish_reason": None, "usage": None}
        async with self.stream(
            "POST", "/chat/completions", {"model": model, "messages": messages, **how, **options}
        ) as response:
            if response.status_code == 404:
                raise Problem(502, f"vLLM does not serve {model!r}; the operator has to load it.")
            if response.status_code != 200:
                await response.aread()
                raise Problem(response.status_code, _message(response))
            try:
                async for line in response.aiter_lines():
                    if line.startswith("data:") and (event := line[5:].strip()) != "[DONE]":
                        _add(answer, json.loads(event))
            except (ValueError, LookupError, TypeError, AttributeError):
                raise Problem(502, "vLLM's answer is not a chat completion.") from None
        if answer["finish_reason"] is None:
            raise Problem(502, "vLLM's answer broke off.")
        return answer

    @asynccontextmanager
    async def stream(self, method: str, path: str, body: dict | None = None) -> AsyncIterator[httpx.Response]:
        """Yield the response as soon as its headers are here; transport errors, also while it is read, are Problems."""
        try:
            async with self._http.stream(method, self._base + path, json=body) as response:
                if response.status_code in (401, 403):
                    logger.error("vLLM refused VLLM_API_KEY: give it the key that vLLM was started with")
                    raise Problem(502, "vLLM refused this server's key; its operator has to mend VLLM_API_KEY.")
                yield response
        except httpx.ConnectTimeout as error:
            raise _away(error) from None
        except httpx.TimeoutException as error:
            logger.warning("vLLM was silent for too long", extra={"error": type(error).__name__, "path": path})
            raise Problem(504, "vLLM did not answer in time.") from None
        except httpx.HTTPError as error:
            raise _away(error) from None


def _add(answer: dict, chunk: dict) -> None:
    """Put one chunk of a streamed chat completion to the answer so far."""
    for choice in chunk["choices"]:
        answer["result"] += choice["delta"].get("content") or ""
        answer["finish_reason"] = choice.get("finish_reason") or answer["finish_reason"]
    answer["usage"] = chunk.get("usage") or answer["usage"]


def _away(error: httpx.HTTPError) -> Problem:
    logger.warning("vLLM is away", extra={"error": f"{type(error).__name__}: {error}"})
    return Problem(503, "vLLM is not reachable or is just starting; try again later.", {"Retry-After": "10"})


def _message(response: httpx.Response) -> str:
    try:
        return response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        return f"vLLM answered {response.status_code}."


class Relay(Response):
    """A response that is vLLM's own: its status and its bytes, each chunk sent on when it arrives."""

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
            if not kind.startswith("text/event-stream"):
                # One piece anyway. Read before it is answered, so that a failure still finds its status.
                whole = Response(await upstream.aread(), upstream.status_code, kept, kind)
                await whole(scope, receive, send)
                return
            started = Response(None, upstream.status_code, UNBUFFERED | kept, kind)
            headers = [pair for pair in started.raw_headers if pair[0] != b"content-length"]
            self._started = True
            await send({"type": "http.response.start", "status": upstream.status_code, "headers": headers})
            try:
                async for chunk in upstream.aiter_raw():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except httpx.HTTPError as error:
                logger.warning("vLLM's stream broke", extra={"error": type(error).__name__})
                broken = JSONResponse({"error": Problem(502, "vLLM's stream broke off.").body}).body
                await send({"type": "http.response.body", "body": b"\n\ndata: " + broken + b"\n\n", "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def client_left(request: Request, error: ClientLeft) -> Response:
    """FastAPI's exception handler: only the log and the metrics see it."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)
