"""Server-sent events, as the HTML standard reads them: lines end at CR LF, LF or CR, and at nothing else."""

import json
import re
from collections.abc import AsyncIterable, AsyncIterator

BOM = b"\xef\xbb\xbf"
LINE_END = re.compile(rb"\r\n|\n|\r")

Event = tuple[str, str]


async def events(chunks: AsyncIterable[bytes]) -> AsyncIterator[Event]:
    """Yield each event as (its type, its data); the type is "message" unless the stream says another.

    chunks may end anywhere, in the middle of a character too. The last event needs no empty line behind it; a line
    that has no end is half a line and is dropped.
    """
    reader = Reader()
    async for chunk in chunks:
        for event in reader.feed(chunk):
            yield event
    for event in reader.end():
        yield event


class Reader:
    """What `events` does, chunk by chunk, for those who have no time to wait for each event."""

    def __init__(self) -> None:
        self._rest, self._begun = b"", False
        self._only_lf = True  # so far: then an empty line is LF LF, and events are split off whole
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
            *whole, self._rest = rest.split(b"\n\n")
            found = []
            for event in whole:
                if event.startswith(b"data: ") and b"\n" not in event:
                    found.append(("message", event[6:].decode(errors="replace")))
                else:
                    found += self._lines([*event.split(b"\n"), b""])
            return found
        self._only_lf = False
        # A CR at the end may be the first half of CR LF.
        held = rest[-1:] if rest.endswith(b"\r") else b""
        *lines, self._rest = LINE_END.split(rest[: len(rest) - len(held)])
        self._rest += held
        return self._lines(lines)

    def end(self) -> list[Event]:
        """Return the event that has no empty line behind it."""
        *lines, _ = LINE_END.split(self._rest)
        return self._lines([*lines, b""])

    def _lines(self, lines: list[bytes]) -> list[Event]:
        """Read lines without their ends. They were split as bytes: no part of a UTF-8 character looks like an end."""
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
            elif name == "error":  # llama.cpp's way before September 2025: no field of the standard
                self._kind, self._data = "error", [value]
        return found


def error(body: dict) -> bytes:
    """Return an event that tells of an error where a stream breaks off; it ends what may be half an event before it."""
    return b"\n\ndata: " + json.dumps({"error": body}, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"
