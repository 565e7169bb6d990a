"""One OpenTelemetry trace from the caller to the engine. Off, and not imported, unless an OTEL_… endpoint is set.

A thread of the SDK sends spans by OTLP over HTTP from a bounded queue: if the receiver is slow or unreachable, spans
are dropped and no request waits. A caller's `traceparent` is passed on to the engine in any case.
"""

import contextlib
import logging
import os
import re
import threading
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

from starlette.types import Scope

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
SPOKEN = "http/protobuf"
NAME = "ai-server"
STOP_SEC = 3.0  # to send the last spans when the server stops
UNTRACED = {"/health", "/health/ready", "/metrics"}  # polled every few seconds
CONTEXT = re.compile(rb"[\x21-\x7e][\x20-\x7e]{0,511}")

# The trace headers for the engine: the caller's own, or those of this server's span.
carried: ContextVar[Mapping[str, str] | None] = ContextVar("carried", default=None)
tracer: Any = None  # set if tracing is on
_provider: Any = None
logger = logging.getLogger(__name__)


def wanted() -> bool:
    """Return whether tracing is on, by the SDK's variables."""
    return (
        any(os.environ.get(name) for name in ENDPOINTS)
        and os.environ.get("OTEL_SDK_DISABLED", "").lower() != "true"
        and os.environ.get("OTEL_TRACES_EXPORTER", "otlp") == "otlp"
    )


def unusable() -> list[str]:
    """Return a sentence for each variable that the exporter would reject later."""
    if not wanted():
        return []
    problems = []
    for name in ENDPOINTS:
        value = os.environ.get(name)
        parts = urlsplit(value) if value else None
        if parts and (parts.scheme not in ("http", "https") or not parts.hostname):
            problems.append(f"{name} is {value!r}, which is not an http:// or https:// address")
    spoken = next((os.environ[name] for name in PROTOCOLS if os.environ.get(name)), SPOKEN)
    if spoken != SPOKEN:
        problems.append(
            f"OTEL_EXPORTER_OTLP_PROTOCOL is {spoken!r}: this server only supports {SPOKEN}, usually on port 4318"
        )
    return problems


def start() -> None:
    """Start the exporter if tracing is on."""
    global tracer, _provider
    if not wanted():
        return
    import requests
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = os.environ.get("OTEL_SERVICE_NAME") or "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    _provider = TracerProvider(resource=Resource.create({} if named else {"service.name": NAME}))
    session = requests.Session()
    session.trust_env = False  # HTTP_PROXY is for external hosts, not for the receiver
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(session=session)))
    tracer = _provider.get_tracer(NAME)
    logger.info(
        "tracing is on", extra={"to": _shown(next(os.environ[name] for name in ENDPOINTS if name in os.environ))}
    )


def stop() -> None:
    """Send the last spans, for at most STOP_SEC seconds."""
    global tracer, _provider
    provider, tracer, _provider = _provider, None, None
    if provider:
        ending = threading.Thread(target=provider.shutdown, name="last spans", daemon=True)
        ending.start()
        ending.join(STOP_SEC)


def begin(scope: Scope) -> Any:
    """Store the caller's trace headers; return the span of the request, or None if it is not traced."""
    given = {
        name.decode(): value.decode()
        for name, value in scope["headers"]
        if name in (b"traceparent", b"tracestate") and CONTEXT.fullmatch(value)
    }
    carried.set(given or None)
    if tracer is None or scope["path"] in UNTRACED:
        return None
    from opentelemetry.trace import SpanKind

    span = tracer.start_span(
        scope["method"][:20],
        context=_extracted(given),
        kind=SpanKind.SERVER,
        attributes={
            "http.request.method": scope["method"][:20],
            "url.path": scope["path"][:200],
            "request_id": scope["request_id"],
        },
    )
    carried.set(_headers(span))
    return span


def end(span: Any, scope: Scope, status: int) -> None:
    """End the span of a request after its answer; for a stream, when the stream ends."""
    from opentelemetry.trace import StatusCode

    if handler := scope.get("handler") or getattr(scope.get("route"), "path", None):
        span.update_name(f"{scope['method']} {handler}")
        span.set_attribute("http.route", handler)
    usage = scope.get("usage")
    exported = {
        "http.response.status_code": status,
        "caller": scope.get("caller"),
        "engine": scope.get("engine"),
        "gen_ai.request.model": scope.get("model"),
        "gen_ai.usage.input_tokens": usage.get("prompt_tokens") if isinstance(usage, dict) else None,
        "gen_ai.usage.output_tokens": usage.get("completion_tokens") if isinstance(usage, dict) else None,
    }
    span.set_attributes({name: value for name, value in exported.items() if isinstance(value, (str, int))})
    if status >= 500:
        span.set_status(StatusCode.ERROR)
    span.end()


@contextlib.contextmanager
def job(kind: str, ident: str, headers: Mapping[str, str] | None) -> Iterator[None]:
    """Run a job in the trace of the request that created it."""
    token = carried.set(headers)
    span = None
    if tracer is not None:
        attributes = {"job.id": ident, "job.kind": kind}
        span = tracer.start_span(f"job {kind}", context=_extracted(headers or {}), attributes=attributes)
        carried.set(_headers(span))
    try:
        yield
    except Exception as error:
        if span:
            _failed(span, error)
        raise
    finally:
        if span:
            span.end()
        carried.reset(token)


@contextlib.contextmanager
def asking(method: str, path: str) -> Iterator[Mapping[str, str]]:
    """Trace a request to the engine: yield its trace headers, and end the span after the answer."""
    given = carried.get() or {}
    if tracer is None or not given:  # requests without a caller, such as listing the models, start no trace
        yield given
        return
    from opentelemetry.trace import SpanKind

    attributes = {"http.request.method": method, "url.path": path}
    span = tracer.start_span(f"{method} {path}", context=_extracted(given), kind=SpanKind.CLIENT, attributes=attributes)
    try:
        yield _headers(span)
    except Exception as error:
        _failed(span, error)
        raise
    finally:
        span.end()


def ids() -> dict[str, str]:
    """Return the trace fields of a log line."""
    parts = (carried.get() or {}).get("traceparent", "").split("-")
    return {"trace_id": parts[1], "span_id": parts[2]} if len(parts) == 4 else {}


def _failed(span: Any, error: Exception) -> None:
    from opentelemetry.trace import StatusCode

    span.set_status(StatusCode.ERROR)
    span.set_attribute("error.type", type(error).__name__)


def _extracted(headers: Mapping[str, str]) -> Any:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract(headers, context=Context())


def _headers(span: Any) -> dict[str, str]:
    from opentelemetry.context import Context
    from opentelemetry.trace import set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    written: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(written, context=set_span_in_context(span, Context()))
    return written


def _shown(url: str) -> str:
    """Return a URL without credentials."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()
