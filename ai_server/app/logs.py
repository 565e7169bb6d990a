"""Log as JSON lines to the journal (standard output) and to a file that may be rotated; never bodies or keys."""

import asyncio
import json
import logging
import logging.config
import re
import sys
import time
import uuid
from contextvars import ContextVar
from datetime import datetime, timezone
from logging.handlers import WatchedFileHandler
from pathlib import Path

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import metrics, sse, tracing
from app.errors import Problem, unforeseen

LOG_FILE = "ai-server.log"
IDENT = re.compile(rb"[\w.-]{1,64}", re.ASCII)
MAX_PATH, MAX_METHOD = 200, 20  # characters in the log
STOPPING = Problem(503, "The server is being stopped; try again.", {"Retry-After": "10", "Connection": "close"})
QUIET = {"/health", "/health/ready", "/metrics"}  # polled every few seconds: logged only if they fail

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
logger = logging.getLogger(__name__)


def configure(directory: Path) -> None:
    """Write the lines of every logger, including uvicorn's, to standard output and to <directory>/ai-server.log."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": Line}},
            "handlers": {
                # delay: importing the application (as `python -m app.check` does) must not create the file
                "both": {"()": Both, "filename": str(directory / LOG_FILE), "encoding": "utf-8", "delay": True}
                | {"formatter": "json"},
            },
            "root": {"level": "INFO", "handlers": ["both"]},
            "loggers": {
                "uvicorn": {"level": "INFO", "handlers": [], "propagate": True},
                "uvicorn.error": {"level": "INFO", "handlers": [], "propagate": True},
                "uvicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},  # AccessLog logs more
                "httpx": {"level": "WARNING"},
                "pypdf": {"level": "ERROR"},
            },
        }
    )


# Our lines do not contain these, so do not collect them; see the documentation of `logging`.
logging.logThreads = logging.logProcesses = logging.logMultiprocessing = logging.logAsyncioTasks = False


class Both(WatchedFileHandler):
    """Write each line to standard output and to the file."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record) + "\n"
            sys.stdout.write(line)
            sys.stdout.flush()
            self.reopenIfNeeded()
            if self.stream is None:
                self.stream = self._open()
            self.stream.write(line)
            self.stream.flush()
        except Exception:
            self.handleError(record)


class Line(logging.Formatter):
    """Format a record as one line with a JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, timezone.utc).isoformat()
        record_fields = {"level": record.levelname, "logger": record.name, "message": record.getMessage()}
        record_fields |= {"request_id": request_id.get(), **tracing.ids(), "timestamp": when}
        record_fields |= {name: value for name, value in record.__dict__.items() if name not in OWN}
        if record.exc_info:
            record_fields["exc_info"] = self.formatException(record.exc_info)
        return ENCODE(record_fields)


ENCODE = json.JSONEncoder(default=str).encode  # json.dumps with options creates an encoder at each call
# The attributes of every record; all others come from `extra`.
OWN = {*logging.makeLogRecord({}).__dict__, "message", "asctime", "color_message", "taskName"}


class AccessLog:
    """ASGI middleware: give each request an ID, return it in a header, and log and count the request at its end.

    If the server stops during a request, the client gets an error: an event in a stream, or 503 before the answer.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        ident = given.decode() if IDENT.fullmatch(given) else uuid.uuid4().hex
        scope["request_id"] = ident
        token = request_id.set(ident)
        span = tracing.begin(scope)
        started = time.monotonic()
        status, stream, over = 0, False, False

        async def send_with_id(message: Message) -> None:
            nonlocal status, stream, over
            if message["type"] == "http.response.start":
                status = message["status"]
                stream = any(value.startswith(b"text/event-stream") for _, value in message["headers"])
                message["headers"] = [*message["headers"], (b"x-request-id", ident.encode())]
            else:
                over = not message.get("more_body", False)
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except asyncio.CancelledError:  # uvicorn cancels requests when its time for the last ones is over
            # Not raised again: uvicorn would log a traceback for each request.
            if not status:
                response = JSONResponse({"error": STOPPING.body}, 503, STOPPING.headers)
                await response(scope, receive, send_with_id)
            elif stream and not over:
                await send({"type": "http.response.body", "body": sse.error(STOPPING.body), "more_body": False})
        except Exception as error:
            logger.exception("a request failed with an internal error")
            if not status:
                await (await unforeseen(Request(scope), error))(scope, receive, send_with_id)
        finally:
            seconds = time.monotonic() - started
            metrics.count_request(scope, status or 500, seconds)
            if scope["path"] not in QUIET or status >= 400 or not status:
                details = {"method": scope["method"][:MAX_METHOD], "path": scope["path"][:MAX_PATH]}
                details |= {"status": status or 500, "seconds": round(seconds, 3), "caller": scope.get("caller")}
                details |= {"engine": scope["engine"]} if "engine" in scope else {}
                logger.info("request", extra=details)
            if span:
                tracing.end(span, scope, status or 500)
            request_id.reset(token)
