"""Test the client for vLLM against a server whose bytes the test sets."""

import asyncio
import zlib

import pytest
import uvloop

from app import http1

OK = b"HTTP/1.1 200 OK\r\n"
CLOSE = b""


def exchange(*answers: bytes, requests: int = 1, timeout: float = 5) -> tuple[list, int]:
    """Return the results of the requests, each (status, body) or the name of a Failure, and the number of connections.

    The server answers each request with the next of the answers; CLOSE after an answer closes the connection.
    """
    connections, pending = 0, list(answers)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        try:
            while pending and await reader.readuntil(b"\r\n\r\n"):
                for byte in pending.pop(0):
                    writer.write(bytes([byte]))
                    await writer.drain()
                if pending[:1] == [CLOSE]:
                    pending.pop(0)
                    break
            else:
                await reader.read()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    async def talk() -> list:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        client = http1.Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/base", {"X": "y"}, timeout)
        came = []
        for _ in range(requests):
            try:
                response = await client.request("GET", "/path")
                came.append((response.status_code, await response.aread()))
                response.release()
            except http1.Failure as failure:
                came.append(type(failure).__name__)
        await client.close()
        server.close()
        return came

    return asyncio.run(talk()), connections


CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "answers, came",
    [
        ([OK + b"Content-Length: 3\r\n\r\nabc"], (200, b"abc")),
        ([CHUNKED + b"2\r\nab\r\n1;x=y\r\nc\r\n0\r\nTrailer: x\r\n\r\n"], (200, b"abc")),
        ([OK + b"\r\nabc", CLOSE], (200, b"abc")),  # ends with the connection
        ([b"HTTP/1.0 200 OK\r\n\r\nabc", CLOSE], (200, b"abc")),
        ([b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"Content-Length: 1\r\n\r\na"], (200, b"a")),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], (204, b"")),
        ([OK + b"Content-Length: 5\r\n\r\nabc", CLOSE], "ReadError"),
        ([CHUNKED + b"5\r\nab", CLOSE], "ReadError"),
        ([b"HTTP/1.1 200", CLOSE], "ReadError"),
        ([b"what is this\r\n\r\n"], "ReadError"),
    ],
)
def test_answers(answers, came):
    assert exchange(*answers)[0] == [came]


def test_a_compressed_answer():
    packer = zlib.compressobj(wbits=31)
    packed = packer.compress(b"data: 1\n\n") + packer.flush()
    head = OK + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(packed)
    assert exchange(head + packed)[0] == [(200, b"data: 1\n\n")]
    assert exchange(head + b"x" * len(packed))[0] == ["ReadError"]


def test_silence():
    assert exchange(OK, timeout=0.2)[0] == ["ReadTimeout"]
    assert exchange(OK + b"Content-Length: 3\r\n\r\na", timeout=0.2)[0] == ["ReadTimeout"]


def test_a_connection_is_reused_after_a_complete_response():
    complete = OK + b"Content-Length: 1\r\n\r\na"
    assert exchange(complete, complete, complete, requests=3) == ([(200, b"a")] * 3, 1)
    closing = OK + b"Connection: close\r\nContent-Length: 1\r\n\r\na"
    assert exchange(closing, closing, requests=2) == ([(200, b"a")] * 2, 2)


def test_no_server_is_listening():
    async def ask() -> None:
        await http1.Client("http://127.0.0.1:9", {}, 5).request("GET", "/")

    with pytest.raises(http1.ConnectError):
        asyncio.run(ask())


def test_a_slow_reader_makes_the_server_wait():
    async def talk() -> tuple[int, int]:
        sent = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal sent
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK + b"Content-Length: 50000000\r\n\r\n")
            for _ in range(500):
                writer.write(b"x" * 100_000)
                await writer.drain()
                sent += 100_000

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        client = http1.Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", {}, 5)
        response = await client.request("GET", "/")
        await asyncio.sleep(0.5)
        held = sent
        complete = len(await response.aread())
        await client.close()
        server.close()
        return held, complete

    held, complete = asyncio.run(talk())
    assert held < 30_000_000 and complete == 50_000_000


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("size", [300_000, 340_000, 380_000, 710_000, 2_000_000])
def test_a_connection_whose_reader_was_slow_is_of_use_again(size, loop):
    """The last bytes of a response with a slow reader must not leave the reused connection paused."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for body in (b"x" * size, b"next"):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        await reader.read()
        writer.close()

    async def talk() -> tuple[int, bytes]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        client = http1.Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", {}, 5)
        first = await client.request("GET", "/")
        await asyncio.sleep(0.2)  # the client's buffer is full now
        length = len(await first.aread())
        first.release()
        second = await client.request("GET", "/")
        return length, await second.aread()

    running = loop()
    try:
        assert running.run_until_complete(talk()) == (size, b"next")
    finally:
        running.close()


def test_a_connection_that_ends_its_response_while_it_is_stopped_reads_on():
    """After pause_reading, the loop may still deliver data that it had already read."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for answer in (b"Content-Length: 8\r\n\r\nhalf", b"Content-Length: 4\r\n\r\nnext"):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK + answer)
        await reader.read()
        writer.close()

    async def talk() -> tuple[bytes, bytes]:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        client = http1.Client(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", {}, 2)
        first = await client.request("GET", "/")
        await asyncio.sleep(0.1)
        (connection,) = client._connections
        connection.transport.pause_reading()
        connection.data_received(b"half")
        body = await first.aread()
        second = await client.request("GET", "/")
        return body, await second.aread()

    assert asyncio.run(talk()) == (b"halfhalf", b"next")
