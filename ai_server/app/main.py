"""The application: `uvicorn app.main:app`, started from the directory that holds `app/` and `.env`."""

import asyncio
import gc
import json
import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from app import connections, errors, logs, settings
from app.errors import Problem
from app.jobs import Backend, Store, Worker
from app.limits import Gate, Methods
from app.ocr import HttpOcr
from app.routes import Routes
from app.settings import Settings
from app.uploads import Uploads
from app.upstream import ClientLeft, Vllm, client_left, while_connected

logger = logging.getLogger(__name__)


class Work(BaseModel):
    """What an adapter's endpoint takes: a text, or a PDF in its place; an answer now, or a callback later."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = Field(default=None, min_length=1)
    max_tokens: int | None = Field(default=None, gt=0)
    callback: bool = False
    job_id: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]{1,64}$")


class Service:
    """The parts, made from the settings, and the work of an adapter's endpoint.

    Made inside the running event loop; `close` ends what it holds.
    """

    def __init__(self, config: Settings) -> None:
        # kind (in paths, jobs and callbacks) -> the adapter's name in vLLM, the instruction it is given
        self._adapters = {
            "easy-contract": (config.vllm_lora_adapter_easycontract, config.easycontract_prompt),
            "checklist": (config.vllm_lora_adapter_checklist, config.checklist_prompt),
        }
        self.vllm = Vllm(config)
        self.ocr = HttpOcr(config)
        self.uploads = Uploads(config.resources_directory, config.max_pdf_pages, self.ocr)
        self.store = Store(config.state_directory)
        self.backend = Backend(config)
        self._working = asyncio.create_task(Worker(config, self.store, self.backend, self.perform).run())

    async def close(self) -> None:
        self._working.cancel()
        await asyncio.wait({self._working})
        for part in (self.vllm, self.ocr, self.backend):
            await part.close()
        self.store.close()

    @property
    def working(self) -> bool:
        return not self._working.done()

    async def perform(self, kind: str, work: dict) -> dict:
        """work: `{"text": str}` or `{"upload": name}`, and `max_tokens` perhaps. Returns what Vllm.complete does."""
        model, instruction = self._adapters[kind]
        text = work["text"] if "text" in work else await self.uploads.text(work["upload"])
        options = {"max_tokens": work["max_tokens"]} if work.get("max_tokens") else {}
        return await self.vllm.complete(model, instruction, text, options)


def create_app(config: Settings) -> ASGIApp:
    """Return the application for these settings; nothing is opened before it is started."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        connections.bound(config)
        app.state.service = Service(config)
        logger.info("ai-server is ready", extra={"environment": config.app_env, "vllm": config.vllm_base_url})
        if not app.state.service.backend.enabled:
            logger.warning("jobs are refused: BACKEND_INTERNAL_TOKEN is not set")
        # What is here now stays: to look through it again would stop every stream for tens of milliseconds.
        gc.collect()
        gc.freeze()
        try:
            yield
        finally:
            await app.state.service.close()
            logger.info("ai-server has stopped")

    logs.configure(config.log_directory)
    # A redirect to the address without the slash would be made from what a proxy passes on: http, and a host inside.
    app = FastAPI(title="ai-server", lifespan=lifespan, openapi_url=None, redirect_slashes=False)
    app.add_exception_handler(HTTPException, errors.answer)
    app.add_exception_handler(Exception, errors.unforeseen)
    app.add_exception_handler(ClientLeft, client_left)
    app.add_exception_handler(ClientDisconnect, client_left)  # while its request was read

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health(request: Request) -> JSONResponse:
        """Whether this process is sound. That vLLM is away is told, at 200: restarting this one would not help."""
        service = request.app.state.service
        return JSONResponse(await _health(service), 200 if service.working else 503)

    @app.api_route("/health/ready", methods=["GET", "HEAD"])
    async def ready(request: Request) -> JSONResponse:
        """Whether a request sent here now would be answered: 503 while vLLM is away."""
        state = await _health(request.app.state.service)
        return JSONResponse(state, 200 if state["vllm"] == "ok" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    @app.post("/v1/easy-contract")
    async def easy_contract(request: Request) -> Response:
        return await _adapter(request, "easy-contract")

    @app.post("/v1/checklist")
    async def checklist(request: Request) -> Response:
        return await _adapter(request, "checklist")

    @app.get("/v1/jobs/{job_id}")
    async def job(request: Request, job_id: str) -> dict:
        found = request.app.state.service.store.get(job_id)
        if found is None or found.caller != request.scope["caller"]:
            raise Problem(404, "There is no such job of yours.")
        return found.public()

    # As plain ASGI around it: what FastAPI has around middleware of its own would cost every relayed request.
    return logs.AccessLog(Methods(Gate(Routes(app, config), config)))


async def _health(service: Service) -> dict:
    vllm = await service.vllm.health()
    return {
        "status": "ok" if vllm == "ok" and service.working else "degraded",
        "vllm": vllm,
        "jobs": service.store.counts() if service.working else "stopped",
        "callbacks": "on" if service.backend.enabled else "off: BACKEND_INTERNAL_TOKEN is not set",
    }


async def _adapter(request: Request, kind: str) -> Response:
    """Answer now (200), or take the job and answer by callback (202)."""
    service: Service = request.app.state.service
    work, content = await _work(request)
    wants_callback = work.callback or work.job_id is not None
    if wants_callback and not service.backend.enabled:
        raise Problem(503, "Jobs cannot be called back: BACKEND_INTERNAL_TOKEN is not set on this server.")

    task = work.model_dump(include={"text", "max_tokens"}, exclude_none=True)
    if content:
        task["upload"] = await service.uploads.keep(content)
    if wants_callback:
        job = service.store.add(work.job_id or uuid.uuid4().hex, request.scope["caller"], kind, task)
        return JSONResponse(job.public(), 202, {"Location": f"/v1/jobs/{job.id}"})
    return JSONResponse(await while_connected(request.receive, service.perform(kind, task)))


async def _work(request: Request):
    """Return the request as a Work, and the uploaded PDF (a binary file) or None; raise Problem 400 for others."""
    content = None
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        form = await request.form(max_files=1, max_fields=8)
        fields = dict(form)
        file = fields.pop("file", None)
        if isinstance(file, UploadFile):
            content = file.file
    else:
        fields = await _json(request)
    try:
        work = Work.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise Problem(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}.") from None
    if (work.text is None) == (content is None):
        raise Problem(400, "Send either a `text`, as JSON, or a PDF as the multipart field `file`.")
    return work, content


async def _json(request: Request) -> dict:
    try:
        # NaN and half a surrogate pair are what Python reads and no JSON can carry on.
        body = await request.json()
        json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise Problem(400, "The body is not a JSON object.")
    return body


app = create_app(settings.load())
