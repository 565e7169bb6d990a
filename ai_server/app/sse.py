"""Server-sent events, as the HTML standard reads them: lines end at CR LF, LF or CR, and at nothing else."""

import json
import re
from collections.abc import AsyncIterable, AsyncIterator

BOM = b"\xef\xbb\xbf"
LINE_END = re.compile(rb"\r\n|\n|\r")


async def events(chunks: AsyncIterable[bytes]) -> AsyncIterator[tuple[str, str]]:
    """Yield each event as (its type, its data); the type is "message" unless the stream says another.

    chunks may end anywhere, in the middle of a character too. The last event needs no empty line behind it; a line
    that has no end is half a line and is dropped.
    """
    kind, data = "", []
    async for line in _lines(chunks):
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if not line:
            if data:
                yield kind or "message", "\n".join(data)
            kind, data = "", []
        elif name == "data":
            data.append(value)
        elif name == "event":
            kind = value
        elif name == "error":  # llama.cpp's way before September 2025: no field of the standard
            kind, data = "error", [value]
    if data:
        yield kind or "message", "\n".join(data)


async def _lines(chunks: AsyncIterable[bytes]) -> AsyncIterator[str]:
    """Yield the lines without their ends. They are split as bytes: no part of a UTF-8 character looks like an end."""
    rest, first = b"", True
    async for chunk in chunks:
        rest += chunk
        if first and len(rest) < len(BOM) and BOM.startswith(rest):
            continue
        if first:
            rest, first = rest.removeprefix(BOM), False
        # A CR at the end may be the first half of CR LF.
        held = rest[-1:] if rest.endswith(b"\r") else b""
        *lines, rest = LINE_END.split(rest[: len(rest) - len(held)])
        rest += held
        for line in lines:
            yield line.decode(errors="replace")
    if rest.endswith(b"\r"):
        yield rest[:-1].decode(errors="replace")


def error(body: dict) -> bytes:
    """Return an event that tells of an error where a stream breaks off; it ends what may be half an event before it."""
    return b"\n\ndata: " + json.dumps({"error": body}, separators=(",", ":"), ensure_ascii=False).encode() + b"\n\n"
