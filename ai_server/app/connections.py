"""Timeouts for connections. uvicorn only has one between requests, which does not stop a deliberately slow client.

`uvicorn app.main:app` starts the application, without a way to name another protocol class, so this module patches
uvicorn's class. It wraps methods that asyncio and httptools call. The tests use real sockets.
"""

import asyncio
import json
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Protocol

from app.errors import Problem
from app.settings import Settings

READING, WRITING = "reading_deadline", "writing_deadline"  # two timers: a client that does not read may still send


def bound(settings: Settings) -> None:
    """Apply the timeouts of the settings, in seconds, to every new connection. Called once per process.

    If headers or body are incomplete after their timeout, the answer is 408 and the connection is closed. If the
    client reads none of its answer, the connection is aborted.
    """
    header, body, send = settings.header_timeout_sec, settings.body_timeout_sec, settings.send_timeout_sec
    _after("connection_made", lambda self: _arm(self, header, _late))
    _after("on_message_begin", lambda self: _arm(self, header, _late))
    _after("on_headers_complete", lambda self: _arm(self, body, _late))
    _after("on_message_complete", _disarm)
    _after("pause_writing", lambda self: _arm(self, send, _stuck, WRITING))
    _after("resume_writing", lambda self: _disarm(self, WRITING))
    _after("connection_lost", lambda self: (_disarm(self), _disarm(self, WRITING)))
    _after("data_received", lambda self: _arm(self, header, _late) if _unbounded(self) else None)


def _after(name: str, then: Callable[[Protocol], None]) -> None:
    """Call `then` after each call of this method of the protocol."""
    before = getattr(Protocol, name)
    before = getattr(before, "without_deadlines", before)

    def method(self: Protocol, *arguments: object) -> object:
        result = before(self, *arguments)
        then(self)
        return result

    method.without_deadlines = before
    setattr(Protocol, name, method)


def _unbounded(protocol: Protocol) -> bool:
    """Return whether a connection without a request (for example after an empty line) has no timeout running."""
    idle = protocol.cycle is None or protocol.cycle.response_complete
    return idle and not protocol.timeout_keep_alive_task and not getattr(protocol, READING, None)


def _arm(protocol: Protocol, seconds: float, then: Callable[[Protocol], None], which: str = READING) -> None:
    _disarm(protocol, which)
    setattr(protocol, which, protocol.loop.call_later(seconds, then, protocol))


def _disarm(protocol: Protocol, which: str = READING) -> None:
    timer: asyncio.TimerHandle | None = getattr(protocol, which, None)
    if timer:
        timer.cancel()
        setattr(protocol, which, None)


def _late(protocol: Protocol) -> None:
    cycle = protocol.cycle
    if cycle is None or cycle.response_complete or not cycle.response_started:
        body = json.dumps({"error": Problem(408, "The request was not complete in time.").body}).encode()
        head = "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nConnection: close\r\n"
        protocol.transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    protocol.transport.close()


def _stuck(protocol: Protocol) -> None:
    protocol.transport.abort()  # close() would wait for the client that does not read
