"""Deadlines for connections. uvicorn has one, between two requests; a client that is slow on purpose needs others.

The application is started by `uvicorn app.main:app`, which leaves no place to name a protocol of one's own, so
uvicorn's class is given them. What is extended are methods that asyncio and httptools call; the tests use sockets.
"""

import asyncio
import json
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol as Protocol

from app.errors import Problem
from app.settings import Settings

READING, WRITING = "reading_deadline", "writing_deadline"  # two: a client that does not read may go on sending


def bound(settings: Settings) -> None:
    """Give every connection from now on the deadlines of the settings, in seconds. Once for a process.

    A header or body that is not whole in time is answered with 408, and the connection closed; one whose client takes
    none of its answer is cut.
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
    """Have something done after a method of the protocol."""
    before = getattr(Protocol, name)
    before = getattr(before, "without_deadlines", before)

    def method(self: Protocol, *arguments: object) -> object:
        result = before(self, *arguments)
        then(self)
        return result

    method.without_deadlines = before
    setattr(Protocol, name, method)


def _unbounded(protocol: Protocol) -> bool:
    """Whether a connection without a request, such as one that sent an empty line, waits for nothing that ends."""
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
        body = json.dumps({"error": Problem(408, "The request was not whole in time.").body}).encode()
        head = "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nConnection: close\r\n"
        protocol.transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    protocol.transport.close()


def _stuck(protocol: Protocol) -> None:
    protocol.transport.abort()  # to close would wait for the client that does not read
