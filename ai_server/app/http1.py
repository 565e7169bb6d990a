"""An HTTP/1.1 client for one server, with only what relaying needs.

A general-purpose client costs more time than all other steps of a relayed request; the figures are in
docs/ai-server.md. httptools (llhttp), which uvicorn uses for requests, parses the messages. Not supported: redirects,
proxies (those of the environment are for external hosts), cookies, retries.
"""

import asyncio
import zlib
from collections.abc import AsyncIterator, Mapping
from urllib.parse import urlsplit

import httptools
import httpx

IDLE_SEC = 2  # vLLM closes idle connections after 5 s; close them before it does
HIGH_WATER = 256 * 1024  # bytes buffered for a slow reader before the server has to wait


class Failure(Exception):
    """There is no response, or it is incomplete. The names of the subclasses appear in logs and in /health."""


class ConnectError(Failure):
    """The server could not be reached."""


class ConnectTimeout(ConnectError):
    """The server could not be reached in time."""


class ReadTimeout(Failure):
    """Nothing was received for too long."""


class ReadError(Failure):
    """The connection ended, or received invalid HTTP, before the response was complete."""


class Client:
    """A client of the server at `base`, a URL without a query. Use it inside one running event loop.

    headers: sent with every request; neither these nor the headers of a request may contain line ends. timeout: idle
    timeout in seconds. The number of connections is not limited.
    """

    def __init__(self, base: str, headers: Mapping[str, str], timeout: float) -> None:
        parts = urlsplit(base)
        self._prefix, self._timeout = parts.path, timeout
        self._tls = httpx.create_ssl_context() if parts.scheme == "https" else None  # uses SSL_CERT_FILE
        self._host, self._port = parts.hostname, parts.port or (443 if self._tls else 80)
        fields = {"Host": parts.netloc.rpartition("@")[2], **headers}
        self._head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []

    async def request(
        self,
        method: str,
        path: str,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> "Response":
        """Return the response when its headers have arrived; the caller must release it. Raises Failure.

        path: appended to the path of the base, already encoded. timeout: idle timeout in seconds instead of the
        client's.
        """
        timeout = timeout or self._timeout
        lines = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
        if content is not None:
            lines += f"Content-Length: {len(content)}\r\n"
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._head}{lines}\r\n".encode("latin-1")
        connection = self._idle_one() or await self._connect(timeout)
        response = Response(connection, timeout)
        try:
            await connection.ask(head + (content or b""), response)
        except BaseException:
            response.release()
            raise
        return response

    async def close(self) -> None:
        for connection in list(self._connections):
            connection.transport.abort()

    def _idle_one(self) -> "Connection | None":
        while self._idle:
            connection = self._idle.pop()
            connection.timer.cancel()
            if not connection.transport.is_closing():
                return connection
        return None

    async def _connect(self, timeout: float) -> "Connection":
        loop = asyncio.get_running_loop()
        made = loop.create_connection(lambda: Connection(self), self._host, self._port, ssl=self._tls)
        try:
            _, connection = await asyncio.wait_for(made, timeout)
        except asyncio.TimeoutError:
            raise ConnectTimeout(f"not within {timeout} s") from None
        except OSError as error:  # TLS errors too
            raise ConnectError(str(error)) from None
        return connection

    def opened(self, connection: "Connection") -> None:
        self._connections.add(connection)

    def closed(self, connection: "Connection") -> None:
        self._connections.discard(connection)

    def free(self, connection: "Connection") -> None:
        """Keep a connection for the next request after its response is complete."""
        connection.transport.resume_reading()  # a slow reader of the last response may have paused it
        connection.timer = asyncio.get_running_loop().call_later(IDLE_SEC, connection.transport.close)
        self._idle.append(connection)


class Connection(asyncio.Protocol):
    """One connection, with one response at a time."""

    transport: asyncio.Transport
    timer: asyncio.TimerHandle

    def __init__(self, client: Client) -> None:
        self._client = client
        self._response: Response | None = None

    async def ask(self, request: bytes, response: "Response") -> None:
        """Send a request; return when the headers of its response have arrived."""
        self._response = response
        self._parser = httptools.HttpResponseParser(self)
        self.transport.write(request)
        while not response.status_code:
            await response.more()

    def leave(self, response: "Response") -> None:
        """Give up the response: if it is incomplete, abort the connection."""
        if self._response is response:
            self._response = None
            self.transport.abort()

    # callbacks of asyncio

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self._client.opened(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._client.closed(self)
        response, self._response = self._response, None
        if response:
            # Without a length, the connection's end is the response's end.
            response.end(None if response.until_close and error is None else ReadError("the connection was lost"))

    def data_received(self, data: bytes) -> None:
        response = self._response
        if response is None:
            self.transport.abort()  # unsolicited data
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._response = None
            self.transport.abort()
            response.end(ReadError(str(error)))
        else:
            response.wake()
            if self._response is response and response.waiting > HIGH_WATER:
                self.transport.pause_reading()

    # callbacks of httptools

    def on_header(self, name: bytes, value: bytes) -> None:
        self._response.headers[name.lower().decode("latin-1")] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # 1xx responses, such as 100, may come first
            self._response.begin(status)

    def on_body(self, body: bytes) -> None:
        self._response.put(body)

    def on_message_complete(self) -> None:
        response = self._response
        if not response.status_code:
            response.headers.clear()
            return
        self._response = None
        if self._parser.should_keep_alive() and not response.until_close:
            self._client.free(self)
        else:
            self.transport.close()
        response.end(None)


class Response:
    """A response whose body is still arriving. Reading raises Failure if it ends too early."""

    def __init__(self, connection: Connection, timeout: float) -> None:
        self._connection, self._timeout = connection, timeout
        self._loop = asyncio.get_running_loop()
        self._pieces: list[bytes] = []
        self._ended, self._failure = False, None
        self._waiter: asyncio.Future | None = None
        self._unpack = None
        self.status_code, self.until_close, self.waiting = 0, False, 0
        self.headers: dict[str, str] = {}  # names in lower case

    async def aiter_bytes(self) -> AsyncIterator[bytes]:
        """Yield what has arrived since the last piece, decompressed."""
        while True:
            while not self._pieces and not self._ended:
                await self.more()
            if self._pieces:
                piece = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
                self._pieces.clear()
                if self.waiting > HIGH_WATER and not self._ended:
                    self._connection.transport.resume_reading()
                self.waiting = 0
                if piece := self._unpacked(piece):
                    yield piece
            elif self._failure:
                raise self._failure
            else:
                return

    async def aread(self) -> bytes:
        return b"".join([piece async for piece in self.aiter_bytes()])

    def release(self) -> None:
        """Give up the response: if it is incomplete, the connection is closed, which the server notices."""
        self._connection.leave(self)

    def _unpacked(self, piece: bytes) -> bytes:
        if self._unpack is None:
            return piece
        try:
            return self._unpack.decompress(piece)
        except zlib.error as error:
            raise ReadError(str(error)) from None

    async def more(self) -> None:
        """Wait until data arrives; raises Failure after the idle timeout, or if the response has ended."""
        if self._ended:
            raise self._failure or ReadError("it has ended")
        self._waiter = self._loop.create_future()
        timer = self._loop.call_later(self._timeout, self._silent)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _silent(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_exception(ReadTimeout(f"nothing for {self._timeout} s"))

    def begin(self, status: int) -> None:
        self.status_code = status
        if self.headers.get("content-encoding", "identity").strip().lower() in ("gzip", "x-gzip", "deflate"):
            self._unpack = zlib.decompressobj(wbits=47)  # detects which of the two it is
        empty = status in (204, 304)
        self.until_close = not empty and not {"content-length", "transfer-encoding"} & self.headers.keys()

    def put(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self.waiting += len(piece)

    def wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def end(self, failure: Failure | None) -> None:
        self._ended, self._failure = True, failure
        self.wake()
