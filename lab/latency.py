"""A link with latency: connections to a port of this machine are forwarded, with the same delay in each direction."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from typing import Any

CHUNK = 65536


class Link:
    """`with Link(("10.88.0.2", 22), 0.010) as port:` delays traffic through 127.0.0.1:port by 10 ms each way."""

    def __init__(self, there: tuple[str, int], delay: float) -> None:
        self.there, self.delay = there, delay
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self) -> int:
        self.thread.start()
        self.server = self._do(asyncio.start_server(self._connected, "127.0.0.1", 0))
        return self.server.sockets[0].getsockname()[1]

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(10)

    async def _close(self) -> None:
        self.server.close()
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self.there)
        # The link closes while clients keep connections open for their next command; that is not an error.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(self._carry(reader, far_writer), self._carry(far_reader, writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Forward data in its order, each piece `delay` seconds after its arrival."""
        waiting: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def deliver() -> None:
            while True:
                due, piece = await waiting.get()
                await asyncio.sleep(max(0.0, due - self.loop.time()))
                if not piece:
                    writer.close()
                    return
                writer.write(piece)

        delivery = asyncio.ensure_future(deliver())
        try:
            while piece := await reader.read(CHUNK):
                waiting.put_nowait((self.loop.time() + self.delay, piece))
        except ConnectionError:
            pass
        waiting.put_nowait((self.loop.time() + self.delay, b""))
        await delivery
