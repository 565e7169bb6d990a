"""JSON lines to the journal (standard output) and to a file that may be rotated under us; never bodies or keys."""

import logging
import logging.config
import re
import time
import uuid
from contextvars import ContextVar
from pathlib import Path

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOG_FILE = "ai-server.log"
QUIET = {"/health", "/health/ready", "/metrics"}  # asked every few seconds: told only when they fail

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
logger = logging.getLogger(__name__)


def configure(directory: Path) -> None:
    """Send every logger's lines, uvicorn's too, to standard output and to <directory>/ai-server.log."""
    logging.config.dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "filters": {"request_id": {"()": lambda: _add_request_id}},
            "formatters": {
                "json": {
                    "()": "pythonjsonlogger.json.JsonFormatter",
                    "fmt": ["levelname", "name", "message", "request_id"],
                    "rename_fields": {"levelname": "level", "name": "logger"},
                    "timestamp": True,
                }
            },
            "handlers": {
                "journal": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}
                | {"formatter": "json", "filters": ["request_id"]},
                # delay: importing the application (as `python -m app.check` does) must not create the file
                "file": {"class": "logging.handlers.WatchedFileHandler", "filename": str(directory / LOG_FILE)}
                | {"encoding": "utf-8", "delay": True, "formatter": "json", "filters": ["request_id"]},
            },
            "root": {"level": "INFO", "handlers": ["journal", "file"]},
            "loggers": {
                "uvicorn": {"level": "INFO", "handlers": [], "propagate": True},
                "uvicorn.error": {"level": "INFO", "handlers": [], "propagate": True},
                "uvicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},  # AccessLog says more
                "httpx": {"level": "WARNING"},
                "pypdf": {"level": "ERROR"},
            },
        }
    )


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True


class AccessLog:
    """ASGI middleware: give every request an id, answer with it, write one line when the request is over."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        ident = given if re.fullmatch(r"[\w.-]{1,64}", given, re.ASCII) else uuid.uuid4().hex
        token = request_id.set(ident)
        started = time.monotonic()
        status = 500

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = ident
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            if scope["path"] not in QUIET or status >= 400:
                details = {"method": scope["method"], "path": scope["path"], "status": status}
                details |= {"seconds": round(time.monotonic() - started, 3), "caller": scope.get("caller")}
                logger.info("request", extra=details)
            request_id.reset(token)
