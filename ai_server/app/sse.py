"""Server-sent events as in the HTML standard: lines end with CR LF, LF or CR, and with nothing else."""

import json
import re
from collections.abc import AsyncIterable, AsyncIterator

BOM = b"\xef\xbb\xbf"
LINE_END = re.compile(rb"\r\n|\n|\r")

Event = tuple[str, str]


async def events(chunks: AsyncIterable[bytes]) -> AsyncIterator[Event]:
    """Yield each event as (type, data); the type is "message" unless the stream names another.

    Chunks may end anywhere, even inside a character. The last event needs no empty line after it; a last line without
    a line end is incomplete and is dropped.
    """
    reader = Reader()
    async for chunk in chunks:
        for event in reader.feed(chunk):
            yield event
    for event in reader.end():
        yield event


class Reader:
    """Parse events chunk by chunk, like `events` but without an await for each event, which is faster."""

    def __init__(self) -> None:
        self._rest, self._begun = b"", False
        self._only_lf = True  # so far; then events can be split at LF LF
        self._kind, self._data = "", []

    def feed(self, chunk: bytes) -> list[Event]:
        """Return the events that end in this chunk."""
        rest = self._rest + chunk if self._rest else chunk
        if not self._begun:
            if len(rest) < len(BOM) and BOM.startswith(rest):
                self._rest = rest
                return []
            rest, self._begun = rest.removeprefix(BOM), True
        if self._only_lf and b"\r" not in chunk:
            *blocks, self._rest = rest.split(b"\n\n")
            found = []
            for event in blocks:
                if event.startswith(b"data: ") and b"\n" not in event:
                    found.append(("message", event[6:].decode(errors="replace")))
                else:
                    found += self._lines([*event.split(b"\n"), b""])
            return found
        self._only_lf = False
        # A CR at the end may be the start of CR LF.
        held = rest[-1:] if rest.endswith(b"\r") else b""
        *lines, self._rest = LINE_END.split(rest[: len(rest) - len(held)])
        self._rest += held
        return self._lines(lines)

    def end(self) -> list[Event]:
        """Return the last event if no empty line follows it."""
        *lines, _ = LINE_END.split(self._rest)
        return self._lines([*lines, b""])

    def _lines(self, lines: list[bytes]) -> list[Event]:
        """Return the events in these lines, given without line ends.

        Splitting bytes is safe: no byte of a multi-byte UTF-8 character is CR or LF.
        """
        found = []
        for line in lines:
            name, _, value = line.decode(errors="replace").partition(":")
            value = value.removeprefix(" ")
            if not line:
                if self._data:
                    found.append((self._kind or "message", "\n".join(self._data)))
                self._kind, self._data = "", []
            elif name == "data":
                self._data.append(value)
            elif name == "event":
                self._kind = value
            elif name == "error":  # llama.cpp before September 2025; not in the standard
                self._kind, self._data = "error", [value]
        return found


def error(body: dict) -> bytes:
    """Return an error event for a stream that breaks off; its leading empty line ends a possible incomplete event."""
    return b"\n\ndata: " + json.dumps({"error": body}, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"
