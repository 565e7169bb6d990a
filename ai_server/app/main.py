"""The application: `uvicorn app.main:app`, started from the directory that holds `app/` and `.env`."""

import asyncio
import gc
import logging
import sqlite3
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Literal, TypeVar

from fastapi import FastAPI, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp

from app import connections, errors, logs, settings, tracing
from app.body import read_object
from app.callers import Callers, CallersError
from app.disk import Disk
from app.engines import Engines
from app.errors import Problem
from app.jobs import STATES, Backend, Store, Worker
from app.limits import RATE_HEADERS, Gate, Limits, Methods, media_type
from app.metrics import generations, token_counts
from app.ocr import HttpOcr
from app.policy import Policy, may_name
from app.routes import Routes
from app.settings import Settings
from app.table import Table, TableError
from app.uploads import Uploads
from app.upstream import ClientLeft, client_left, while_connected
from app.usage import Usage

logger = logging.getLogger(__name__)
Fields = TypeVar("Fields", bound=BaseModel)


class Work(BaseModel):
    """The fields of an adapter's endpoint: a text, unless there is a PDF; an answer now or a callback later."""

    model_config = ConfigDict(extra="forbid")

    text: str | None = Field(default=None, min_length=1)
    max_tokens: int | None = Field(default=None, gt=0)
    callback: bool = False
    job_id: str | None = Field(default=None, pattern=r"^[A-Za-z0-9._-]{1,64}$")


class Listing(BaseModel):
    """The query parameters of the list of jobs."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(default=20, ge=1, le=100)
    state: Literal[STATES] | None = None


class Period(BaseModel):
    """The query parameters of `/v1/usage`. days: how many, including today."""

    model_config = ConfigDict(extra="forbid")

    days: int = Field(default=31, ge=1, le=400)


class Service:
    """The parts of the server, created from the settings, and the work of the adapters' endpoints.

    Create it inside the running event loop; `close` releases everything.
    """

    def __init__(self, config: Settings, callers: Callers, table: Table | None, limits: Limits) -> None:
        # kind (in paths, jobs and callbacks) -> the adapter's name in its engine, its instruction
        self._adapters = {
            "easy-contract": (config.vllm_lora_adapter_easycontract, config.easycontract_prompt),
            "checklist": (config.vllm_lora_adapter_checklist, config.checklist_prompt),
        }
        self.engines = Engines(config, table)
        self.ocr = HttpOcr(config)
        self.uploads = Uploads(config, self.ocr)
        self.store = Store(config.state_directory)
        self.job_limit = config.job_limit_per_caller
        self.backend = Backend(config)
        self.callers, self.limits, self.policy = callers, limits, Policy(config)
        self.max_body_values = config.max_body_values
        self.usage = Usage(config.state_directory, limits.rates)
        self._writing = asyncio.create_task(self.usage.run())
        self.disk = Disk(config.state_directory, config.resources_directory)
        worker = Worker(config, self.store, self.backend, self.uploads, self.perform, self._has_tokens, self._off)
        self._working = asyncio.create_task(worker.run())

    async def close(self) -> None:
        for task in (self._working, self._writing):
            task.cancel()
        await asyncio.wait({self._working, self._writing})
        for part in (self.engines, self.ocr, self.backend):
            await part.close()
        self.store.close()
        self.usage.close()

    @property
    def working(self) -> bool:
        return not self._working.done()

    def model(self, kind: str) -> str:
        return self._adapters[kind][0]

    def account(self, caller: str, model: str, engine: str, usage: dict | None) -> None:
        """Count a request's tokens for its caller, in the metrics and the limits; an engine may report none."""
        prompt, completion = token_counts(usage)
        generations(model, caller, engine).used(prompt, completion)
        self.usage.add(caller, model, prompt, completion)
        self.limits.used(self.callers.named(caller), prompt + completion)

    def _has_tokens(self, caller: str) -> bool:
        """Return whether a caller has tokens left now; its job may have waited for long."""
        try:
            self.limits.check_tokens(self.callers.named(caller))
        except Problem:
            return False
        return True

    def _off(self) -> list[str]:
        """Return the kinds of jobs whose engine is now switched off."""
        return [kind for kind, (model, _) in self._adapters.items() if self.engines.is_off(model)]

    async def perform(self, kind: str, work: dict, caller: str) -> dict:
        """Return the result of Engine.complete for `{"text": str}` or `{"upload": name}`; `max_tokens` is optional."""
        model, instruction = self._adapters[kind]
        engine = self.engines.find_for_us(model)
        text = work["text"] if "text" in work else await self.uploads.text(work["upload"], caller)
        options = {"max_tokens": work["max_tokens"]} if work.get("max_tokens") else {}
        with generations(model, caller, engine.name).measured() as first:
            used = partial(self.account, caller, model, engine.name)
            return await engine.complete(model, instruction, text, options, first, used)


def create_app(config: Settings) -> ASGIApp:
    """Return the application for these settings; it opens nothing before it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        connections.bound(config)
        tracing.start()
        app.state.service = service = Service(config, callers, table, limits)
        behind = {"engines": service.engines.names} if table else {"vllm": config.vllm_base_url}
        logger.info("ai-server is ready", extra={"environment": config.app_env, **behind})
        if not service.backend.enabled:
            logger.warning("jobs are refused: BACKEND_INTERNAL_TOKEN is not set")
        # These objects stay; garbage collection that scans them would stop every stream for tens of milliseconds.
        gc.collect()
        gc.freeze()
        try:
            yield
        finally:
            await service.close()
            await asyncio.to_thread(tracing.stop)
            logger.info("ai-server has stopped")

    logs.configure(config.log_directory)
    (callers, table), limits = _files(config), Limits(config)
    # Behind a proxy, a redirect to the path without the slash would name http and an internal host.
    app = FastAPI(title="ai-server", lifespan=lifespan, openapi_url=None, redirect_slashes=False)
    app.add_exception_handler(HTTPException, errors.answer)
    app.add_exception_handler(Exception, errors.unforeseen)
    app.add_exception_handler(sqlite3.OperationalError, errors.store_unavailable)
    app.add_exception_handler(ClientLeft, client_left)
    app.add_exception_handler(ClientDisconnect, client_left)  # while the request was read

    @app.api_route("/health", methods=["GET", "HEAD"])
    async def health(request: Request) -> JSONResponse:
        """Return whether this process is healthy: 200 even if an engine is down, since a restart would not help."""
        service = request.app.state.service
        return JSONResponse((await _health(service, config))[0], 200 if service.working else 503)

    @app.api_route("/health/ready", methods=["GET", "HEAD"])
    async def ready(request: Request) -> JSONResponse:
        """Return whether a request would be answered now: 503 if no engine is available."""
        state, ready = await _health(request.app.state.service, config)
        return JSONResponse(state, 200 if ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/usage")
    async def usage(request: Request) -> dict:
        days = _checked(Period, dict(request.query_params)).days
        of = request.app.state.service.usage.of
        return {"object": "list", "data": await asyncio.to_thread(of, request.scope["caller"], days)}

    @app.post("/v1/easy-contract")
    async def easy_contract(request: Request) -> Response:
        return await _adapter(request, "easy-contract")

    @app.post("/v1/checklist")
    async def checklist(request: Request) -> Response:
        return await _adapter(request, "checklist")

    @app.get("/v1/jobs")
    async def jobs(request: Request) -> dict:
        listing = _checked(Listing, dict(request.query_params))
        found = request.app.state.service.store.newest(request.scope["caller"], listing.limit, listing.state)
        return {"object": "list", "data": [job.summary() for job in found]}

    @app.get("/v1/jobs/{job_id}")
    async def job(request: Request, job_id: str) -> dict:
        found = request.app.state.service.store.get(request.scope["caller"], job_id)
        if found is None:
            raise Problem(404, "Job not found.")
        return found.public()

    @app.delete("/v1/jobs/{job_id}")
    async def cancel(request: Request, job_id: str) -> dict:
        found = request.app.state.service.store.cancel(request.scope["caller"], job_id)
        if found is None:
            raise Problem(404, "Job not found.")
        if found.state != "cancelled":
            raise Problem(409, f"The job has ended: it is {found.state}.")
        return found.public()

    # Plain ASGI, since FastAPI's middleware would slow down every relayed request.
    gate: ASGIApp = Gate(Routes(app, config), config, callers, limits)
    if config.cors_origins:
        # Outside the gate: a browser's preflight request has no key.
        gate = CORSMiddleware(
            gate,
            allow_origins=config.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],  # OpenAI's clients send their own headers
            expose_headers=["X-Request-ID", "Retry-After", "Location", *RATE_HEADERS],
        )
    return logs.AccessLog(Methods(gate))


def _files(config: Settings) -> tuple[Callers, Table | None]:
    """Return the callers and the engines' table; exit with a one-line error if a file cannot be used."""
    keys = [key.get_secret_value() for key in config.ai_server_api_keys]
    callers, table, problems = None, None, []
    try:
        callers = Callers(keys, config.callers_file, config.vllm_api_key.get_secret_value())
    except CallersError as error:
        problems.append(f"CALLERS_FILE: {error}")
    of_a_caller = callers.have if callers else keys.__contains__
    try:
        if config.engines_file:
            table = Table(config.engines_file, config.engine_states_file, of_a_caller)
    except TableError as error:
        problems.append(f"ENGINES_FILE: {error}")
    if problems:
        settings.refuse(f"settings refused: {'; '.join(problems)}")
    if table:
        callers.engine_keys = table.keys
    return callers, table


async def _health(service: Service, config: Settings) -> tuple[dict, bool]:
    """Return the state for the response, and whether an engine can take requests."""
    engines = await service.engines.health()
    store, uploads = [await service.disk.state(each) for each in (config.state_directory, config.resources_directory)]
    body = {
        "status": "ok" if engines.sound and store == uploads == "ok" and service.working else "degraded",
        **engines.told,
        **({"engines_file": service.engines.trouble} if service.engines.trouble else {}),
        **({"callers": service.callers.trouble} if service.callers.trouble else {}),
        "store": store,
        "uploads": uploads,
        "jobs": _counts(service.store) if service.working else "stopped",
        "callbacks": "on" if service.backend.enabled else "off: BACKEND_INTERNAL_TOKEN is not set",
    }
    return body, engines.ready


def _counts(store: Store) -> dict[str, int] | str:
    try:
        return store.counts()
    except sqlite3.OperationalError as error:
        return f"cannot be read: {error}"


async def _adapter(request: Request, kind: str) -> Response:
    """Answer now (200), or accept a job and answer by callback (202)."""
    service: Service = request.app.state.service
    caller = request.scope["caller"]
    work, content = await _work(request, service.max_body_values)
    may_name(request.scope["caller_bounds"], service.model(kind))
    service.policy.check("/chat/completions", work.model_dump(include={"max_tokens"}))
    wants_callback = work.callback or work.job_id is not None
    if wants_callback and not service.backend.enabled:
        raise Problem(503, "Callbacks are disabled: BACKEND_INTERNAL_TOKEN is not set on this server.")

    task = work.model_dump(include={"text", "max_tokens"}, exclude_none=True)
    if content:
        task["upload"] = await service.uploads.keep(content)
    if wants_callback:
        if trace := tracing.carried.get():
            task["trace"] = dict(trace)
        ident = work.job_id or uuid.uuid4().hex
        job = service.store.add(ident, caller, kind, task, service.job_limit)
        return JSONResponse(job.public(), 202, {"Location": f"/v1/jobs/{job.id}"})
    return JSONResponse(await while_connected(request.receive, service.perform(kind, task, caller)))


async def _work(request: Request, max_values: int):
    """Return the request as a Work, and the uploaded PDF (a binary file) or None.

    Raises Problem: 400 for an invalid request, 503 if the upload cannot be buffered.
    """
    content = None
    if media_type(request.headers) == "multipart/form-data":
        try:
            form = await request.form(max_files=1, max_fields=8)
        except OSError as error:  # large files are buffered in TMPDIR
            raise Problem(503, f"The upload cannot be received: {error.strerror}.") from error
        fields = dict(form)
        file = fields.pop("file", None)
        if isinstance(file, UploadFile):
            content = file.file
    else:
        fields = await read_object(request.receive, max_values)
    work = _checked(Work, fields)
    if (work.text is None) == (content is None):
        raise Problem(400, "Send either a `text`, as JSON, or a PDF as the multipart field `file`.")
    return work, content


def _checked(model: type[Fields], fields: dict) -> Fields:
    """Return the fields as the model; raise Problem 400 with the first invalid field."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        raise Problem(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}.") from None


app = create_app(settings.load())
