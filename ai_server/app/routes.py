"""The engines' own endpoints, relayed with as few layers as possible.

FastAPI serves all others; its layers would slow down a relayed request.
"""

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from app.body import read_object
from app.callers import Caller
from app.engines import Engines
from app.errors import Problem, answer
from app.policy import Policy, may_name
from app.settings import Settings
from app.upstream import ClientLeft, Relay, client_left, while_connected

MODELS, MODEL = "/v1/models", "/v1/models/"
GENERATES = {"/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"}


class Routes:
    """ASGI middleware directly around the FastAPI application: answers the engines' own endpoints."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self.app = app
        self._model, self._max_values = settings.vllm_model, settings.max_body_values

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
            service = self.app.state.service
            response = await self._response(service.engines, service.policy, handler, scope, receive)
            try:
                await response(scope, receive, send)
            finally:
                if "usage" in scope:
                    service.account(scope["caller"], scope["model"], scope["engine"], scope["usage"])
        except Problem as problem:
            await (await answer(Request(scope), problem))(scope, receive, send)
        except (ClientLeft, ClientDisconnect) as left:
            await (await client_left(Request(scope), left))(scope, receive, send)

    async def _response(
        self, engines: Engines, policy: Policy, handler: str, scope: Scope, receive: Receive
    ) -> Response:
        caller: Caller = scope["caller_bounds"]
        if handler in GENERATES:
            path = handler.removeprefix("/v1")
            body = await read_object(receive, self._max_values)
            if body.get("model") is None:
                body["model"] = self._model
            policy.check(path, body)
            may_name(caller, body["model"])
            engine = engines.find(body["model"])
            scope["model"], scope["engine"] = engine.known(body["model"]), engine.name
            return Relay(engine, "POST", path, body)
        if handler == MODELS and caller.models is None and engines.alone:
            return Relay(engines.alone, "GET", "/models")
        if handler == MODELS:
            listed = await while_connected(receive, engines.models())
            allowed = [model for model in listed if caller.models is None or model["id"] in caller.models]
            return JSONResponse({"object": "list", "data": allowed})
        name = scope["path"].removeprefix(MODEL)
        may_name(caller, name)
        # Engines only have the list, not one endpoint per model.
        listed = await while_connected(receive, engines.find(name).models())
        found = next((model for model in listed if model.get("id") == name), None)
        if found is None:
            raise Problem(404, f"The model {name[:100]!r} does not exist.")
        return JSONResponse(found)
