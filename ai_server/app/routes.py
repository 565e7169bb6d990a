"""The endpoints that are vLLM's own: found by one look, passed on by as few layers as there can be.

FastAPI answers everything else: there a request passes more layers than it needs here.
"""

import json

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from app.errors import Problem, answer
from app.settings import Settings
from app.upstream import ClientLeft, Relay, Vllm, client_left, while_connected

MODELS, MODEL = "/v1/models", "/v1/models/"
GENERATES = {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"}


class Routes:
    """ASGI middleware right around the FastAPI application: answer vLLM's own endpoints, the ones on the list."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self.app = app
        self._model = settings.vllm_model

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        if path in GENERATES:
            handler, method = path, "POST"
        elif path == MODELS:
            handler, method = path, "GET"
        elif path.startswith(MODEL) and path != MODEL:
            handler, method = MODEL + "{id}", "GET"
        else:
            await self.app(scope, receive, send)
            return
        scope["handler"] = handler
        try:
            if scope["method"] != method:
                raise Problem(405, f"{handler} takes {method}.", {"Allow": method})
            response = await self._response(self.app.state.service.vllm, handler, scope, receive)
            await response(scope, receive, send)
        except Problem as problem:
            await (await answer(Request(scope), problem))(scope, receive, send)
        except (ClientLeft, ClientDisconnect) as left:
            await (await client_left(Request(scope), left))(scope, receive, send)

    async def _response(self, vllm: Vllm, handler: str, scope: Scope, receive: Receive) -> Response:
        if handler in GENERATES:
            body = await read_object(receive)
            if body.get("model") is None:
                body["model"] = self._model
            return Relay(vllm, "POST", handler.removeprefix("/v1"), body)
        if handler == MODELS:
            return Relay(vllm, "GET", "/models")
        return JSONResponse(await while_connected(receive, _model(vllm, scope["path"].removeprefix(MODEL))))


async def _model(vllm: Vllm, name: str) -> dict:
    """Return one model of the list: vLLM has the list, and no page for each."""
    found = next((model for model in await vllm.models() if model.get("id") == name), None)
    if found is None:
        raise Problem(404, f"The model {name[:100]!r} does not exist.")
    return found


async def read_object(receive: Receive) -> dict:
    """Read the whole body; raises Problem 400 unless it is a JSON object, ClientDisconnect where it does not end."""
    content, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        content += message.get("body", b"")
        more = message.get("more_body", False)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Problem(400, "The body is not a JSON object.")
    return body
