"""Stand-ins for vLLM, the backend and the OCR service; the request selects their behaviour."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


def wait_for(condition: Callable[[], Any], seconds: float = 10) -> Any:
    """Return the first true value of the condition; raise AssertionError if there is none in time."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {seconds} s: {condition}")


def chunk(delta: dict, finish_reason: str | None = None) -> str:
    """Return one event of a streamed chat completion."""
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return f"data: {json.dumps({'choices': [choice]})}\n\n"


async def _sent(chunks: list[bytes | None]):
    for content in chunks:
        if content is None:
            raise ConnectionAbortedError("the engine died")
        yield content
        await asyncio.sleep(0.005)  # so that it arrives as a separate chunk


class StandIns:
    """One server for all three.

    asked: every request, `{"path", "headers", "body"}`. left: the texts of clients that disconnected before the end.
    go_on: set it to continue a held answer. callback_status: the backend's status codes; the last one repeats.
    backend_holds: whether the backend waits for go_on.
    says: replaces vLLM's answer: (status, content type, chunks); a chunk None aborts the connection.
    """

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.reset()
        # Without an explicit protocol asyncio does not set TCP_NODELAY, which costs 40 ms per answer.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        routes = [
            Route("/health", self._health),
            Route("/v1/models", self._models),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/ocr", self._ocr, methods=["POST"]),
            Route("/{callback:path}", self._callback, methods=["POST"]),
        ]
        config = uvicorn.Config(Starlette(routes=routes), log_config=None, timeout_graceful_shutdown=0)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), daemon=True)

    def reset(self) -> None:
        self.go_on.clear()
        self.asked: list[dict] = []
        self.left: list[str] = []
        self.callback_status = [200]
        self.models = ["base"]
        self.backend_holds = False
        self.says: tuple[int, str, list[bytes | None]] | None = None
        self.ocr_answer: Any = {"pages": [{"text": "words of a scan"}]}

    def __enter__(self) -> "StandIns":
        self._thread.start()
        wait_for(lambda: self._server.started)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(5)

    def callbacks(self) -> list[dict]:
        return [request for request in self.asked if "callbacks" in request["path"]]

    async def _note(self, request: Request) -> Any:
        raw = await request.body()
        body = json.loads(raw) if request.headers.get("content-type") == "application/json" else raw
        self.asked.append({"path": request.url.path, "headers": dict(request.headers), "body": body})
        return body

    async def _hold(self, request: Request, text: str) -> bool:
        """Wait; return True when the test sets go_on, False when the client disconnects."""
        try:
            while not self.go_on.is_set():
                if await request.is_disconnected():
                    self.left.append(text)
                    return False
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:  # a StreamingResponse notices the disconnect first and cancels
            self.left.append(text)
            raise
        return True

    async def _health(self, request: Request) -> Response:
        return Response()

    async def _models(self, request: Request) -> Response:
        await self._note(request)
        return JSONResponse({"object": "list", "data": [{"id": name} for name in self.models]})

    async def _chat(self, request: Request) -> Response:
        body = await self._note(request)
        text = body["messages"][-1]["content"]
        if self.says:
            status, kind, chunks = self.says
            return StreamingResponse(_sent(chunks), status, media_type=kind)
        if text == "too long":
            return JSONResponse({"error": {"message": "the context is 8192 tokens", "code": 400}}, 400)
        if text == "wrong key":
            return JSONResponse({"error": "Unauthorized"}, 401)
        if body["model"] == "not-loaded":
            return JSONResponse({"error": {"message": "The model does not exist."}}, 404)
        if text == "internal":
            return Response("oops", 500)
        if body.get("stream"):
            return StreamingResponse(self._stream(request, body["model"], text), media_type="text/event-stream")
        if "hold" in text and not await self._hold(request, text):
            return Response()
        message = {"role": "assistant", "content": f"{body['model']} on {text}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        return JSONResponse({"model": body["model"], "choices": [choice], "usage": {"total_tokens": 7}})

    async def _stream(self, request: Request, model: str, text: str):
        yield chunk({"role": "assistant", "content": model})
        if "hold" in text and not await self._hold(request, text):
            return
        if "break" in text:
            raise ConnectionAbortedError("the engine died")
        if "nonsense" in text:
            yield "data: {}\n\n"
        yield chunk({"content": f" on {text}"})
        if "cut" not in text:
            yield chunk({}, "stop")
            yield 'data: {"choices": [], "usage": {"total_tokens": 7}}\n\n'
        yield "data: [DONE]\n\n"

    async def _ocr(self, request: Request) -> Response:
        await self._note(request)
        return Response(json.dumps(self.ocr_answer), media_type="application/json")  # may have a lone surrogate

    async def _callback(self, request: Request) -> Response:
        body = await self._note(request)
        if self.backend_holds and not await self._hold(request, str(body)):
            return Response()
        if self.says and request.url.path.startswith("/v1/"):
            status, kind, chunks = self.says
            return StreamingResponse(_sent(chunks), status, media_type=kind)
        status = self.callback_status.pop(0) if self.callback_status[1:] else self.callback_status[0]
        elsewhere = {"Location": "/elsewhere/callbacks"} if 300 <= status < 400 else None
        return Response(status_code=status, headers=elsewhere)
