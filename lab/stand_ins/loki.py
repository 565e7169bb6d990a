"""A stand-in of Loki: accepts what log shippers push and answers the queries of tests and users.

One file without dependencies, because it runs alone on the services machine: `python3 loki.py FOLDER PORT [CALLERS]`.

    POST /loki/api/v1/push            JSON, or Protobuf as promtail sends it (Snappy); either may be gzipped
    GET /loki/api/v1/query_range      a selector and line filters; limit, since, start, end, direction
    GET /loki/api/v1/labels           /loki/api/v1/label/NAME/values
    GET /ready

Every line is written to FOLDER/lines.jsonl before the push is answered. Like Loki, it stores two equal lines of a
stream with the same time once, and refuses a push whose lines are too far ahead or too old, or have no labels. It
supports no metric queries and no parsers.

With CALLERS, a JSON file of a list of `{"authorization", "tenant", "queries"}`, it acts like a proxy in front of Loki:
an unknown caller gets 401, a caller without `queries` gets 403 for a query, and each tenant has its own lines.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

SECOND = 10**9
AHEAD = 600 * SECOND  # a line may be this far ahead of the clock
BACK = 7 * 24 * 3600 * SECOND
LIMIT = 5000

Condition = Callable[[str], bool]
Stream = tuple[dict[str, str], list[tuple[int, str]]]


class Refused(Exception):
    """The push or query cannot be accepted; the text gives the reason."""


# -- pushes ----------------------------------------------------------------------------------------------------------


def unsnap(data: bytes) -> bytes:
    """Decompress Snappy's block format: a length, then literals and copies of earlier bytes."""
    size, at = varint(data, 0)
    out = bytearray()
    while at < len(data):
        tag, at = data[at], at + 1
        kind, more = tag & 3, tag >> 2
        if kind == 0:
            if more >= 60:
                width = more - 59
                more, at = int.from_bytes(data[at : at + width], "little"), at + width
            out += data[at : at + more + 1]
            at += more + 1
            continue
        if kind == 1:
            length, offset, at = (more & 7) + 4, (tag >> 5) << 8 | data[at], at + 1
        else:
            width = 2 if kind == 2 else 4
            length, offset, at = more + 1, int.from_bytes(data[at : at + width], "little"), at + width
        if not 0 < offset <= len(out):
            raise Refused("snappy: corrupt input")
        for _ in range(length):  # a copy may overlap its own output
            out.append(out[-offset])
    if len(out) != size:
        raise Refused("snappy: corrupt input")
    return bytes(out)


def varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a varint; return its value and the position after it."""
    value = shift = 0
    while True:
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


def fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield the fields of a Protobuf message: number, and bytes or number."""
    at = 0
    while at < len(data):
        key, at = varint(data, at)
        match key & 7:
            case 0:
                value, at = varint(data, at)
            case 1 | 5 as wire:
                width = 8 if wire == 1 else 4
                value, at = int.from_bytes(data[at : at + width], "little"), at + width
            case 2:
                length, at = varint(data, at)
                if at + length > len(data):
                    raise Refused("protobuf: unexpected EOF")
                value, at = data[at : at + length], at + length
            case wire:
                raise Refused(f"protobuf: bad wiretype {wire}")
        yield key >> 3, value


def from_protobuf(data: bytes) -> list[Stream]:
    """Parse a PushRequest: streams (1) of labels (1) and entries (2) of a time (1) and a line (2)."""
    streams = []
    for stream in (value for number, value in fields(data) if number == 1):
        labels: dict[str, str] = {}
        entries = []
        for number, value in fields(stream):
            if number == 1:
                labels = {name: text for name, _, text in matchers(value.decode())[0]}
            elif number == 2:
                entry = dict(fields(value))
                instant = dict(fields(entry.get(1, b"")))
                entries.append((instant.get(1, 0) * SECOND + instant.get(2, 0), entry.get(2, b"").decode()))
        streams.append((labels, entries))
    return streams


def from_json(data: bytes) -> list[Stream]:
    """Parse Loki's JSON form of a push."""
    return [
        (stream["stream"], [(int(value[0]), str(value[1])) for value in stream["values"]])
        for stream in json.loads(data)["streams"]
    ]


# -- queries ---------------------------------------------------------------------------------------------------------

TEXT = r'"(?:[^"\\]|\\.)*"|`[^`]*`'
MATCHER = re.compile(rf"\s*([a-zA-Z_]\w*)\s*(=~|!~|!=|=)\s*({TEXT})\s*(,|\}})")
FILTER = re.compile(rf"\s*(\|=|!=|\|~|!~)\s*({TEXT})\s*")


def text_of(literal: str) -> str:
    """Return the value of a quoted string in a query."""
    return literal[1:-1] if literal.startswith("`") else json.loads(literal, strict=False)


def matchers(query: str) -> tuple[list[tuple[str, str, str]], str]:
    """Parse `{name="text", …}`; return name, operator and text of each matcher, and the rest of the query."""
    rest = query.lstrip()
    if not rest.startswith("{"):
        raise Refused(f"parse error: the stand-in only supports log queries, not {query!r}")
    rest, found = rest[1:], []
    if rest.startswith("}"):
        return found, rest[1:]
    while match := MATCHER.match(rest):
        name, operator, literal, then = match.groups()
        found.append((name, operator, text_of(literal)))
        rest = rest[match.end() :]
        if then == "}":
            return found, rest
    raise Refused(f"parse error: unexpected {rest[:20]!r} in {query!r}")


def condition(operator: str, text: str, whole: bool) -> Condition:
    """Return the condition of a label matcher (`whole`: on the complete text) or of a line filter (on a part)."""
    if operator.endswith("~"):
        try:
            pattern = re.compile(text)
        except re.error as error:
            raise Refused(f"parse error: error parsing regexp: {error}") from error
        find = pattern.fullmatch if whole else pattern.search
        return lambda value: bool(find(value)) is not operator.startswith("!")
    if whole:
        return lambda value: (value == text) is not operator.startswith("!")
    return lambda value: (text in value) is not operator.startswith("!")


def parse(query: str) -> tuple[list[tuple[str, Condition]], list[Condition]]:
    """Return a query's conditions on labels and its conditions on lines."""
    selected, rest = matchers(query)
    tests = [(name, condition(operator, text, whole=True)) for name, operator, text in selected]
    if all(test("") for _, test in tests):
        raise Refused("parse error: queries require at least one matcher that does not match an empty label")
    filters = []
    while match := FILTER.match(rest):
        filters.append(condition(match[1], text_of(match[2]), whole=False))
        rest = rest[match.end() :]
    if rest.strip():
        raise Refused(f"parse error: the stand-in does not know {rest.strip()!r}")
    return tests, filters


def instant(text: str) -> int:
    """Parse a time: nanoseconds, seconds with a fraction, or RFC 3339."""
    if re.fullmatch(r"\d+", text):
        return int(text) if len(text) > 10 else int(text) * SECOND
    if re.fullmatch(r"\d+\.\d+", text):
        return int(float(text) * SECOND)
    try:
        read = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise Refused(f"could not parse the time {text!r}") from error
    return int((read if read.tzinfo else read.replace(tzinfo=timezone.utc)).timestamp() * SECOND)


def duration(text: str) -> int:
    """Parse a duration such as `1h30m`."""
    units = {"ms": SECOND // 1000, "s": SECOND, "m": 60 * SECOND, "h": 3600 * SECOND, "d": 24 * 3600 * SECOND}
    parts = re.findall(r"(\d+)(ms|[smhd])", text)
    if not parts or "".join(map("".join, parts)) != text:
        raise Refused(f"could not parse the duration {text!r}")
    return sum(int(number) * units[unit] for number, unit in parts)


# -- storage ---------------------------------------------------------------------------------------------------------


class Store:
    """All lines, in memory and in an append-only file."""

    def __init__(self, folder: Path) -> None:
        self.lock = threading.Lock()
        self.streams: dict[tuple[tuple[str, str], ...], dict[tuple[int, str], None]] = {}
        path = folder / "lines.jsonl"
        if path.exists():
            # A power failure may have left an incomplete line at the end: its push was never answered.
            whole, _, half = path.read_bytes().rpartition(b"\n")
            for text in whole.splitlines():
                labels, entries = json.loads(text)
                self.keep(labels, [(instant, line) for instant, line in entries])
            if half:
                path.write_bytes(whole + b"\n")
        self.file = path.open("a")

    def keep(self, labels: dict[str, str], entries: list[tuple[int, str]]) -> list[tuple[int, str]]:
        """Store the entries of a stream in memory; return the new ones."""
        lines = self.streams.setdefault(tuple(sorted(labels.items())), {})
        fresh = [entry for entry in dict.fromkeys(entries) if entry not in lines]
        lines.update(dict.fromkeys(fresh))
        return fresh

    def push(self, streams: list[Stream]) -> None:
        """Store all lines of a push, or refuse the push."""
        now = time.time_ns()
        if not any(entries for _, entries in streams):
            raise Refused("the push has no lines")
        for labels, entries in streams:
            if not labels:
                raise Refused("error at least one label pair is required per stream")
            for when, _ in entries:
                if not now - BACK <= when <= now + AHEAD:
                    far = "new" if when > now else "old"
                    shown = datetime.fromtimestamp(when / SECOND, timezone.utc).isoformat()
                    raise Refused(f"entry for stream '{json.dumps(labels)}' has timestamp too {far}: {shown}")
        with self.lock:
            for labels, entries in streams:
                if fresh := self.keep(labels, entries):
                    self.file.write(json.dumps([labels, fresh]) + "\n")
            self.file.flush()

    def labels(self, name: str = "") -> list[str]:
        """Return all label names, or the values of one label."""
        with self.lock:
            pairs = [pair for stream in self.streams for pair in stream]
        return sorted({value for known, value in pairs if known == name} if name else {known for known, _ in pairs})

    def query(self, params: dict[str, str]) -> list[dict[str, Any]]:
        """Return a query's streams with up to `limit` lines, newest or oldest first."""
        tests, filters = parse(params.get("query", ""))
        end = instant(params["end"]) if "end" in params else time.time_ns()
        begin = instant(params["start"]) if "start" in params else end - duration(params.get("since", "1h"))
        limit, backward = int(params.get("limit", 100)), params.get("direction", "backward") != "forward"
        if not 0 < limit <= LIMIT:
            raise Refused(f"the limit must be between 1 and {LIMIT}, it is {limit}")
        with self.lock:
            found = [
                (when, line, stream)
                for stream, lines in self.streams.items()
                if all(test(dict(stream).get(name, "")) for name, test in tests)
                for when, line in lines
                if begin <= when < end and all(test(line) for test in filters)
            ]
        found.sort(key=lambda each: each[0], reverse=backward)
        result: dict[tuple[tuple[str, str], ...], list[list[str]]] = {}
        for when, line, stream in found[:limit]:
            result.setdefault(stream, []).append([str(when), line])
        return [{"stream": dict(stream), "values": values} for stream, values in result.items()]


class Handler(BaseHTTPRequestHandler):
    """One connection; serve() sets the store."""

    protocol_version = "HTTP/1.1"
    stores: dict[str, Store]
    callers: list[dict[str, Any]]

    def let_in(self, query: bool) -> bool:
        """Select the caller's store and return True; answer 401 or 403 and return False if the caller is refused."""
        tenant = self.headers.get("X-Scope-OrgID", "")
        caller = {"authorization": self.headers.get("Authorization", ""), "tenant": tenant}
        found = [each for each in self.callers if caller.items() <= each.items()]
        if self.callers and not found:
            self.send(401, "no org id\n" if caller["authorization"] and not tenant else "401 Authorization Required\n")
        elif self.callers and query and not found[0]["queries"]:
            self.send(403, "403 Forbidden\n")
        else:
            self.store = self.stores[found[0]["tenant"] if found else ""]
            return True
        return False

    def do_GET(self) -> None:
        """Answer a query."""
        parts = urlsplit(self.path)
        params = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if parts.path != "/ready" and not self.let_in(query=True):
            return
        value = re.fullmatch(r"/loki/api/v1/label/([^/]+)/values", parts.path)
        try:
            if parts.path == "/ready":
                self.send(200, "ready\n")
            elif parts.path == "/loki/api/v1/labels":
                self.succeed(self.store.labels())
            elif value:
                self.succeed(self.store.labels(unquote(value[1])))
            elif parts.path == "/loki/api/v1/query_range":
                self.succeed({"resultType": "streams", "result": self.store.query(params), "stats": {}})
            else:
                self.send(404, "404 page not found\n")
        except (Refused, ValueError) as error:
            self.send(400, f"{error}\n")

    def do_POST(self) -> None:
        """Accept or refuse a push."""
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if urlsplit(self.path).path != "/loki/api/v1/push":
            self.send(404, "404 page not found\n")
            return
        if not self.let_in(query=False):
            return
        try:
            if self.headers.get("Content-Encoding") == "gzip":
                data = gzip.decompress(data)
            in_json = self.headers.get_content_type() == "application/json"
            self.store.push(from_json(data) if in_json else from_protobuf(unsnap(data)))
        except (Refused, ValueError, LookupError, TypeError, AttributeError, OSError, EOFError) as error:
            self.send(400, f"{error}\n")
            return
        self.send(204, "")

    def succeed(self, data: Any) -> None:
        """Send data in Loki's response format."""
        self.send(200, json.dumps({"status": "success", "data": data}), "application/json; charset=UTF-8")

    def send(self, status: int, text: str, kind: str = "text/plain; charset=utf-8") -> None:
        """Send an answer."""
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing: accepted lines are in the file."""


def serve(folder: Path, address: tuple[str, int], callers: list[dict[str, Any]] | None = None) -> ThreadingHTTPServer:
    """Return a server of the lines in a folder that is bound to an address; the caller runs it."""
    stores = {"": Store(folder)} if not callers else {}
    for tenant in {each["tenant"] for each in callers or []}:
        (folder / tenant).mkdir(exist_ok=True)
        stores[tenant] = Store(folder / tenant)
    return ThreadingHTTPServer(address, type("BoundHandler", (Handler,), {"stores": stores, "callers": callers or []}))


if __name__ == "__main__":
    callers = json.loads(Path(sys.argv[3]).read_text()) if len(sys.argv) > 3 else None
    serve(Path(sys.argv[1]), ("", int(sys.argv[2])), callers).serve_forever()
