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
    _after("pause_writing", lambda self: _arm(self, send, _stuck))
    _after("resume_writing", _disarm)
    _after("connection_lost", _disarm)


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


def _arm(protocol: Protocol, seconds: float, then: Callable[[Protocol], None]) -> None:
    _disarm(protocol)
    protocol.deadline = protocol.loop.call_later(seconds, then, protocol)


def _disarm(protocol: Protocol) -> None:
    timer: asyncio.TimerHandle | None = getattr(protocol, "deadline", None)
    if timer:
        timer.cancel()
        protocol.deadline = None


def _late(protocol: Protocol) -> None:
    cycle = protocol.cycle
    if cycle is None or cycle.response_complete or not cycle.response_started:
        body = json.dumps({"error": Problem(408, "The request was not whole in time.").body}).encode()
        head = "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nConnection: close\r\n"
        protocol.transport.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    protocol.transport.close()


def _stuck(protocol: Protocol) -> None:
    protocol.transport.abort()  # to close would wait for the client that does not read
